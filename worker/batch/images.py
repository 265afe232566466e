"""The images of a prompt: where they stand in it, what they are known by. Plain data, no model.

The tokens of all images look alike. So wherever prompts are compared, the tokens of each image have a number of their
own.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Features(msgspec.Struct, frozen=True):
    """What a model makes of an image.

    `rows` `[tokens, width]` stand in place of embeddings. `deep` are further ones of the same shape, added after the
    first layers (Qwen3-VL's deepstack).
    """

    rows: Any
    deep: Sequence[Any] = ()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.rows.nbytes + sum(layer.nbytes for layer in self.deep))


class Pixels(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """An image as the model's own processor cut it up: arrays by the name that the model has for them.

    Can be eight times as large as the image itself.
    """

    arrays: dict[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays.values())


class Placeholder:
    """One image of a prompt.

    `key` is what caches know it by, tenant and processing included; `places` are the tokens of the prompt that stand
    for it, `span` the ids from the first to the last of them. `grid` is its size in patches, where the model asks.
    `make_pixels` may be called on any thread, and again.
    """

    __slots__ = ("features", "grid", "key", "make_pixels", "pixels", "places", "span")

    def __init__(
        self,
        *,
        key: tuple[str, bytes],
        places: NDArray[np.int64],
        span: list[int],
        grid: Any,
        make_pixels: Any,
        pixels: Any,
    ) -> None:
        self.key = key
        self.places = places
        self.span = span
        self.grid = grid
        self.make_pixels = make_pixels
        self.pixels: Pixels | None = pixels
        self.features: Features | None = None


class PromptImages:
    """The images of one prompt.

    `positions` `[3, n]` are those of its first n tokens (none where the model counts tokens). Every later token stands
    `shift` further than its index.
    """

    __slots__ = ("_readers", "placeholders", "positions", "shift")

    def __init__(self, placeholders: list[Placeholder]) -> None:
        self.placeholders = placeholders
        self.positions: NDArray[np.int64] = np.zeros((3, 0), dtype=np.int64)
        self.shift = 0
        self._readers = 0

    def keyed_tokens(self, tokens: list[int]) -> list[int]:
        """Return the same tokens, with a number for those of each image that no other image and no token has."""
        keyed = list(tokens)
        for placeholder in self.placeholders:
            number = -1 - (int.from_bytes(placeholder.key[1][:8], "big") >> 2)
            for place in placeholder.places.tolist():
                keyed[place] = number
        return keyed

    def next_unencoded(self, covered: int) -> Placeholder | None:
        """Return the first image that is still to be encoded, where the first `covered` tokens are computed."""
        for placeholder in self.placeholders:
            if placeholder.features is None and placeholder.places[-1] >= covered:
                return placeholder
        return None

    def positions_of(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the positions of `count` tokens from index `start`, shape `[3, count]`."""
        known = self.positions[:, start : start + count]
        rest = np.arange(start + known.shape[1], start + count) + self.shift
        return np.concatenate([known, np.broadcast_to(rest, (3, len(rest)))], axis=1)

    def add_reader(self) -> None:
        """Count a prompt that will read this."""
        self._readers += 1

    def remove_reader(self) -> None:
        """Let a prompt go that has read this, or never will; with the last one, let everything large go."""
        self._readers -= 1
        if self._readers == 0:
            for placeholder in self.placeholders:
                placeholder.features = placeholder.pixels = placeholder.make_pixels = None


class PromptPart(msgspec.Struct, frozen=True):
    """Tokens of one row to be computed, from index `start` of it."""

    tokens: list[int]
    start: int
    images: PromptImages | None = None
