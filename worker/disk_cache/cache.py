"""The disk cache: prefixes on disk, read and written by a thread of its own, so that no step ever waits for a disk.

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

MIN_TOKENS = 2 * BLOCK
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
        per_token: bool,
        whole: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model` tells apart what must never be confused; `per_token`, `whole`: which of the two its caches have."""
        self._folder = folder
        self._model = model
        self._per_token = per_token
        self._whole = whole
        self._clock = clock
        self._changed = threading.Condition()
        self._lookups: deque[Lookup] = deque()
        self._entries: deque[CacheEntry] = deque()
        self._backlog_bytes = 0
        self._writing: Iterator[None] | None = None
        self._clearing = False
        self._busy = False
        self._moved_at = clock()
        self._paused_until = 0.0
        threading.Thread(target=self._run, name="disk-cache", daemon=True).start()

    @property
    def used_bytes(self) -> int:
        """Bytes in the folder, of all models, as far as this process knows."""
        return self._folder.used_bytes

    def is_stuck(self, lookup: Lookup | None = None) -> bool:
        """Return whether the disk has had something to do for long, this lookup for one, and done nothing."""
        since = max(lookup.asked_at, self._moved_at) if lookup else self._moved_at
        return (self._busy or lookup is not None) and self._clock() - since > PATIENCE_S

    def write_entry(self, entry: CacheEntry) -> None:
        """Have a cache written, some time."""
        if len(entry.tokens) < MIN_TOKENS or self._clock() < self._paused_until:
            return
        with self._changed:
            self._entries.append(entry)
            self._backlog_bytes += entry.nbytes
            while self._backlog_bytes > BACKLOG_BYTES and len(self._entries) > 1:
                self._backlog_bytes -= self._entries.popleft().nbytes
            self._changed.notify_all()

    def lookup_prefix(self, tenant: str, tokens: Tokens, *, beyond: int) -> Lookup | None:
        """Look for more than the first `beyond` tokens of a prompt. None: there is no use in it."""
        if len(tokens) < beyond + MIN_TOKENS or self.is_stuck():
            return None
        lookup = Lookup(tenant, tokens, beyond, self._clock())
        with self._changed:
            self._lookups.append(lookup)
            self._changed.notify_all()
        return lookup

    def wait_for_lookups(self, lookups: Sequence[Lookup], timeout_s: float) -> None:
        """Until one of these is done, or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: any(lookup.done for lookup in lookups), timeout_s)

    def clear(self) -> None:
        """Forget everything, of all models."""
        with self._changed:
            self._entries.clear()
            self._backlog_bytes = 0
            self._clearing = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; whether it came to that."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._busy or self._entries or self._lookups or self._clearing), timeout_s
            )

    # -- on the thread ---------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._run_once()
            except OSError as error:
                self._give_up_writing()
                log.warning("prefixes are not written to disk for %d s: %s", PAUSE_S, error.strerror or error)
            except Exception:
                self._writing = None
                log.exception("a prefix on disk could not be read or written")

    def _run_once(self) -> None:
        """One lookup, else one file of what is to be written; wait for either."""
        with self._changed:
            self._busy = self._writing is not None
            if not self._busy:
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._lookups or self._entries or self._writing or self._clearing)
            self._busy = True
            self._moved_at = self._clock()
            clearing, self._clearing = self._clearing, False
            lookup = self._lookups.popleft() if self._lookups else None
            if lookup is None and self._writing is None and self._entries:
                entry = self._entries.popleft()
                self._backlog_bytes -= entry.nbytes
                self._writing = self._write_files(entry)
        if clearing:
            self._writing = None
            self._folder.remove_all()
        if lookup is not None:
            self._serve_lookup(lookup)
        elif self._writing is not None:
            try:
                next(self._writing)
            except StopIteration:
                self._writing = None

    def _serve_lookup(self, lookup: Lookup) -> None:
        try:
            if not lookup.dropped:
                lookup.found = self._read_prefix(lookup)
        finally:
            with self._changed:
                lookup.done = True
                self._changed.notify_all()

    def _give_up_writing(self) -> None:
        with self._changed:
            self._writing = None
            self._paused_until = self._clock() + PAUSE_S
            self._entries.clear()
            self._backlog_bytes = 0

    # -- writing ---------------------------------------------------------------

    def _write_files(self, entry: CacheEntry) -> Iterator[None]:
        """Write file by file what is not there yet."""
        contents, tokens = entry.contents, entry.tokens
        hashes = self._hash_prompt(entry.tenant, tokens)
        now = time.time()
        blocks = hashes.block_names(len(tokens)) if contents.per_token else []
        for index, name in enumerate(blocks):
            used_at = now - index * STEP_S
            if not self._folder.touch_file(hashes.folder, name, used_at):
                piece = _cut(contents.per_token, index * BLOCK, (index + 1) * BLOCK)
                self._folder.write_file(hashes.folder, name, piece, {}, used_at=used_at)
            yield
        if contents.whole:
            name, used_at = hashes.snapshot_name(len(tokens)), now - len(blocks) * STEP_S
            if not self._folder.touch_file(hashes.folder, name, used_at):
                tail = _cut(contents.per_token, len(blocks) * BLOCK, len(tokens))
                content = {f"strip.{key}": tensor for key, tensor in tail.items()}
                content |= {f"rest.{key}": tensor for key, tensor in contents.whole.items()}
                self._folder.write_file(hashes.folder, name, content, {"shape": contents.shape}, used_at=used_at)

    def _hash_prompt(self, tenant: str, tokens: Tokens) -> BlockHashes:
        return BlockNames(self._folder.key, self._model, tenant).hash_prompt(tokens)

    # -- reading ---------------------------------------------------------------

    def _read_prefix(self, lookup: Lookup) -> Contents | None:
        names = BlockNames(self._folder.key, self._model, lookup.tenant)
        hashes = names.hash_prompt(lookup.tokens)
        if not self._whole:
            per_token, lookup.length = self._read_blocks(hashes, lookup, len(lookup.tokens))
            return Contents(_cut(per_token, 0, lookup.length), {}) if per_token else None
        known = {name: names.snapshot_length(name) for name in self._folder.list_files(names.folder)}
        lengths = {length for length in known.values() if length and length <= len(lookup.tokens)}
        for length in sorted(lengths, reverse=True):
            name = hashes.snapshot_name(length)
            if length < lookup.beyond + MIN_TOKENS:
                break
            if name in known and (found := self._read_snapshot(hashes, lookup, name, length)) is not None:
                lookup.length = length
                return found
        return None

    def _read_snapshot(self, hashes: BlockHashes, lookup: Lookup, name: str, length: int) -> Contents | None:
        """Read the whole of it, or nothing."""
        read = self._folder.read_file(hashes.folder, name)
        if read is None:
            return None
        tail = {key.removeprefix("strip."): value for key, value in read[0].items() if key.startswith("strip.")}
        whole = {key.removeprefix("rest."): value for key, value in read[0].items() if key.startswith("rest.")}
        per_token: dict[str, Tensor] = {}
        if self._per_token:
            per_token, reach = self._read_blocks(hashes, lookup, length)
            if reach < length // BLOCK * BLOCK:
                return None
            if tail:
                per_token = per_token or _room(tail, length)
                _fill(per_token, tail, reach)
            per_token = _cut(per_token, 0, length)
        self._folder.touch_file(hashes.folder, name, time.time())
        return Contents(per_token, whole, read[1].get("shape", ""))

    def _read_blocks(self, hashes: BlockHashes, lookup: Lookup, length: int) -> tuple[dict[str, Tensor], int]:
        """As many blocks of the first `length` tokens as follow each other, in space for all; and how far they go."""
        blocks = hashes.block_names(length)
        there = next(
            (index for index, name in enumerate(blocks) if not self._folder.has_file(hashes.folder, name)), None
        )
        blocks = blocks[:there]
        if not self._whole and len(blocks) * BLOCK < lookup.beyond + MIN_TOKENS:
            return {}, 0
        now = time.time()
        per_token: dict[str, Tensor] = {}
        for index, name in enumerate(blocks):
            read = None if lookup.dropped else self._folder.read_file(hashes.folder, name)
            if read is None:
                blocks = blocks[:index]
                break
            self._moved_at = self._clock()
            self._folder.touch_file(hashes.folder, name, now - index * STEP_S)
            per_token = per_token or _room(read[0], length)
            _fill(per_token, read[0], index * BLOCK)
        return per_token, len(blocks) * BLOCK


def _cut(per_token: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    if start == end:
        return {}
    return {name: Tensor(tensor.dtype, tensor.bits[..., start:end, :]) for name, tensor in per_token.items()}


def _room(like: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Space for `length` tokens of such per_token."""
    return {
        name: Tensor(
            tensor.dtype, np.empty((*tensor.bits.shape[:-2], length, tensor.bits.shape[-1]), tensor.bits.dtype)
        )
        for name, tensor in like.items()
    }


def _fill(per_token: dict[str, Tensor], piece: dict[str, Tensor], start: int) -> None:
    for name, tensor in per_token.items():
        bits = piece[name].bits
        tensor.bits[..., start : start + bits.shape[-2], :] = bits
