"""The encoder cache: what the model made of images, bounded in bytes, least recently used out first.

Keys begin with the tenant: even of the same image, who has shown it before is nobody else's to find out by timing.
"""

from collections import OrderedDict

from worker.batch.images import Features


class EncoderCache:
    """Features by image. Written by one thread; `__contains__` may be asked by any."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, bytes], Features] = OrderedDict()
        self.held_bytes = 0
        self.lookups = 0
        self.hits = 0

    def __contains__(self, key: tuple[str, bytes]) -> bool:
        return key in self._entries

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.held_bytes = 0

    def find_features(self, key: tuple[str, bytes]) -> Features | None:
        """Return what is known of an image."""
        self.lookups += 1
        found = self._entries.get(key)
        if found is not None:
            self.hits += 1
            self._entries.move_to_end(key)
        return found

    def store_features(self, key: tuple[str, bytes], features: Features) -> None:
        """Keep features; they must not be written to."""
        size_bytes = features.nbytes
        if size_bytes > self._max_bytes or key in self._entries:
            return
        self._entries[key] = features
        self.held_bytes += size_bytes
        while self.held_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.held_bytes -= oldest.nbytes
