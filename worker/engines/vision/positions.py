"""Where each row stands, as one more layer of its cache, for models whose positions are not a count of tokens.

An image takes fewer positions than tokens (M-RoPE), so what follows it is moved by as much for the rest of the row.
Being a layer, a row's position joins, leaves, is copied and kept with the rest of its cache.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


class Positions:
    """The next position of one row. Has what mlx-lm's caches have."""

    def __init__(self, following: int = 0) -> None:
        self._following = following

    def next_positions(self, count: int) -> mx.array:
        """Return the next `count` positions, shape `[1, count]`; the row is past them then."""
        first = self._following
        self._following += count
        return mx.arange(first, first + count)[None]

    def set_positions(self, following: Sequence[int]) -> None:
        """Say where the row stands."""
        (self._following,) = following

    @classmethod
    def merge(cls, rows: Sequence["Positions"]) -> "BatchPositions":
        """One layer for several rows."""
        return BatchPositions(mx.array([row._following for row in rows]))

    def is_trimmable(self) -> bool:
        """Return True; a prefix of another row is placed anew anyway."""
        return True

    def trim(self, count: int) -> int:
        """Forget the last `count` tokens, taken for text."""
        self._following -= count
        return count

    @property
    def state(self) -> list[mx.array]:
        """Nothing that would have to be computed."""
        return []

    @property
    def nbytes(self) -> int:
        """As good as nothing."""
        return 0


class BatchPositions:
    """The next positions of several rows, shape `[rows]`. Has what mlx-lm's batched caches have."""

    def __init__(self, following: mx.array) -> None:
        self._following = following
        self._padding: Sequence[int] = ()

    def next_positions(self, count: int) -> mx.array:
        """Return the next `count` positions of each row, shape `[rows, count]`; the rows are past them then."""
        taken = self._following[:, None] + mx.arange(count)[None]
        self._following = self._following + count
        return taken

    def set_positions(self, following: Sequence[int]) -> None:
        """Say where each row stands."""
        self._following = mx.array(following)

    def prepare(self, *, right_padding: Sequence[int], **_lengths: Any) -> None:
        """Note by how many the next tokens are padded on the right, row by row."""
        self._padding = right_padding

    def finalize(self) -> None:
        """Take back the padding, which does not count."""
        self._following = self._following - mx.array(self._padding)
        self._padding = ()

    def filter(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        self._following = self._following[mx.array(rows)]

    def extend(self, other: "BatchPositions") -> None:
        """Append the rows of another."""
        self._following = mx.concatenate([self._following, other._following])

    def extract(self, row: int) -> Positions:
        """One row's own layer; waits for it to be known."""
        return Positions(int(self._following[row].item()))

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate."""
        return [self._following]

    @property
    def nbytes(self) -> int:
        """As good as nothing."""
        return 0
