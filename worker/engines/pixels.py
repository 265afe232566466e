"""From image files to what a model computes on: sizes by its `preprocessor_config.json`, resized by Pillow.

Files are read and resized on the reception thread; an image waits for its turn as bytes, not as floats.
"""

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from protocol.errors import Code, JobError
from worker.batch.texts import Picture
from worker.images import decode

HALF = (0.5, 0.5, 0.5)
MOST_ELONGATED = 200
"""Qwen's models take no image that is this many times as wide as high."""
STOCK_PIXELS = (3136, 12_845_056)
"""What every relative of Qwen2-VL has in its file, whatever it was trained with."""
EMBEDDING_PIXELS = (256 * 28 * 28, 1280 * 28 * 28)
"""What embedding models of that line were trained with and published code sets: Ops-MM-embedding-v1, GME-Qwen2-VL."""


class Images:
    """One model's idea of an image. `patch` is the side of a square that becomes a token of the vision tower."""

    def __init__(self, folder: Path, *, patch: int, square: int | None = None) -> None:
        """`square` is the side of all images, where the file does not say otherwise; None: sizes follow the image."""
        path = folder / "preprocessor_config.json"
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        size = said.get("size") or {}
        self.patch = patch
        self._square = (int(size.get("height", square)), int(size.get("width", square))) if square else None
        low = int(said.get("min_pixels") or size.get("shortest_edge") or STOCK_PIXELS[0])
        high = int(said.get("max_pixels") or size.get("longest_edge") or STOCK_PIXELS[1])
        self._bounds = EMBEDDING_PIXELS if (low, high) == STOCK_PIXELS else (low, high)
        self._resample = Image.Resampling(int(said.get("resample", Image.Resampling.BICUBIC)))
        self._scale = float(said.get("rescale_factor", 1 / 255))
        self._mean = tuple(said.get("image_mean") or HALF)
        self._std = tuple(said.get("image_std") or HALF)

    def picture(self, file: bytes, param: str) -> Picture:
        """Decode and resize a file. Raises `JobError` that names `param`."""
        image = decode(file, param)
        height, width = self._square or _fitted(image.height, image.width, 2 * self.patch, self._bounds, param)
        pixels = np.asarray(image.resize((width, height), self._resample))
        return Picture(pixels, (height // self.patch) * (width // self.patch))

    def floats(self, picture: Picture) -> mx.array:
        """What the model was trained on: (height, width, 3), float32, centred."""
        scaled = mx.array(picture.pixels).astype(mx.float32) * self._scale
        return (scaled - mx.array(self._mean)) / mx.array(self._std)


def _fitted(height: int, width: int, step: int, bounds: tuple[int, int], param: str) -> tuple[int, int]:
    """Multiples of `step` near the image's own size and shape, with a number of pixels within `bounds`.

    The rule is Qwen2-VL's `smart_resize`.
    """
    least, most = bounds
    if max(height, width) > MOST_ELONGATED * min(height, width):
        message = f"The image is {width} x {height}; this model takes none that is more than {MOST_ELONGATED} times as"
        raise JobError(Code.INVALID_REQUEST, f"{message} long as wide.", param)
    found = round(height / step) * step, round(width / step) * step
    if found[0] * found[1] > most:
        shrink = math.sqrt(height * width / most)
        return tuple(max(step, math.floor(side / shrink / step) * step) for side in (height, width))  # type: ignore[return-value]
    if found[0] * found[1] < least:
        grow = math.sqrt(least / (height * width))
        return tuple(math.ceil(side * grow / step) * step for side in (height, width))  # type: ignore[return-value]
    return found
