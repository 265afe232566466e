"""What goes to disk and what comes back: a model's cache as plain arrays. Plain data.

Tensors *per token* have one entry per token along their last axis but one, and can be cut anywhere. *Whole* ones stand
for exactly all tokens (a recurrent state, a window that has rotated).
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.disk_cache.tensors import Tensor

Tokens = NDArray[np.int64]


class Contents(msgspec.Struct, frozen=True, eq=False):
    """A cache as plain arrays.

    Those `per_token` may be longer than the tokens they are for. `shape` says how the `whole` ones belong together.
    `owner` keeps alive, and unchanged, the memory that the arrays look into.
    """

    per_token: dict[str, Tensor]
    whole: dict[str, Tensor]
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
        per_token = sum(tensor.bits.nbytes for tensor in self.contents.per_token.values())
        return per_token + sum(tensor.bits.nbytes for tensor in self.contents.whole.values())


class Lookup:
    """A prompt that is looked up on disk. Whoever asked reads `done` and then `found`, and may `drop` it before.

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
        """Say that nobody wants it any more."""
        self.dropped = True
