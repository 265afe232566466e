"""The vector cache: ready-to-send vectors by tenant, model, text and options. Least recently used go first; bounded.

Nothing here waits or copies a vector; a hit costs two look-ups.
"""

import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CacheKey = str | tuple[int, ...] | bytes
"""One input: a text, token ids, or the digest of an image (and of the text that goes with it)."""
Vector = tuple[bytes, int]
"""Base64 of little-endian float32, and the tokens that the input had."""

LONG_CHARS = 256
"""Longer inputs are known by their digest, so that the cache does not fill with texts."""
ENTRY_BYTES = 320
"""What an entry costs besides its vector and its text: objects, table slots."""


@dataclass(kw_only=True, slots=True)
class CacheCounts:
    """Counts since the start."""

    hits: int = 0
    misses: int = 0
    evicted: int = 0
    expired: int = 0


class EmbeddingCache:
    """All cached vectors. A capacity of 0 keeps none."""

    def __init__(
        self, *, capacity_bytes: int, capacity_entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = CacheCounts()
        self.used_bytes = 0
        self.capacity_bytes = capacity_bytes
        self._capacity_entries = capacity_entries
        self.ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[tuple[bytes, CacheKey | bytes], tuple[bytes, int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def namespace_of(*parts: object) -> bytes:
        """Return the namespace of look-ups; `parts` name the tenant, the model, its revision, and the options."""
        return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def find_vectors(self, space: bytes, keys: Sequence[CacheKey]) -> list[Vector | None]:
        """Return the known vector of each key, in order, else None. The hot path."""
        entries, now = self._entries, self._clock()
        get, touch = entries.get, entries.move_to_end
        found: list[Vector | None] = []
        for key in keys:
            place = (space, key if len(key) <= LONG_CHARS else _digest(key))
            entry = get(place)
            if entry is None:
                found.append(None)
            elif entry[2] < now:
                self._drop(place)
                self.counts.expired += 1
                found.append(None)
            else:
                touch(place)
                found.append(entry[:2])
        misses = found.count(None)
        self.counts.misses += misses
        self.counts.hits += len(found) - misses
        return found

    def store_vector(self, space: bytes, key: CacheKey, vector: Vector) -> None:
        """Remember a vector, at the price of those that were not asked for the longest."""
        place = (space, key if len(key) <= LONG_CHARS else _digest(key))
        size = _size(place, vector[0])
        if size > self.capacity_bytes or not self._capacity_entries:
            return
        if place in self._entries:
            self._drop(place)
        while self.used_bytes + size > self.capacity_bytes or len(self._entries) >= self._capacity_entries:
            self._drop(next(iter(self._entries)))
            self.counts.evicted += 1
        self._entries[place] = (*vector, self._clock() + self.ttl_s)
        self.used_bytes += size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.used_bytes = 0

    def _drop(self, place: tuple[bytes, CacheKey | bytes]) -> None:
        self.used_bytes -= _size(place, self._entries.pop(place)[0])


def _digest(key: CacheKey) -> bytes:
    # Shorter than the digests that are keys themselves: the two can't meet.
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else array("q", key).tobytes()
    return hashlib.blake2b(data, digest_size=24, person=b"text" if isinstance(key, str) else b"ids").digest()


def _size(place: tuple[bytes, CacheKey | bytes], data: bytes) -> int:
    # Four bytes a letter: what Python may need for it.
    return ENTRY_BYTES + len(data) + len(place[1]) * (1 if isinstance(place[1], bytes) else 4)
