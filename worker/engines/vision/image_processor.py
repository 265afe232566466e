"""From an image file to what a prompt and a model take of it: placeholder text, a grid, pixels.

Files are decoded in processes of their own (`worker.decoding`). Each image is processed by itself, so that one that was
seen before costs nothing, whatever stands beside it. The family's own processor does it, with the family's own tokens;
MLX arrays that it makes are turned into NumPy's at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any
from weakref import WeakSet

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from protocol.errors import Code, JobError
from protocol.messages import Image
from worker.batch.images import Pixels
from worker.decoding.decoders import Decoders

PIXELS_BYTES = 512_000_000
"""What may wait for the device. Images beyond it are processed again when their turn has come, at its expense."""
REMEMBERED = 4096
"""Images whose size in tokens is remembered: some hundred bytes each."""


class ProcessedImage(msgspec.Struct, frozen=True):
    """One image as text: what stands for it in a prompt, with `tokens` image tokens. `grid` as in `Placeholder`."""

    text: str
    tokens: int
    grid: NDArray[Any] | None


class ImageTask(msgspec.Struct, frozen=True):
    """One image of one job, ready to be put into its prompt."""

    key: tuple[str, bytes]
    processed: ProcessedImage
    pixels: Pixels | None
    make_pixels: Callable[[], Pixels]


class ImageProcessor:
    """Processes images for one model. `plan_image` is for one thread; `ImageTask.make_pixels` may be called by any."""

    def __init__(
        self, processor: Any, *, mark: str, image_token: int, is_encoded: Callable[[tuple[str, bytes]], bool]
    ) -> None:
        """`mark` stands for an image in a rendered prompt; `is_encoded` tells whether the model still knows one."""
        self._processor = processor
        self._mark = mark
        self._image_token = image_token
        self._is_encoded = is_encoded
        self._processed: OrderedDict[tuple[str, bytes], ProcessedImage] = OrderedDict()
        self._waiting: WeakSet[Pixels] = WeakSet()
        self._decoders = Decoders()
        self._one_at_a_time = threading.Lock()

    def plan_image(
        self, image: Image, buffers: Sequence[bytes], *, tenant: str, param: str
    ) -> Generator[Future[Any], None, ImageTask]:
        """Take an image of a job; yields what there is to wait for. Raises `JobError`, naming `param` (`images[2]`)."""
        if not 0 <= image.buffer < len(buffers):
            raise JobError(Code.INVALID_REQUEST, "The file of an image did not come with its request.", param)
        file, low = buffers[image.buffer], image.detail == "low"
        key = (tenant, image.digest + (b"low" if low else b""))

        def make_pixels() -> Pixels:
            return self._process(self._decoders.decode_image(file, param, low=low), param)[1]

        known = self._processed.get(key)
        if known is not None and self._is_encoded(key):
            self._processed.move_to_end(key)
            return ImageTask(key, known, None, make_pixels)

        def process(shown: NDArray[np.uint8]) -> tuple[ProcessedImage, Pixels]:
            # A processor holds a large image several times over.
            with self._one_at_a_time:
                return self._process(shown, param)

        pending = self._decoders.submit_image(tenant, file, param, process, low=low)
        yield pending
        found, pixels = pending.result()
        self._processed[key] = found
        if len(self._processed) > REMEMBERED:
            self._processed.popitem(last=False)
        return ImageTask(key, found, self._kept(pixels), make_pixels)

    def _kept(self, pixels: Pixels) -> Pixels | None:
        if pixels.nbytes + sum(other.nbytes for other in self._waiting) > PIXELS_BYTES:
            return None
        self._waiting.add(pixels)
        return pixels

    def _process(self, shown: NDArray[np.uint8], param: str) -> tuple[ProcessedImage, Pixels]:
        image = PILImage.fromarray(shown)
        try:
            made = self._processor(text=[self._mark], images=[image], add_special_tokens=False)
        except ValueError as error:
            # Qwen's refuses what is 200 times as wide as high.
            raise JobError(Code.INVALID_REQUEST, f"The image can't be shown to this model: {error}", param) from None
        arrays = {name: np.array(value) for name, value in made.items() if value is not None}
        ids = arrays.pop("input_ids")[0].tolist()
        arrays.pop("attention_mask", None)
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return ProcessedImage(text, ids.count(self._image_token), arrays.get("image_grid_thw")), Pixels(arrays)
