"""Shelves in temporary folders, and caches without a model: arrays of numbers that say what they stand for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worker.disk_cache.cache import DiskPrefixCache
from worker.disk_cache.entry import CacheEntry, Contents, Lookup
from worker.disk_cache.folder import CacheFolder
from worker.disk_cache.tensors import Tensor

PATIENCE_S = 20.0


def parcel(tokens: Sequence[int], *, tenant: str = "t", rest: bool = False) -> CacheEntry:
    """A cache whose strip holds the tokens themselves; with room behind them, as real ones have."""
    array = np.asarray(tokens, dtype=np.int64)
    data = np.zeros((1, 2, len(array) + 9, 4), dtype=np.uint32)
    data[..., : len(array), :] = array[None, None, :, None]
    more = {"1.0": Tensor("F32", np.asarray([len(array)], dtype=np.uint32))} if rest else {}
    return CacheEntry(tenant, array, Contents({"0.keys": Tensor("F32", data)}, more, "[]" if rest else ""))


class Rig:
    """One process's view of a folder."""

    def __init__(self, path: Path, *, model: str = "m", max_bytes: int = 1 << 30, rest: bool = False) -> None:
        self.path = path
        self.shelf = DiskPrefixCache(CacheFolder(path, max_bytes), model=model, strips=True, rest=rest)

    def put(self, *parcels: CacheEntry) -> None:
        for one in parcels:
            self.shelf.write_entry(one)
            assert self.shelf.flush(PATIENCE_S)

    def fetch(self, tokens: Sequence[int], *, tenant: str = "t", beyond: int = 0) -> Lookup:
        fetch = self.shelf.lookup_prefix(tenant, np.asarray(tokens, dtype=np.int64), beyond=beyond)
        assert fetch is not None
        self.shelf.wait_for_lookups([fetch], PATIENCE_S)
        assert fetch.done
        return fetch

    def covered(self, tokens: Sequence[int], *, tenant: str = "t") -> int:
        """How many tokens are found; what is found has to be theirs."""
        fetch = self.fetch(tokens, tenant=tenant)
        if fetch.found is None:
            return 0
        bits = fetch.found.strips["0.keys"].bits
        assert bits.shape == (1, 2, fetch.length, 4)
        assert (bits == np.asarray(tokens[: fetch.length])[None, None, :, None]).all()
        return fetch.length

    def files(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime)
