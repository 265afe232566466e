"""Conversations about pictures and plain ones, packed into rows, with their pictures cut into patches.

All pictures of a step are drawn in one size, and sizes change from step to step. Knows no model; the patches are
cut by the very code that cuts them when the model is served.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from training.batches import Shape, block
from training.draw import Draw
from training.mixture import SYSTEM, stream
from training.pictures import Picture, drawn, size
from training.sample import Sample, chain
from training.text import Encoded, SampleEncoder
from training.vision_network import MERGE, PATCH, VisionBatch, module
from training.vision_questions import pair, talk

TEXT: Mapping[str, float] = MappingProxyType({"echo": 4, "facts": 3, "talk": 2, "names": 1})
"""What the model learns beside pictures."""
PIXELS = 112 * 112
"""To which every picture is brought, as nearly as its shape allows: 16 image tokens if it is square."""
_TEXT_SHARE = 0.2
_BUFFER = 48


def processor() -> Any:
    """Return what turns pictures into patches, for training as in the server."""
    return module("qwen3_vl.processing_qwen3_vl").Qwen3VLImageProcessor(**PROCESSOR)


PROCESSOR: Mapping[str, Any] = MappingProxyType(
    {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "min_pixels": PIXELS,
        "max_pixels": PIXELS,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
)


def conversations(source: Draw) -> Iterator[Sample]:
    """Yield training samples without end."""
    texts = stream(source, TEXT, chained=tuple(TEXT))
    while True:
        if source.chance(_TEXT_SHARE):
            yield next(texts)
            continue
        if source.chance(0.22):
            sample = pair(source, held_out=False, turns=source.pick((1, 1, 2)))
        else:
            sample = talk(source, held_out=False, least=1)
        if source.chance(0.1):
            sample = replace(chain([_plain(texts), sample]), pictures=sample.pictures)
        if source.chance(0.06):
            sample = replace(sample, thinks=False)
        yield chain([sample], [{"role": "system", "content": source.pick(SYSTEM)}]) if source.chance(0.1) else sample


def _plain(texts: Iterator[Sample]) -> Sample:
    """Draw one that other turns may follow."""
    while True:
        sample = next(texts)
        if sample.messages and sample.messages[0]["role"] != "system" and sample.thinks is None:
            return sample


class PatchCutter:
    """Draws pictures in one size and cuts them into patches."""

    def __init__(self) -> None:
        self._processor = processor()

    def tokens(self, pixels: tuple[int, int]) -> int:
        """Return the image tokens of a picture of this width and height."""
        width, height = pixels
        return int(self._processor.num_image_tokens(height, width))

    def __call__(self, pictures: list[Picture], pixels: tuple[int, int]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return patches (pictures, patches of each, values of a patch), and how many are down and across."""
        cut = self._processor([drawn(picture, *pixels) for picture in pictures])
        patches: NDArray[np.float32] = cut["pixel_values"].reshape(len(pictures), -1, cut["pixel_values"].shape[-1])
        _, down, across = cut["image_grid_thw"][0].tolist()
        return patches, (down, across)


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    encoded: Encoded
    pictures: tuple[Picture, ...]

    def length(self, each: int) -> int:
        """Return the length with so many tokens for each picture."""
        return len(self.encoded.tokens) + len(self.pictures) * (each - 1)


class VisionPacker:
    """Batches without end, the same ones for the same seed. `samples` takes the place of what is drawn."""

    def __init__(
        self, encoder: SampleEncoder, *, pad: int, seed: int, shape: Shape, samples: Iterator[Sample] | None = None
    ) -> None:
        self._encoder = encoder
        self._pad = pad
        self._shape = shape
        self._sizes = Draw(2 * seed)
        self._samples = samples or conversations(Draw(2 * seed + 1))
        self._waiting: list[_Waiting] = []
        self._cut = PatchCutter()

    def batches(self) -> Iterator[VisionBatch]:
        """Yield one for every step."""
        while True:
            pixels = size(self._sizes)
            yield self._batch(self._rows(self._cut.tokens(pixels)), pixels)

    def _rows(self, each: int) -> list[list[_Waiting]]:
        rows = []
        pictures = self._shape.pictures
        for _ in range(self._shape.rows):
            row: list[_Waiting] = []
            left = self._shape.length
            while True:
                while len(self._waiting) < _BUFFER and (sample := next(self._samples, None)):
                    self._take(sample)
                fitting = [one for one in self._waiting if one.length(each) <= left and len(one.pictures) <= pictures]
                if not fitting:
                    break
                chosen = max(fitting, key=lambda one: one.length(each)) if row else fitting[0]
                self._waiting.remove(chosen)
                row.append(chosen)
                left -= chosen.length(each)
                pictures -= len(chosen.pictures)
            rows.append(row)
        return rows

    def _take(self, sample: Sample) -> None:
        one = _Waiting(encoded=self._encoder.encode(sample), pictures=sample.pictures)
        if one.length(20) <= self._shape.length:
            self._waiting.append(one)

    def _batch(self, rows: list[list[_Waiting]], pixels: tuple[int, int]) -> VisionBatch:
        shown = [picture for row in rows for one in row for picture in one.pictures]
        blank = Picture(things=(), above=(0, 0, 0), below=(0, 0, 0))
        # Always as many: whatever is compiled is compiled for a shape.
        patches, (down, across) = self._cut(shown + [blank] * (self._shape.pictures - len(shown)), pixels)
        grid = (down // MERGE, across // MERGE)
        long = [[expanded(one.encoded, self._pad, grid) for one in row] for row in rows]
        packed = block([[encoded for encoded, _ in row] for row in long], self._shape)
        positions = np.zeros((3, self._shape.rows, self._shape.length), dtype=np.int32)
        for number, row in enumerate(long):
            start = 0
            for _, where in row:
                positions[:, number, start : start + where.shape[1]] = where
                start += where.shape[1]
        sources = np.arange(packed.tokens.size, dtype=np.int32)
        images = np.flatnonzero(packed.tokens == self._pad)
        sources[images] = packed.tokens.size + np.arange(len(images))
        return VisionBatch(
            tokens=mx.array(packed.tokens),
            positions=mx.array(positions),
            sources=mx.array(sources),
            patches=mx.array(patches),
            grid=(down, across),
            bias=mx.array(packed.bias),
            places=mx.array(packed.places),
            targets=mx.array(packed.targets),
            weights=mx.array(packed.weights),
        )


def expanded(encoded: Encoded, pad: int, grid: tuple[int, int]) -> tuple[Encoded, NDArray[np.int32]]:
    """Expand each image token to all of its image's, and add the positions (3, length) of Qwen2-VL.

    An image's tokens share one moment and lie on a grid; the text goes on behind the largest of their positions.
    """
    down, across = grid
    tokens: list[int] = []
    learnt: list[bool] = []
    positions: list[NDArray[np.int32]] = []
    following = 0
    for token, is_learnt in zip(encoded.tokens, encoded.learnt, strict=True):
        if token != pad:
            tokens.append(token)
            learnt.append(is_learnt)
            positions.append(np.full((3, 1), following, dtype=np.int32))
            following += 1
            continue
        tokens += [pad] * (down * across)
        learnt += [False] * (down * across)
        rows, columns = np.divmod(np.arange(down * across, dtype=np.int32), across)
        positions.append(np.stack([np.zeros_like(rows), rows, columns]) + following)
        following += max(down, across)
    return Encoded(tokens=tokens, learnt=learnt), np.concatenate(positions, axis=1)
