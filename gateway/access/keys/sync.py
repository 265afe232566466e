"""Keeps memory and database in step: one thread for SQLite, one task that writes usage and looks for changes.

Whatever the database does, the gateway goes on with what it last knew, says so loudly, and tries again. Before the
first successful look no key but the master's opens anything. A database that is not the one that was read is no news.

Memory follows the database in the order of its commits: whatever the thread has read or written is handed to the event
loop by the thread itself, whoever asked for it and whether they still wait. A revocation alone comes to memory first.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from gateway.access.keys.journal import RevocationJournal
from gateway.access.keys.key import Key
from gateway.access.keys.keyring import Keyring
from gateway.access.keys.store import KEPT_MINUTES, KeyStore, UnknownKey
from gateway.access.usage import UsageLedger

log = logging.getLogger(__name__)

LOOK_S = 0.4
"""So often usage is written and changes by others are looked for: both within a second, a slow disk included."""
ALARM_S = 60.0
"""A trouble that lasts is logged again after so long."""
BUSY_S = 0.25
"""How long SQLite waits for a lock; the next look comes soon."""
SWEEP_S = 60.0
DAY_MINUTES = 24 * 60

T = TypeVar("T")
Kept = Literal["database", "journal", "memory"]
"""Where a revocation is by now. One that is in memory alone does not survive a restart."""


class KeysUnavailable(Exception):
    """The database can't be written at the moment."""


