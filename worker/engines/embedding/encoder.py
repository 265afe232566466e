"""One text encoder in memory: token ids in, one vector per text out. Nothing here knows of jobs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from worker.device_errors import is_device_error
from worker.engines import weights
from worker.engines.base import EngineLoadError
from worker.engines.embedding.architectures import Mask, architecture, flat, window
from worker.engines.embedding.model_files import EmbeddingFiles
from worker.engines.embedding.pooling import Dense, pool, stored
from worker.engines.embedding.queue import QueuedText

OPTIONAL = ("pooler.",)
"""Weights that a folder may lack: nothing here uses the layers they are for."""

SAME = 0.9999
"""Cosine of a text's vector alone and beside a longer one, above which padding counts as harmless."""
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Encoder:
    """See `worker.engines.embedding.embedder.Embedder`."""

    capabilities = ("embeddings",)

    def __init__(self, folder: Path, files: EmbeddingFiles, *, quantize: str = "none") -> None:
        """Load weights. Raises `EngineLoadError`."""
        self._files = files
        self._config = flat(files.config)
        self._architecture = architecture(self._config)
        try:
            self._model = self._architecture.build(self._config)
            self._dense = self._fill(folder)
            self.quantization = weights.settle(self._model, self._config, quantize=quantize)
        except EngineLoadError:
            raise
        except Exception as error:
            if is_device_error(error):
                raise
            raise EngineLoadError(f"{type(error).__name__}: {error}") from error
        # Metal keeps buffers by size: lengths that repeat keep that cache small. On the CPU padding costs more.
        self._length_step = 1 if mx.default_device() == mx.Device(mx.cpu) else 8
        self.hidden: Callable[[Any, Mask], mx.array] = self._hidden
        """Token ids (texts, length) and which of them are none of padding, to states (texts, length, width)."""
        self.weights_bytes = weights.size(self._model)
        self.vocab_size = int(files.config["vocab_size"])
        self._positions = int(files.config.get("max_position_embeddings") or 0)
        self.dimensions = self.encode([QueuedText(0, 0, [0])], normalize=False).shape[1]

    def _fill(self, folder: Path) -> list[Dense]:
        """Load the model's weights; answers the layers behind the pooling."""
        # Saved from a model with a head, the encoder's names have a prefix; the head is not needed.
        prefix = self._architecture.prefix
        found = {name.removeprefix(prefix): array for name, array in weights.read(folder).items()}
        weights.fill(self._model, found, self._config, optional=OPTIONAL)
        return [Dense.read_layer(files) for files in self._files.dense] or stored(found)

    def _hidden(self, tokens: Any, mask: Mask) -> mx.array:
        return self._architecture.hidden(self._model, mx.array(tokens), mask)

    def padding_is_harmless(self) -> bool:
        """Prove that padding changes nothing."""
        # Long enough for padding that sees nothing but padding.
        longest = min(int(self._config.get("max_position_embeddings", 512)) - 8, max(24, window(self._config) + 24))
        short = QueuedText(0, 0, [at * 7 % self.vocab_size for at in range(1, 6)])
        long = QueuedText(0, 1, [at * 11 % self.vocab_size for at in range(1, longest)])
        together = self.encode([short, long], normalize=True)
        alone = np.concatenate([self.encode([text], normalize=True) for text in (short, long)])
        if (together * alone).sum(axis=1).min() >= SAME:
            return True
        self._length_step = 1
        return False

    def encode(self, texts: Sequence[QueuedText], *, normalize: bool) -> Vectors:
        """One vector per text, shape (texts, dimensions), float32; what is no number comes out as it is."""
        longest = max(len(text.tokens) for text in texts)
        longest = max(longest, min(longest + -longest % self._length_step, self._positions))
        pad = int(self._files.config.get("pad_token_id") or 0)
        tokens = np.full((len(texts), longest), pad, dtype=np.int32)
        mask = np.zeros((len(texts), longest), dtype=np.bool_)
        pooled = np.zeros((len(texts), longest), dtype=np.float32)
        for row, text in enumerate(texts):
            length = len(text.tokens)
            tokens[row, :length] = text.tokens
            mask[row, :length] = True
            pooled[row, min(text.skip, length - 1) : length] = 1
        hidden = self.hidden(tokens, mask).astype(mx.float32)
        spots = mx.array(pooled)
        vectors = mx.concatenate([pool(hidden, spots, how) for how in self._files.poolings], axis=-1)
        for layer in self._dense:
            vectors = layer(vectors)
        if normalize:
            vectors = vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return np.array(vectors, dtype=np.float32)
