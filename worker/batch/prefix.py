"""The prefix cache: key-value caches of earlier prompts, by tenant, bounded in bytes, least recently used out first.

Tenants never see each other's entries, not even by their timing; and where room is short, who holds most gives first.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.batch import caches
from worker.batch.caches import Cache
from worker.disk_cache.eviction import TenantShare, select_for_eviction

SHORTEST = 16
"""Prefixes of fewer tokens cost more to look after than to compute."""
STALE_S = 600.0
"""What was not used for so long goes before anything else, whosever it is."""


class _Entry(msgspec.Struct):
    tokens: NDArray[np.int64]
    cache: Cache
    size_bytes: int
    used_at: float


class PrefixCache:
    """Nearest-prefix look-up over the caches of finished and running prompts."""

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._tenants: dict[str, dict[int, _Entry]] = {}
        self._order: OrderedDict[int, str] = OrderedDict()
        self._next = 0
        self.held_bytes = 0

    def find_nearest(self, tenant: str, tokens: Sequence[int]) -> tuple[Cache | None, int]:
        """Return the cache that covers the longest prefix of `tokens`, short of the last one, and how much it covers.

        The cache is the caller's own.
        """
        wanted = np.asarray(tokens[:-1], dtype=np.int64)
        best, best_length = None, SHORTEST - 1
        for key, entry in self._tenants.get(tenant, {}).items():
            length = _common(entry.tokens, wanted)
            if length > best_length and (length == len(entry.tokens) or caches.trimmable(entry.cache)):
                best, best_length = key, length
        if best is None:
            return None, 0
        entry = self._tenants[tenant][best]
        cache = caches.duplicate(entry.cache)
        if not caches.trim(cache, best_length, len(entry.tokens)):
            return None, 0
        self._order.move_to_end(best)
        entry.used_at = self._clock()
        return cache, best_length

    def store_prefix(self, tenant: str, tokens: Sequence[int], cache: Cache) -> None:
        """Keep a cache that covers exactly `tokens`; it must not be written to afterwards."""
        size_bytes = caches.nbytes(cache)
        if len(tokens) < SHORTEST or size_bytes > self._max_bytes:
            return
        array = np.asarray(tokens, dtype=np.int64)
        entries = self._tenants.setdefault(tenant, {})
        trimmable = caches.trimmable(cache)
        for key, entry in list(entries.items()):
            length = _common(entry.tokens, array)
            if length == len(entry.tokens) and (trimmable or length == len(array)):
                # The new one can stand in for it.
                self._drop(key)
        # `_drop` removes a tenant with nothing left.
        self._tenants.setdefault(tenant, entries)[self._next] = _Entry(array, cache, size_bytes, self._clock())
        self._order[self._next] = tenant
        self._next += 1
        self.held_bytes += size_bytes
        if self.held_bytes > self._max_bytes:
            self._make_room()

    def _make_room(self) -> None:
        held = []
        for key, tenant in self._order.items():
            entry = self._tenants[tenant][key]
            held.append(TenantShare(key, tenant, entry.size_bytes, entry.used_at))
        stale_before = self._clock() - STALE_S
        for key in select_for_eviction(held, self.held_bytes - self._max_bytes, stale_before=stale_before):
            self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._tenants.clear()
        self._order.clear()
        self.held_bytes = 0

    def _drop(self, key: int) -> None:
        tenant = self._order.pop(key)
        entries = self._tenants[tenant]
        self.held_bytes -= entries.pop(key).size_bytes
        if not entries:
            del self._tenants[tenant]


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    size = min(len(a), len(b))
    if size == 0 or a[0] != b[0]:
        return 0
    differs = a[:size] != b[:size]
    first = int(differs.argmax())
    return first if differs[first] else size
