"""One text encoder in memory: token ids in, one vector per text out. Built on the model files of mlx-embeddings.

Loads data only, never code. Nothing here knows of jobs.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from worker.batch.texts import Text
from worker.engines.bare import enter_package
from worker.engines.base import EngineLoadError
from worker.engines.sentence_files import DenseFiles, SentenceFiles

ENCODERS = MappingProxyType({"bert": "bert", "xlm-roberta": "xlm_roberta"})
"""Architectures that attend in both directions and heed a mask: `model_type` to module of mlx-embeddings."""
OPTIONAL = ("pooler.",)
"""Weights that a folder may lack: nothing here uses the layers they are for."""
ACTIVATIONS = MappingProxyType({"": lambda x: x, "Tanh": mx.tanh, "GELU": nn.gelu, "ReLU": nn.relu})

SAME = 0.9999
"""Cosine of a text's vector alone and beside a longer one, above which padding counts as harmless."""
ALIKE = MappingProxyType({"cpu": 0.8, "gpu": 0.5})
"""How short a text may be beside the longest of its pass. A GPU likes fewer passes, a CPU less padding."""

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Encoder:
    """A loaded model. Every method is for the engine's thread."""

    def __init__(self, folder: Path, files: SentenceFiles) -> None:
        """Load weights. Raises `EngineLoadError`."""
        self._files = files
        self._model = _model(folder, files.config)
        self._dense = [_Dense(found) for found in files.dense]
        # Metal keeps buffers by size: lengths that repeat keep that cache small. On the CPU padding costs more.
        self._device = "cpu" if mx.default_device() == mx.Device(mx.cpu) else "gpu"
        self._length_step = 1 if self._device == "cpu" else 8
        weights = tree_flatten(self._model.parameters())
        self._dtype = next(array.dtype for name, array in weights if "LayerNorm" in name)
        self.weights_bytes = sum(array.nbytes for _, array in weights)
        self.vocab_size = int(files.config["vocab_size"])
        self.dimensions = self.encode([Text(0, 0, [0])], normalize=False).shape[1]

    def padding_ratio(self) -> float:
        """Prove that padding changes nothing: how short a text may be beside the longest of a pass; 1 if it does."""
        short = Text(0, 0, [at * 7 % self.vocab_size for at in range(1, 6)])
        long = Text(0, 1, [at * 11 % self.vocab_size for at in range(1, 24)])
        together = self.encode([short, long], normalize=True)
        alone = np.concatenate([self.encode([text], normalize=True) for text in (short, long)])
        if (together * alone).sum(axis=1).min() >= SAME:
            return ALIKE[self._device]
        self._length_step = 1
        return 1.0

    def encode(self, texts: Sequence[Text], *, normalize: bool) -> Vectors:
        """One vector per text, shape (texts, dimensions), float32; what is no number comes out as it is."""
        longest = max(len(text.tokens) for text in texts)
        longest += -longest % self._length_step
        pad = int(self._files.config.get("pad_token_id") or 0)
        tokens = np.full((len(texts), longest), pad, dtype=np.int32)
        mask = np.zeros((len(texts), longest), dtype=np.float32)
        pooled = np.zeros((len(texts), longest), dtype=np.float32)
        for row, text in enumerate(texts):
            length = len(text.tokens)
            tokens[row, :length] = text.tokens
            mask[row, :length] = 1
            pooled[row, min(text.skip, length - 1) : length] = 1
        output = self._model(mx.array(tokens), attention_mask=mx.array(mask).astype(self._dtype))
        hidden = output.last_hidden_state.astype(mx.float32)
        weights = mx.array(pooled)
        vectors = mx.concatenate([_pool(hidden, weights, how) for how in self._files.poolings], axis=-1)
        for layer in self._dense:
            vectors = layer(vectors)
        if normalize:
            vectors = vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return np.array(vectors, dtype=np.float32)


class _Dense:
    """`sentence_transformers.models.Dense`."""

    def __init__(self, files: DenseFiles) -> None:
        try:
            weights: dict[str, mx.array] = mx.load(str(files.folder / "model.safetensors"))
            self._weight = weights["linear.weight"].astype(mx.float32)
            self._bias = weights["linear.bias"].astype(mx.float32) if "linear.bias" in weights else None
            self._activation = ACTIVATIONS[files.activation]
        except (OSError, RuntimeError, KeyError) as error:
            raise EngineLoadError(f"the layer {files.folder.name} can't be used: {error}") from None

    def __call__(self, x: mx.array) -> mx.array:
        x = x @ self._weight.T
        return self._activation(x if self._bias is None else x + self._bias)


def _pool(hidden: mx.array, mask: mx.array, how: str) -> mx.array:
    """From (texts, length, width) to (texts, width), over the tokens where `mask` is 1; as sentence-transformers."""
    count = mx.sum(mask, axis=1, keepdims=True)
    match how:
        case "cls":
            # Of a skipped prompt, too: the first token stands for the whole text.
            return hidden[:, 0]
        case "lasttoken":
            last = mask.shape[1] - 1 - mx.argmax(mask[:, ::-1], axis=1)
            return mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        case "max":
            return mx.max(mx.where(mask[..., None] > 0, hidden, -1e9), axis=1)
        case "weightedmean":
            mask = mask * mx.arange(1, mask.shape[1] + 1)
            count = mx.sum(mask, axis=1, keepdims=True)
        case "mean_sqrt_len_tokens":
            count = mx.sqrt(count)
        case _:
            pass
    return mx.sum(hidden * mask[..., None], axis=1) / count


def _model(folder: Path, config: dict[str, Any]) -> Any:
    module = _architecture(str(config["model_type"]))
    try:
        model = module.Model(module.ModelArgs.from_dict(config))
        weights = _weights(folder)
        # Saved from a model with a head: the encoder's names have its prefix, and the head is not needed.
        prefix = f"{str(config['model_type']).rpartition('-')[2]}."
        weights = model.sanitize({name.removeprefix(prefix): array for name, array in weights.items()})
        quantization = config.get("quantization")
        if quantization:
            nn.quantize(
                model,
                group_size=quantization["group_size"],
                bits=quantization["bits"],
                class_predicate=lambda path, layer: hasattr(layer, "to_quantized") and f"{path}.scales" in weights,
            )
        wanted = {name for name, _ in tree_flatten(model.parameters())}
        missing = {name for name in wanted - weights.keys() if not name.startswith(OPTIONAL)}
        if missing:
            raise EngineLoadError(f"{len(missing)} weights are missing, {min(missing)} for one")
        model.load_weights([(name, array) for name, array in weights.items() if name in wanted], strict=False)
        if mx.default_device() == mx.Device(mx.cpu) and not quantization:
            # Half precision is software on the CPU, float32 is BLAS.
            model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    except EngineLoadError:
        raise
    except Exception as error:
        raise EngineLoadError(f"{type(error).__name__}: {error}") from error
    model.eval()
    return model


def _weights(folder: Path) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    # Not the folders below: those are layers of their own.
    for path in sorted(folder.glob("*.safetensors")):
        weights |= mx.load(str(path))
    if not weights:
        raise EngineLoadError("there are no *.safetensors weights")
    return weights


def _architecture(model_type: str) -> Any:
    """The module of mlx-embeddings that has this architecture."""
    name = ENCODERS.get(model_type)
    if name is None:
        known = ", ".join(ENCODERS)
        raise EngineLoadError(f"embedding models of type {model_type!r} are not supported (only {known})")
    enter_package("mlx_embeddings")
    return importlib.import_module(f"mlx_embeddings.models.{name}")