class KeySync:
    """The keys of one gateway, on disk and in memory."""

    def __init__(self, folder: Path, keyring: Keyring, usage: UsageLedger, *, look_s: float = LOOK_S) -> None:
        self.keyring = keyring
        self.usage = usage
        self.trouble: str | None = None
        """What is wrong with the database; None: nothing."""
        self.failures = 0
        self._folder = folder
        self._look_s = look_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._store: KeyStore | None = None
        self._journal = RevocationJournal(folder)
        self._identity = ""
        """Which database was read; empty before the first."""
        self._seen = -1
        self._alarmed_at = 0.0
        self._recalled = False
        self._pruned_at = self._swept_at = time.monotonic()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys; go on without them where that fails."""
        await self._look()
        self._task = asyncio.create_task(self._look_for_ever(), name="keys")

    async def close(self) -> None:
        """Write what is left, and let go of the database."""
        self._stopping.set()
        if self._task is not None:
            # Not cancelled: what is being written must be known to be written, or it would be counted twice.
            await self._task
        await self._look()
        await self.close_database()
        self._thread.shutdown(wait=False)

    async def close_database(self) -> None:
        """Let go of the database; whoever needs it next opens it anew."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)

    async def write_key(self, make: Callable[[bytes], tuple[Key, T]]) -> tuple[Key, T]:
        """Write a new key that `make` builds from the pepper, then use it.

        Raises `Unavailable`, and what `make` raises.
        """
        loop = asyncio.get_running_loop()

        def write() -> tuple[Key, T]:
            store = self._writable(loop)
            made = make(store.pepper)
            store.write_key(made[0])
            return made

        return await self._written(write)

    async def change_key(self, key_id: str, make: Callable[[bytes, Key], tuple[Key, T]]) -> tuple[Key, T]:
        """Write what `make` (of the pepper and the key as it is now) changes about a key, then use it.

        Raises `Unavailable`, `UnknownKey`, `RevokedKey`, and what `make` raises.
        """
        loop = asyncio.get_running_loop()

        def write() -> tuple[Key, T]:
            store = self._writable(loop)
            return store.change_key(key_id, lambda key: make(store.pepper, key))

        return await self._written(write)

    async def revoke_key(self, key_id: str, at: float) -> tuple[Key, Kept]:
        """Close a key, here at once, and say where that is written by now; what is not in the database follows.

        Raises `UnknownKey`, and `Unavailable` for a key that is not known here while the database can't be asked.
        """
        known = self.keyring.revoke_key(key_id, at) if self.keyring.find_key(key_id) is not None else None

        def write() -> tuple[Key | None, Kept, Exception | None]:
            try:
                return self._guarded(lambda: self._checked().revoke_key(key_id, at)), "database", None
            except (sqlite3.Error, OSError) as error:
                if known is None:
                    raise
                failure = error
            try:
                self._journal.write_revocation(key_id, at)
            except OSError:
                return None, "memory", failure
            return None, "journal", failure

        try:
            key, kept, failure = await self._run(write, lambda done: self._apply_revoked(filter(None, done[:1])))
        except (sqlite3.Error, OSError) as error:
            self._alarm(error)
            raise KeysUnavailable(str(error)) from error
        if failure is not None:
            self._alarm(failure)
            log.error("The key %s is revoked here, but that is in the %s alone yet: %s", key_id, kept, failure)
        found = key or known
        if found is None:
            raise UnknownKey
        return found, kept

    async def read_keys(self) -> list[Key]:
        """Return all keys, with their sums as last written. Raises `Unavailable`."""
        try:
            found = await self._run(lambda: self._checked().read_keys())
        except (sqlite3.Error, OSError) as error:
            self._alarm(error)
            raise KeysUnavailable(str(error)) from error
        return [self.keyring.as_known(key) for key in found]

    async def _look_for_ever(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._look_s)
            await self._look()

    async def _look(self) -> None:
        spent = self.usage.take_pending()
        loop = asyncio.get_running_loop()

        def look() -> None:
            with contextlib.suppress(OSError):
                loop.call_soon_threadsafe(self._hear, self._journal.read_revocations())
            store = self._open()
            # Reading first: news of revocations must not wait for a disk that is full.
            version = store.read_version()
            if version != self._seen or not self.keyring.loaded:
                keys = store.read_keys()
                self._seen = version
                loop.call_soon_threadsafe(self._apply, keys, store.pepper, store.pepper_is_new)
            self._settle(store, loop)
            self._journal.reserve_file()
            if spent:
                store.add_usage(spent)
                spent.clear()
            if time.monotonic() - self._pruned_at > SWEEP_S:
                self._pruned_at = time.monotonic()
                store.prune_usage(int(time.time() // 60) - KEPT_MINUTES)

        try:
            await self._run(look)
            if not self._recalled:
                now_minute = int(time.time() // 60)
                past = await self._run(lambda: self._open().read_usage(now_minute - DAY_MINUTES))
                self.usage.restore_usage(past)
                self._recalled = True
        except (sqlite3.Error, OSError) as error:
            self._alarm(error)
            return
        finally:
            # What was written is not in it any more.
            self.usage.give_back(spent)
        if time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            self.usage.drop_idle()
        if self.trouble is not None:
            log.warning("The key database is back (%s)", self._folder)
            self.trouble, self._alarmed_at = None, 0.0

    # -- on the event loop, called by the thread ---------------------------

    def _apply(self, keys: list[Key], pepper: bytes, pepper_is_new: bool) -> None:
        if pepper_is_new and keys:
            log.error("The pepper of %s was lost: no key that was made before is good any more", self._folder)
        self.keyring.replace_keys(keys, pepper)

    def _hear(self, noted: dict[str, float]) -> None:
        """Take in revocations that others could not write either, or we before a restart."""
        for key_id, at in noted.items():
            if key_id not in self.keyring.revoked:
                self.keyring.revoke_key(key_id, at)

    def _apply_revoked(self, keys: Iterable[Key], strangers: Iterable[str] = ()) -> None:
        """Take note that the database has these revocations, and does not know the `strangers`."""
        for key in keys:
            self.keyring.revoked.pop(key.id, None)
            self.keyring.put_key(key)
        for key_id in strangers:
            self.keyring.revoked.pop(key_id, None)

    # -- in the thread -----------------------------------------------------

    def _settle(self, store: KeyStore, loop: asyncio.AbstractEventLoop) -> None:
        """Write the revocations that the database lacks."""
        written, strangers = self._journal.write_pending(store, dict(self.keyring.revoked))
        loop.call_soon_threadsafe(self._apply_revoked, written, strangers)

    def _writable(self, loop: asyncio.AbstractEventLoop) -> KeyStore:
        """Return the database, with every revocation in it: no change may come between."""
        store = self._checked()
        self._settle(store, loop)
        return store

    def _checked(self) -> KeyStore:
        """Return the database, which is still where it was: what is written to a file that was taken away is lost."""
        store = self._open()
        store.read_version()
        return store

    def _alarm(self, error: Exception) -> None:
        self.failures += 1
        self.trouble = f"{type(error).__name__}: {error}"
        if time.monotonic() - self._alarmed_at < ALARM_S and self._alarmed_at:
            return
        self._alarmed_at = time.monotonic()
        state = "serving the keys last read" if self.keyring.loaded else "no key but the master key is accepted"
        log.error("The key database fails (%s): %s; %s", self._folder, self.trouble, state)

    async def _written(self, write: Callable[[], tuple[Key, T]]) -> tuple[Key, T]:
        try:
            return await self._run(write, lambda made: self.keyring.put_key(made[0]))
        except (sqlite3.Error, OSError) as error:
            self._alarm(error)
            raise KeysUnavailable(str(error)) from error

    async def _run(self, work: Callable[[], T], then: Callable[[T], None] | None = None) -> T:
        """Do `work` in the thread, and `then` with its result on the event loop, before this returns."""
        loop = asyncio.get_running_loop()

        def job() -> T:
            result = self._guarded(work)
            if then is not None:
                loop.call_soon_threadsafe(then, result)
            return result

        # Shielded: a caller that leaves must not leave the thread's work half known.
        return await asyncio.shield(loop.run_in_executor(self._thread, job))

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except sqlite3.OperationalError as error:
            # Locked or full passes; anything else is cured, if at all, by opening it anew.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (
                sqlite3.SQLITE_BUSY,
                sqlite3.SQLITE_LOCKED,
                sqlite3.SQLITE_FULL,
            ):
                self._drop()
            raise
        except (sqlite3.Error, OSError):
            self._drop()
            raise

    def _open(self) -> KeyStore:
        if self._store is None:
            store = KeyStore(self._folder, timeout_s=BUSY_S, create=not self._identity)
            if self._identity not in ("", store.identity) and len(self.keyring):
                store.close()
                raise OSError(
                    f"{self._folder} holds another key database than the one that was read: put that one back, or "
                    "restart the gateway to use the other one"
                )
            self._store, self._identity, self._seen = store, store.identity, -1
        return self._store

    def _drop(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()
