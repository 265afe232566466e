"""What is known of prompts already: in memory, else on disk; and what is kept of those that were computed."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from worker.batch import caches
from worker.batch.caches import Cache
from worker.batch.prefix import PrefixCache
from worker.batch.prompt import Prompt
from worker.batch.serialization import Assembly, serialize_cache
from worker.device_errors import is_device_error
from worker.disk_cache.cache import MIN_TOKENS, DiskPrefixCache
from worker.disk_cache.entry import CacheEntry

log = logging.getLogger("worker")

ASSEMBLY_S = 0.003
"""How long rows that decode may wait for a prefix that comes from disk, in each step."""
WAIT_S = 0.005


class PrefixStore:
    """For the engine's thread, but for its counters."""

    def __init__(
        self,
        model: Any,
        prefix: PrefixCache,
        disk: DiskPrefixCache | None = None,
        *,
        bits: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`bits` of what is kept, where those are fewer than the model computes in; 0: as it is."""
        self._model = model
        self._bits = bits
        self.memory = prefix
        self.disk = disk
        self._clock = clock
        self._assembly: tuple[Prompt, Assembly] | None = None
        self._new: list[tuple[str, list[int], Cache]] = []
        self._settled: list[tuple[str, list[int], Cache]] = []
        self.lookups = 0
        self.hits = 0
        self.disk_hits = 0

    @property
    def held_bytes(self) -> int:
        """Memory held."""
        return self.memory.held_bytes

    @property
    def disk_bytes(self) -> int:
        """Room taken on disk, in the whole folder."""
        return self.disk.used_bytes if self.disk else 0

    def forget_all(self) -> None:
        """Drop all that is known, in memory and on disk."""
        self.memory.clear()
        self._new, self._settled = [], []
        if self.disk is not None:
            self.disk.clear()

    def close(self, timeout_s: float) -> None:
        """Wait until all is written, if that takes no longer."""
        if self.disk is not None:
            self.disk.flush(timeout_s)

    def lookup_prompt(self, prompt: Prompt) -> None:
        """Look a new prompt up. Where more may be on disk, it has a `lookup` then."""
        if prompt.scores:
            return
        row = prompt.rows[0]
        self.lookups += 1
        self._refresh(prompt)
        if self.disk is not None:
            key = np.asarray(row.key[:-1], dtype=np.int64)
            prompt.lookup = self.disk.lookup_prefix(row.tenant, key, beyond=prompt.covered)
        if prompt.lookup is None and prompt.cached:
            self.hits += 1

    def refresh_prompt(self, prompt: Prompt) -> None:
        """Look once more in memory for a prompt whose turn it is: others may have been computed meanwhile."""
        known = prompt.cached
        if not prompt.scores:
            self._refresh(prompt)
        if prompt.cached and not known:
            self.hits += 1

    def _refresh(self, prompt: Prompt) -> None:
        row = prompt.rows[0]
        cache, covered = self.memory.find_nearest(row.tenant, row.key)
        if cache is not None and covered > prompt.covered:
            prompt.resume_from(caches.unpack(cache), covered)

    # -- from disk -------------------------------------------------------------

    def restore_prefixes(self, prompts: Iterable[Prompt], *, running: bool) -> bool:
        """Go on with what comes from disk, for some milliseconds beside running rows. Whether there was any."""
        if self.disk is None:
            return False
        deadline = self._clock() + (ASSEMBLY_S if running else ASSEMBLY_S * 10)
        waiting = [prompt for prompt in prompts if prompt.lookup is not None]
        worked = False
        while self._assembly is not None or self._next(waiting):
            worked = True
            if self._assemble(self._assembly):
                self._share(waiting)
            if self._clock() >= deadline:
                break
        return worked

    def forget_prompt(self, prompt: Prompt) -> None:
        """Forget a prompt that is given up."""
        if self._assembly is not None and self._assembly[0] is prompt:
            self._assembly = None

    def wait_for_disk(self, prompts: Iterable[Prompt]) -> None:
        """Nothing else is to be done: sleep until the disk has something, for a moment at most."""
        lookups = [prompt.lookup for prompt in prompts if prompt.lookup is not None]
        if lookups and self.disk is not None:
            self.disk.wait_for_lookups(lookups, WAIT_S)

    def _next(self, waiting: list[Prompt]) -> bool:
        """Begin to put together what has come; whether there is such a thing."""
        for prompt in waiting:
            lookup = prompt.lookup
            if lookup is None or not (lookup.done or (self.disk is not None and self.disk.is_stuck(lookup))):
                continue
            # The same may have come for another prompt before.
            self._refresh(prompt)
            if lookup.found is not None and lookup.length > prompt.covered:
                self._assembly = (prompt, Assembly(self._model, lookup.found, lookup.length, bits=self._bits))
                lookup.found = None
                return True
            self._resolve(prompt)
        return False

    def _assemble(self, at_work: tuple[Prompt, Assembly] | None) -> bool:
        """One layer more; whether that made a prefix whole."""
        if at_work is None:
            return False
        prompt, assembly = at_work
        try:
            if not assembly.copy_layer():
                return False
        except Exception as error:
            if is_device_error(error):
                raise
            # No cache of any row has been touched: the prompt is computed instead.
            log.exception("a prefix on disk could not be used")
            self._assembly = None
            self._resolve(prompt)
            return False
        self._assembly = None
        row = prompt.rows[0]
        self.memory.store_prefix(row.tenant, row.key[: assembly.length], caches.duplicate(assembly.cache))
        prompt.resume_from(caches.unpack(assembly.cache), assembly.length)
        self._resolve(prompt, from_disk=True)
        return True

    def _resolve(self, prompt: Prompt, *, from_disk: bool = False) -> None:
        if prompt.lookup is not None:
            prompt.lookup.drop()
            prompt.lookup = None
        if from_disk:
            self.disk_hits += 1
        elif prompt.cached:
            self.hits += 1

    def _share(self, waiting: list[Prompt]) -> None:
        """Give what has just come to those that wait for it."""
        for prompt in waiting:
            if prompt.lookup is not None and not prompt.lookup.done:
                self._refresh(prompt)
                prompt.lookup.beyond = prompt.covered

    # -- keeping ---------------------------------------------------------------

    def store_prefix(self, tenant: str, tokens: list[int], cache: Cache) -> None:
        """Keep a cache that covers exactly `tokens`; it must not be written to afterwards."""
        if self._bits:
            cache = caches.pack(cache, self._bits)
            mx.async_eval(caches.state(cache))
        self.memory.store_prefix(tenant, tokens, cache)
        if self.disk is not None and len(tokens) >= MIN_TOKENS:
            self._new.append((tenant, tokens, cache))

    def flush_new(self, *, idle: bool) -> None:
        """Between steps: hand what was kept to the disk's thread, once it is certain to be computed.

        What was kept in the step before has been, so nothing waits for it here; nor does anybody while it is idle.
        """
        if self.disk is None or not (self._new or self._settled):
            return
        ready, self._settled, self._new = self._settled, self._new, []
        if idle:
            ready, self._settled = ready + self._settled, []
        for tenant, tokens, cache in ready:
            self.disk.write_entry(CacheEntry(tenant, np.asarray(tokens, dtype=np.int64), serialize_cache(cache)))
