"""What size an image is resized to before a model sees it. Pure."""

import math

import msgspec

from protocol.errors import Code, JobError

MOST_ELONGATED = 200
"""Qwen's models take no image that is this many times as wide as high."""


class Fit(msgspec.Struct, frozen=True, array_like=True):
    """One model's sizes: `square` (height, width) for all images; else multiples of `step`, within bounds of pixels.

    `resample` is one of Pillow's filters, by number.
    """

    resample: int
    square: tuple[int, int] | None
    step: int
    least_pixels: int
    most_pixels: int

    def size(self, height: int, width: int, param: str) -> tuple[int, int]:
        """Height and width that an image is to have. Raises `JobError` that names `param`."""
        return self.square or self._near(height, width, param)

    def _near(self, height: int, width: int, param: str) -> tuple[int, int]:
        """Near the image's own size and shape. The rule is Qwen2-VL's `smart_resize`."""
        step = self.step
        if max(height, width) > MOST_ELONGATED * min(height, width):
            message = f"The image is {width} x {height}; this model takes none that is more than {MOST_ELONGATED} times"
            raise JobError(Code.INVALID_REQUEST, f"{message} as long as wide.", param)
        found = round(height / step) * step, round(width / step) * step
        if found[0] * found[1] > self.most_pixels:
            shrink = math.sqrt(height * width / self.most_pixels)
            return tuple(max(step, math.floor(side / shrink / step) * step) for side in (height, width))  # type: ignore[return-value]
        if found[0] * found[1] < self.least_pixels:
            grow = math.sqrt(self.least_pixels / (height * width))
            return tuple(math.ceil(side * grow / step) * step for side in (height, width))  # type: ignore[return-value]
        return found
