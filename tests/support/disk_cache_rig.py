"""Shelves in temporary folders, and caches without a model: arrays of numbers that say what they stand for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worker.disk_cache.cache import DiskPrefixCache
from worker.disk_cache.entry import CacheEntry, Contents, Lookup
from worker.disk_cache.folder import CacheFolder
from worker.disk_cache.tensors import Tensor

PATIENCE_S = 60.0


def entry(tokens: Sequence[int], *, tenant: str = "t", whole: bool = False) -> CacheEntry:
    """A cache whose tensor holds the tokens themselves; with room behind them, as real ones have."""
    array = np.asarray(tokens, dtype=np.int64)
    data = np.zeros((1, 2, len(array) + 9, 4), dtype=np.uint32)
    data[..., : len(array), :] = array[None, None, :, None]
    more = {"1.0": Tensor("F32", np.asarray([len(array)], dtype=np.uint32))} if whole else {}
    return CacheEntry(tenant, array, Contents({"0.keys": Tensor("F32", data)}, more, "[]" if whole else ""))


class Rig:
    """One process's view of a folder."""

    def __init__(self, path: Path, *, model: str = "m", max_bytes: int = 1 << 30, whole: bool = False) -> None:
        self.path = path
        self.disk_cache = DiskPrefixCache(CacheFolder(path, max_bytes), model=model, per_token=True, whole=whole)

    def put(self, *parcels: CacheEntry) -> None:
        for one in parcels:
            self.disk_cache.write_entry(one)
            assert self.disk_cache.flush(PATIENCE_S)

    def lookup(self, tokens: Sequence[int], *, tenant: str = "t", beyond: int = 0) -> Lookup:
        lookup = self.disk_cache.lookup_prefix(tenant, np.asarray(tokens, dtype=np.int64), beyond=beyond)
        assert lookup is not None
        self.disk_cache.wait_for_lookups([lookup], PATIENCE_S)
        assert lookup.done
        return lookup

    def covered(self, tokens: Sequence[int], *, tenant: str = "t") -> int:
        """How many tokens are found; what is found has to be theirs."""
        lookup = self.lookup(tokens, tenant=tenant)
        if lookup.found is None:
            return 0
        bits = lookup.found.per_token["0.keys"].bits
        assert bits.shape == (1, 2, lookup.length, 4)
        assert (bits == np.asarray(tokens[: lookup.length])[None, None, :, None]).all()
        return lookup.length

    def files(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime)
