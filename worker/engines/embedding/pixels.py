"""From image files to what a model computes on: sizes by its `preprocessor_config.json`, resized by Pillow.

Files are read and resized in processes of their own (`worker.decoding`); an image waits for its turn as bytes, not as
floats.
"""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlx.core as mx
from PIL import Image

from worker.decoding.decoders import Decoders
from worker.decoding.fitting import Fit
from worker.engines.embedding.queue import QueuedImage

HALF = (0.5, 0.5, 0.5)
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
        sides = (int(size.get("height", square)), int(size.get("width", square))) if square else None
        low = int(said.get("min_pixels") or size.get("shortest_edge") or STOCK_PIXELS[0])
        high = int(said.get("max_pixels") or size.get("longest_edge") or STOCK_PIXELS[1])
        least, most = EMBEDDING_PIXELS if (low, high) == STOCK_PIXELS else (low, high)
        resample = Image.Resampling(int(said.get("resample", Image.Resampling.BICUBIC)))
        self._fit = Fit(int(resample), sides, 2 * patch, least, most)
        self._decoders = Decoders()
        self._scale = float(said.get("rescale_factor", 1 / 255))
        self._mean = tuple(said.get("image_mean") or HALF)
        self._std = tuple(said.get("image_std") or HALF)

    def decode_image(self, tenant: str, file: bytes, param: str) -> Future[QueuedImage]:
        """Decode and resize a file; what becomes of it is a `QueuedImage`, or a `JobError` that names `param`."""
        return self._decoders.submit_image(tenant, file, param, self._counted, fit=self._fit)

    def _counted(self, pixels: Any) -> QueuedImage:
        height, width = pixels.shape[:2]
        return QueuedImage(pixels, (height // self.patch) * (width // self.patch))

    def normalise_pixels(self, image: QueuedImage) -> mx.array:
        """Return what the model was trained on: (height, width, 3), float32, centred."""
        scaled = mx.array(image.pixels).astype(mx.float32) * self._scale
        return (scaled - mx.array(self._mean)) / mx.array(self._std)
