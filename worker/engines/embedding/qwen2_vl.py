"""Qwen2-VL as an embedding model: text, image or both in one conversation, whose last token's state is the vector.

The layout is that of Ops-MM-embedding-v1 and GME-Qwen2-VL. Runs on mlx-vlm's layers; nothing here knows of jobs.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from worker.engines import weights
from worker.engines.embedding.encoder import SAME, Vectors
from worker.engines.embedding.model_files import EmbeddingFiles
from worker.engines.embedding.pixels import Images
from worker.engines.embedding.pooling import pool
from worker.engines.embedding.queue import QueuedText
from worker.engines.skip_init import enter_package


class ImageInputs(msgspec.Struct, frozen=True):
    """What a pass takes: token ids (texts, length) padded behind their `lengths`, rotary positions (3, texts, length).

    `shown` says where pieces of images stand; `patches` and `grids` are those of all images, in that order.
    """

    tokens: Any
    lengths: Any
    positions: Any
    shown: Any
    patches: mx.array | None
    grids: list[tuple[int, int, int]]


class Qwen2VLEncoder:
    """See `worker.engines.embedding.embedder.Embedder`."""

    capabilities = ("embeddings", "embed_image")

    def __init__(self, folder: Path, files: EmbeddingFiles, *, quantize: str = "none") -> None:
        """Load weights."""
        enter_package("mlx_vlm")
        module = importlib.import_module("mlx_vlm.models.qwen2_vl")
        config = _flat(files.config)
        text = module.TextConfig.from_dict(config)
        vision = module.VisionConfig.from_dict(config["vision_config"])
        self._config = module.ModelConfig.from_dict(dict(config))
        self._config.text_config, self._config.vision_config = text, vision
        model = module.Model(self._config)
        # Of the head nothing is needed, and it is as large as the vocabulary.
        model.language_model.pop("lm_head", None)
        found = {_renamed(name): array for name, array in weights.read(folder).items()}
        weights.fill(model, model.vision_tower.sanitize(found), config)
        self.quantization = weights.settle(model, config, quantize=quantize, keep=_looks)
        self._tower, self._language = model.vision_tower, model.language_model.model
        self.images = Images(folder, patch=vision.patch_size)
        self.hidden: Callable[[ImageInputs], mx.array] = self._hidden
        """A pass, to states (texts, length, width)."""
        self._pad = int(config.get("pad_token_id") or 0)
        self.weights_bytes = weights.size(model)
        self.vocab_size = int(text.vocab_size)
        self.dimensions = int(text.hidden_size)

    @property
    def image_token(self) -> int:
        """The id that stands for a piece of an image."""
        return int(self._config.image_token_id)

    def padding_is_harmless(self) -> bool:
        """Prove that padding changes nothing; see `Encoder.padding_is_harmless`."""
        texts = [
            QueuedText(0, at, [at * 7 % self.vocab_size for at in range(1, last)]) for at, last in enumerate((6, 24))
        ]
        together = self.encode(texts, normalize=True)
        alone = np.concatenate([self.encode([text], normalize=True) for text in texts])
        return bool((together * alone).sum(axis=1).min() >= SAME)

    def encode(self, texts: Sequence[QueuedText], *, normalize: bool) -> Vectors:
        """One vector per input, shape (texts, dimensions), float32; what is no number comes out as it is."""
        lengths = np.array([len(text.tokens) for text in texts])
        tokens = np.full((len(texts), lengths.max()), self._pad, dtype=np.int32)
        positions = np.zeros((3, *tokens.shape), dtype=np.int32)
        for row, text in enumerate(texts):
            tokens[row, : lengths[row]] = text.tokens
            positions[:, row, : lengths[row]] = self._positions(text)
        # A text of token ids may hold the image's without an image.
        has = np.array([text.image is not None for text in texts])
        shown = (tokens == self.image_token) & has[:, None]
        patches, grids = self._patches(texts)
        hidden = self.hidden(ImageInputs(tokens, lengths, positions, shown, patches, grids))
        last = mx.array(np.arange(tokens.shape[1]) == lengths[:, None] - 1)
        vectors = pool(hidden.astype(mx.float32), last.astype(mx.float32), "lasttoken")
        if normalize:
            vectors = vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return np.array(vectors, dtype=np.float32)

    def _hidden(self, inputs: ImageInputs) -> mx.array:
        embeddings = self._language.embed_tokens(mx.array(inputs.tokens))
        if inputs.patches is not None:
            pixels = inputs.patches.astype(self._tower.patch_embed.proj.weight.dtype)
            rows, places = (mx.array(axis) for axis in np.nonzero(inputs.shown))
            embeddings[rows, places] = self._tower(pixels, mx.array(inputs.grids)).astype(embeddings.dtype)
        # Behind a text its tokens never look: padding there needs no mask.
        hidden: mx.array = self._language(None, inputs_embeds=embeddings, position_ids=mx.array(inputs.positions))
        return hidden

    def _patches(self, texts: Sequence[QueuedText]) -> tuple[mx.array | None, list[tuple[int, int, int]]]:
        """All images of a pass, cut up: (patches of all, floats of one), and each image's (1, rows, columns)."""
        patches, grids = [], []
        side = self.images.patch
        for image in [text.image for text in texts if text.image]:
            floats = self.images.normalise_pixels(image)
            high, wide = (edge // side for edge in floats.shape[:2])
            # Four neighbours in a row, each as (channel, time, height, width); a still image is two equal frames.
            cut = floats.reshape(high // 2, 2, side, wide // 2, 2, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
            patches.append(mx.repeat(cut.reshape(high * wide, 3, 1, side * side), 2, axis=2).reshape(high * wide, -1))
            grids.append((1, high, wide))
        return (mx.concatenate(patches) if patches else None), grids

    def _positions(self, text: QueuedText) -> Any:
        """Rotary positions in time, height and width, (3, tokens): an image takes as many as its longer side."""
        length = len(text.tokens)
        if text.image is None:
            return np.broadcast_to(np.arange(length), (3, length))
        start = text.tokens.index(self.image_token)
        high, wide = (edge // self.images.patch // 2 for edge in text.image.pixels.shape[:2])
        inside = np.stack([np.zeros(high * wide), *(axis.ravel() for axis in np.indices((high, wide)))]) + start
        behind = np.arange(length - start - high * wide) + start + max(high, wide)
        lines = [np.broadcast_to(line, (3, len(line))) for line in (np.arange(start), behind)]
        return np.concatenate([lines[0], inside, lines[1]], axis=1)


def _looks(path: str) -> bool:
    """As for chat with images: what looks is small, and its errors are seen by every token."""
    return path.startswith("vision_tower")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config as mlx-vlm reads it.

    `transformers` 5 has a part for the text, and the rotary parameters in one.
    """
    flat = {**(config.get("text_config") or {}), **config}
    flat["model_type"] = config["model_type"]
    rope = flat.get("rope_parameters") or flat.get("rope_scaling") or {}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat["rope_theta"] = flat.get("rope_theta") or rope.get("rope_theta", 1_000_000.0)
    return flat


def _renamed(name: str) -> str:
    """Return the names of transformers 4 and 5 as mlx-vlm's; its own stay."""
    for old, new in (
        ("model.visual.", "vision_tower."),
        ("visual.", "vision_tower."),
        ("model.language_model.", "language_model.model."),
        ("model.", "language_model.model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
