"""What a prompt shows besides text: its pictures, where they stand, what they are known by. Plain data, no model.

The tokens of all pictures look alike; so wherever prompts are compared, a picture's tokens have a number of its own.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Features(msgspec.Struct, frozen=True):
    """What a model makes of a picture: `rows` `[tokens, width]` in place of embeddings, and further ones of the same
    shape that are added after the first layers (Qwen3-VL's deepstack).
    """

    rows: Any
    deep: Sequence[Any] = ()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.rows.nbytes + sum(layer.nbytes for layer in self.deep))


class Pixels(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """A picture as the model's own processor cut it up: arrays by the name that the model has for them.

    Can be eight times as large as the picture itself.
    """

    arrays: dict[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays.values())


class Placeholder:
    """One picture of a prompt.

    `key` is what caches know it by, tenant and processing included; `places` are the tokens of the prompt that stand
    for it, `span` the ids from the first to the last of them. `grid` is its size in patches, where the model asks.
    `develop` makes the pixels (anew); it may be called on any thread.
    """

    __slots__ = ("develop", "features", "grid", "key", "pixels", "places", "span")

    def __init__(
        self,
        *,
        key: tuple[str, bytes],
        places: NDArray[np.int64],
        span: list[int],
        grid: Any,
        develop: Any,
        pixels: Any,
    ) -> None:
        self.key = key
        self.places = places
        self.span = span
        self.grid = grid
        self.develop = develop
        self.pixels: Pixels | None = pixels
        self.features: Features | None = None


class PromptImages:
    """The pictures of one prompt. `positions` `[3, n]` are those of its first n tokens (none where the model counts
    tokens); every later token stands `shift` further than its index.
    """

    __slots__ = ("_readers", "pictures", "positions", "shift")

    def __init__(self, pictures: list[Placeholder]) -> None:
        self.pictures = pictures
        self.positions: NDArray[np.int64] = np.zeros((3, 0), dtype=np.int64)
        self.shift = 0
        self._readers = 0

    def keyed_tokens(self, tokens: list[int]) -> list[int]:
        """The same tokens, with a number for those of each picture that no other picture and no token has."""
        keyed = list(tokens)
        for picture in self.pictures:
            number = -1 - (int.from_bytes(picture.key[1][:8], "big") >> 2)
            for place in picture.places.tolist():
                keyed[place] = number
        return keyed

    def next_unencoded(self, covered: int) -> Placeholder | None:
        """The first picture that the model has still to look at, where the first `covered` tokens are computed."""
        for picture in self.pictures:
            if picture.features is None and picture.places[-1] >= covered:
                return picture
        return None

    def positions_of(self, start: int, count: int) -> NDArray[np.int64]:
        """Positions of `count` tokens from index `start`, shape `[3, count]`."""
        known = self.positions[:, start : start + count]
        rest = np.arange(start + known.shape[1], start + count) + self.shift
        return np.concatenate([known, np.broadcast_to(rest, (3, len(rest)))], axis=1)

    def add_reader(self) -> None:
        """A prompt will read this."""
        self._readers += 1

    def remove_reader(self) -> None:
        """A prompt has read this, or never will. With the last one, everything large is let go."""
        self._readers -= 1
        if self._readers == 0:
            for picture in self.pictures:
                picture.features = picture.pixels = picture.develop = None


class PromptPart(msgspec.Struct, frozen=True):
    """Tokens of one row to be computed, from index `start` of it."""

    tokens: list[int]
    start: int
    scene: PromptImages | None = None
