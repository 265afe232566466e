"""The shelf: prefixes on disk, read and written by a thread of its own, so that no step ever waits for a disk.

Whatever a disk does, a prompt is at worst computed: reading that stands still is given up, and writing that fails is
switched off for a while.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from worker.disk_cache.block_names import BLOCK, BlockHashes, BlockNames
from worker.disk_cache.entry import CacheEntry, Contents, Lookup, Tokens
from worker.disk_cache.folder import CacheFolder
from worker.disk_cache.tensors import Tensor

log = logging.getLogger("worker")

WORTH = 2 * BLOCK
"""Tokens. Fewer are computed as fast as they are read."""
BACKLOG_BYTES = 1 << 30
"""What may wait to be written. A disk that falls behind gets only part of what there is: the oldest is left out."""
PATIENCE_S = 2.0
"""A disk that gives nothing for so long is not waited for."""
STEP_S = 1e-6
"""The beginning of a prompt is of use without its end, but not the other way round: so it counts as used later."""
PAUSE_S = 600.0
"""How long nothing is written after a write has failed."""


class DiskPrefixCache:
    """The prefixes of one model. All methods may be called from any thread, and none waits but `wait` and `flush`."""

    def __init__(
        self,
        folder: CacheFolder,
        *,
        model: str,
        strips: bool,
        rest: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model` tells apart what must never be confused; `strips`, `rest`: which of the two its caches have."""
        self._folder = folder
        self._model = model
        self._strips = strips
        self._rest = rest
        self._clock = clock
        self._changed = threading.Condition()
        self._fetches: deque[Lookup] = deque()
        self._parcels: deque[CacheEntry] = deque()
        self._backlog_bytes = 0
        self._writing: Iterator[None] | None = None
        self._clearing = False
        self._busy = False
        self._moved_at = clock()
        self._paused_until = 0.0
        threading.Thread(target=self._run, name="shelf", daemon=True).start()

    @property
    def used_bytes(self) -> int:
        """Bytes in the folder, of all models, as far as this process knows."""
        return self._folder.used_bytes

    def is_stuck(self, fetch: Lookup | None = None) -> bool:
        """Whether the disk has had something to do for long, this fetch for one, and done nothing."""
        since = max(fetch.asked_at, self._moved_at) if fetch else self._moved_at
        return (self._busy or fetch is not None) and self._clock() - since > PATIENCE_S

    def write_entry(self, parcel: CacheEntry) -> None:
        """Have a cache written, some time."""
        if len(parcel.tokens) < WORTH or self._clock() < self._paused_until:
            return
        with self._changed:
            self._parcels.append(parcel)
            self._backlog_bytes += parcel.nbytes
            while self._backlog_bytes > BACKLOG_BYTES and len(self._parcels) > 1:
                self._backlog_bytes -= self._parcels.popleft().nbytes
            self._changed.notify_all()

    def lookup_prefix(self, tenant: str, tokens: Tokens, *, beyond: int) -> Lookup | None:
        """Look for more than the first `beyond` tokens of a prompt. None: there is no use in it."""
        if len(tokens) < beyond + WORTH or self.is_stuck():
            return None
        fetch = Lookup(tenant, tokens, beyond, self._clock())
        with self._changed:
            self._fetches.append(fetch)
            self._changed.notify_all()
        return fetch

    def wait_for_lookups(self, fetches: Sequence[Lookup], timeout_s: float) -> None:
        """Until one of these is done, or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: any(fetch.done for fetch in fetches), timeout_s)

    def clear(self) -> None:
        """Forget everything, of all models."""
        with self._changed:
            self._parcels.clear()
            self._backlog_bytes = 0
            self._clearing = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; whether it came to that."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._busy or self._parcels or self._fetches or self._clearing), timeout_s
            )

    # -- on the thread ---------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._turn()
            except OSError as error:
                self._give_up_writing()
                log.warning("prefixes are not written to disk for %d s: %s", PAUSE_S, error.strerror or error)
            except Exception:
                self._writing = None
                log.exception("a prefix on disk could not be read or written")

    def _turn(self) -> None:
        """One fetch, else one file of what is to be written; wait for either."""
        with self._changed:
            self._busy = self._writing is not None
            if not self._busy:
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._fetches or self._parcels or self._writing or self._clearing)
            self._busy = True
            self._moved_at = self._clock()
            clearing, self._clearing = self._clearing, False
            fetch = self._fetches.popleft() if self._fetches else None
            if fetch is None and self._writing is None and self._parcels:
                parcel = self._parcels.popleft()
                self._backlog_bytes -= parcel.nbytes
                self._writing = self._written(parcel)
        if clearing:
            self._writing = None
            self._folder.remove_all()
        if fetch is not None:
            self._serve(fetch)
        elif self._writing is not None:
            try:
                next(self._writing)
            except StopIteration:
                self._writing = None

    def _serve(self, fetch: Lookup) -> None:
        try:
            if not fetch.dropped:
                fetch.found = self._found(fetch)
        finally:
            with self._changed:
                fetch.done = True
                self._changed.notify_all()

    def _give_up_writing(self) -> None:
        with self._changed:
            self._writing = None
            self._paused_until = self._clock() + PAUSE_S
            self._parcels.clear()
            self._backlog_bytes = 0

    # -- writing ---------------------------------------------------------------

    def _written(self, parcel: CacheEntry) -> Iterator[None]:
        """Write file by file what is not there yet."""
        contents, tokens = parcel.contents, parcel.tokens
        trail = self._trail(parcel.tenant, tokens)
        now = time.time()
        blocks = trail.block_names(len(tokens)) if contents.strips else []
        for index, name in enumerate(blocks):
            used_at = now - index * STEP_S
            if not self._folder.touch_file(trail.folder, name, used_at):
                piece = _cut(contents.strips, index * BLOCK, (index + 1) * BLOCK)
                self._folder.write_file(trail.folder, name, piece, {}, used_at=used_at)
            yield
        if contents.rest:
            name, used_at = trail.snapshot_name(len(tokens)), now - len(blocks) * STEP_S
            if not self._folder.touch_file(trail.folder, name, used_at):
                tail = _cut(contents.strips, len(blocks) * BLOCK, len(tokens))
                content = {f"strip.{key}": tensor for key, tensor in tail.items()}
                content |= {f"rest.{key}": tensor for key, tensor in contents.rest.items()}
                self._folder.write_file(trail.folder, name, content, {"shape": contents.shape}, used_at=used_at)

    def _trail(self, tenant: str, tokens: Tokens) -> BlockHashes:
        return BlockNames(self._folder.key, self._model, tenant).hash_prompt(tokens)

    # -- reading ---------------------------------------------------------------

    def _found(self, fetch: Lookup) -> Contents | None:
        names = BlockNames(self._folder.key, self._model, fetch.tenant)
        trail = names.hash_prompt(fetch.tokens)
        if not self._rest:
            strips, fetch.length = self._blocks(trail, fetch, len(fetch.tokens))
            return Contents(_cut(strips, 0, fetch.length), {}) if strips else None
        known = {name: names.snapshot_length(name) for name in self._folder.list_files(names.folder)}
        lengths = {length for length in known.values() if length and length <= len(fetch.tokens)}
        for length in sorted(lengths, reverse=True):
            name = trail.snapshot_name(length)
            if length < fetch.beyond + WORTH:
                break
            if name in known and (found := self._snapshot(trail, fetch, name, length)) is not None:
                fetch.length = length
                return found
        return None

    def _snapshot(self, trail: BlockHashes, fetch: Lookup, name: str, length: int) -> Contents | None:
        """The whole of it, or nothing."""
        read = self._folder.read_file(trail.folder, name)
        if read is None:
            return None
        tail = {key.removeprefix("strip."): value for key, value in read[0].items() if key.startswith("strip.")}
        rest = {key.removeprefix("rest."): value for key, value in read[0].items() if key.startswith("rest.")}
        strips: dict[str, Tensor] = {}
        if self._strips:
            strips, reach = self._blocks(trail, fetch, length)
            if reach < length // BLOCK * BLOCK:
                return None
            if tail:
                strips = strips or _room(tail, length)
                _fill(strips, tail, reach)
            strips = _cut(strips, 0, length)
        self._folder.touch_file(trail.folder, name, time.time())
        return Contents(strips, rest, read[1].get("shape", ""))

    def _blocks(self, trail: BlockHashes, fetch: Lookup, length: int) -> tuple[dict[str, Tensor], int]:
        """As many blocks of the first `length` tokens as follow each other, in space for all; and how far they go."""
        blocks = trail.block_names(length)
        there = next(
            (index for index, name in enumerate(blocks) if not self._folder.has_file(trail.folder, name)), None
        )
        blocks = blocks[:there]
        if not self._rest and len(blocks) * BLOCK < fetch.beyond + WORTH:
            return {}, 0
        now = time.time()
        strips: dict[str, Tensor] = {}
        for index, name in enumerate(blocks):
            read = None if fetch.dropped else self._folder.read_file(trail.folder, name)
            if read is None:
                blocks = blocks[:index]
                break
            self._moved_at = self._clock()
            self._folder.touch_file(trail.folder, name, now - index * STEP_S)
            strips = strips or _room(read[0], length)
            _fill(strips, read[0], index * BLOCK)
        return strips, len(blocks) * BLOCK


def _cut(strips: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    if start == end:
        return {}
    return {name: Tensor(tensor.dtype, tensor.bits[..., start:end, :]) for name, tensor in strips.items()}


def _room(like: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Space for `length` tokens of such strips."""
    return {
        name: Tensor(
            tensor.dtype, np.empty((*tensor.bits.shape[:-2], length, tensor.bits.shape[-1]), tensor.bits.dtype)
        )
        for name, tensor in like.items()
    }


def _fill(strips: dict[str, Tensor], piece: dict[str, Tensor], start: int) -> None:
    for name, tensor in strips.items():
        bits = piece[name].bits
        tensor.bits[..., start : start + bits.shape[-2], :] = bits
