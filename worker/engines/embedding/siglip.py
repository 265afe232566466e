"""SigLIP in memory: a tower for texts and one for images, whose vectors can be compared. Nothing here knows of jobs.

An input with a text and an image gets the mean of both vectors, of equal weight: the towers never see each other.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from worker.engines import weights
from worker.engines.embedding.encoder import Vectors
from worker.engines.embedding.model_files import EmbeddingFiles
from worker.engines.embedding.pixels import Images
from worker.engines.embedding.queue import QueuedText
from worker.engines.skip_init import enter_package

OPTIONAL = ("logit_scale", "logit_bias")
"""For scores between texts and images, which nothing here computes."""


class SiglipEncoder:
    """See `worker.engines.embedding.embedder.Embedder`."""

    capabilities = ("embeddings", "embed_image")

    def __init__(self, folder: Path, files: EmbeddingFiles, *, pad: int, quantize: str = "none") -> None:
        """Load weights. `pad` is the token that stands behind every text up to the full length."""
        enter_package("mlx_embeddings")
        module = importlib.import_module("mlx_embeddings.models.siglip")
        config = files.config
        text, vision = (
            _known(kind, config[name])
            for kind, name in ((module.TextConfig, "text_config"), (module.VisionConfig, "vision_config"))
        )
        self._model = module.Model(module.ModelArgs(text_config=text, vision_config=vision))
        weights.fill(self._model, self._model.sanitize(weights.read(folder)), config, optional=OPTIONAL)
        self.quantization = weights.settle(self._model, config, quantize=quantize, keep=_read_whole)
        self.images = Images(folder, patch=vision.patch_size, square=vision.image_size)
        self.read: Callable[[Any], mx.array] = self._read
        """Token ids (texts, full length) to vectors."""
        self.see: Callable[[mx.array], mx.array] = self._see
        """Floats (images, height, width, 3) to vectors."""
        self._pad = pad
        self.length = int(text.max_position_embeddings)
        self.weights_bytes = weights.size(self._model)
        self.vocab_size = int(text.vocab_size)
        self.dimensions = int(text.projection_size)

    def padding_is_harmless(self) -> bool:
        """Nothing is ever padded further: texts are all computed at full length, as in training, images at one size."""
        return False

    def encode(self, texts: Sequence[QueuedText], *, normalize: bool) -> Vectors:
        """One vector per input, shape (texts, dimensions), float32; what is no number comes out as it is."""
        read = [at for at, text in enumerate(texts) if text.tokens]
        seen = [at for at, text in enumerate(texts) if text.image]
        both = sorted({*read} & {*seen})
        vectors = mx.zeros((len(texts), self.dimensions))
        for places, tower in ((read, self._texts), (seen, self._pictures)):
            if places:
                found = tower([texts[at] for at in places]).astype(mx.float32)
                if both:
                    found = _unit(found)
                vectors = vectors.at[mx.array(places)].add(found)
        if both:
            vectors[mx.array(both)] /= 2
        return np.array(_unit(vectors) if normalize else vectors, dtype=np.float32)

    def _texts(self, texts: Sequence[QueuedText]) -> mx.array:
        tokens = np.full((len(texts), self.length), self._pad, dtype=np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text.tokens)] = text.tokens
        return self.read(tokens)

    def _pictures(self, texts: Sequence[QueuedText]) -> mx.array:
        return self.see(mx.stack([self.images.normalise_pixels(text.image) for text in texts if text.image]))

    def _read(self, tokens: Any) -> mx.array:
        _, vectors = self._model.text_model(mx.array(tokens))
        return vectors

    def _see(self, pixels: mx.array) -> mx.array:
        tower = self._model.vision_model
        _, vectors = tower(pixels.astype(tower.vision_model.post_layernorm.weight.dtype))
        return vectors


def _read_whole(path: str) -> bool:
    """Return the weights as they are: the model file cuts this layer's up itself."""
    return path.endswith("attention.in_proj")


def _unit(vectors: mx.array) -> mx.array:
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _known(kind: Any, said: dict[str, Any]) -> Any:
    return kind(**{name: value for name, value in said.items() if name in kind.__dataclass_fields__})
