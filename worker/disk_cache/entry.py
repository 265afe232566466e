"""What goes onto the shelf and what comes back: a model's cache as plain arrays. Plain data.

A *strip* has one entry per token along its last axis but one, and can be cut anywhere; the *rest* stands for exactly
all tokens (a recurrent state, a window that has rotated).
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.disk_cache.tensors import Tensor

Tokens = NDArray[np.int64]


class Contents(msgspec.Struct, frozen=True, eq=False):
    """A cache taken apart. `strips` may be longer than the tokens they are for; `shape` says how the rest belongs
    together. `owner` keeps alive, and unchanged, the memory that the arrays look into.
    """

    strips: dict[str, Tensor]
    rest: dict[str, Tensor]
    shape: str = ""
    owner: Any = None


class CacheEntry(msgspec.Struct, frozen=True, eq=False):
    """A cache that covers exactly `tokens`."""

    tenant: str
    tokens: Tokens
    contents: Contents

    @property
    def nbytes(self) -> int:
        """Bytes to write, about."""
        strips = sum(tensor.bits.nbytes for tensor in self.contents.strips.values())
        return strips + sum(tensor.bits.nbytes for tensor in self.contents.rest.values())


class Lookup:
    """A prompt looked up on the shelf. Whoever asked reads `done` and then `found`, and may `drop` it before.

    What covers `beyond` tokens or a little more is not worth reading; it may be raised while nothing is found yet.
    """

    __slots__ = ("asked_at", "beyond", "done", "dropped", "found", "length", "tenant", "tokens")

    def __init__(self, tenant: str, tokens: Tokens, beyond: int, asked_at: float) -> None:
        self.tenant = tenant
        self.tokens = tokens
        self.beyond = beyond
        self.asked_at = asked_at
        self.found: Contents | None = None
        self.length = 0
        self.done = False
        self.dropped = False

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.dropped = True
