"""Keeps memory and database in step: one thread for SQLite, one task that writes usage and looks for changes.

Whatever the database does, the gateway goes on with what it last knew, says so loudly, and tries again. Before the
first successful look no key but the master's opens anything.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from gateway.access.keyring import Keyring
from gateway.access.record import Key
from gateway.access.store import KEPT_MINUTES, KeyStore
from gateway.access.usage import Usage

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


class Unavailable(Exception):
    """The database can't be written at the moment."""


class Custody:
    """The keys of one gateway, on disk and in memory."""

    def __init__(self, folder: Path, keyring: Keyring, usage: Usage, *, look_s: float = LOOK_S) -> None:
        self.keyring = keyring
        self.usage = usage
        self.trouble: str | None = None
        """What is wrong with the database; None: nothing."""
        self.failures = 0
        self._folder = folder
        self._look_s = look_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._store: KeyStore | None = None
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
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown(wait=False)

    async def put(self, make: Callable[[bytes], tuple[Key, T]]) -> tuple[Key, T]:
        """Write a key that `make` builds from the pepper, then use it. Raises `Unavailable`, and what `make` raises."""

        def write() -> tuple[Key, T]:
            store = self._open()
            made = make(store.pepper)
            store.put(made[0])
            return made

        try:
            key, rest = await self._run(write)
        except (sqlite3.Error, OSError) as error:
            self._alarm(error)
            raise Unavailable(str(error)) from error
        self.keyring.put(key)
        return key, rest

    async def keys(self) -> list[Key]:
        """All keys, with their sums as last written. Raises `Unavailable`."""
        try:
            return await self._run(lambda: self._open().read())
        except (sqlite3.Error, OSError) as error:
            self._alarm(error)
            raise Unavailable(str(error)) from error

    async def _look_for_ever(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._look_s)
            await self._look()

    async def _look(self) -> None:
        spent = self.usage.take()

        def look() -> tuple[list[Key], bytes, bool] | None:
            store = self._open()
            if spent:
                store.add_usage(spent)
                spent.clear()
            if time.monotonic() - self._pruned_at > SWEEP_S:
                self._pruned_at = time.monotonic()
                store.prune(int(time.time() // 60) - KEPT_MINUTES)
            version = store.version()
            if version == self._seen and self.keyring.loaded:
                return None
            keys = store.read()
            self._seen = version
            return keys, store.pepper, store.pepper_is_new

        try:
            found = await self._run(look)
            if not self._recalled:
                now_minute = int(time.time() // 60)
                past = await self._run(lambda: self._open().usage(now_minute - DAY_MINUTES))
                self.usage.recall(past)
                self._recalled = True
        except (sqlite3.Error, OSError) as error:
            self._alarm(error)
            return
        finally:
            # What was written is not in it any more.
            self.usage.give_back(spent)
        if time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            self.usage.sweep()
        if self.trouble is not None:
            log.warning("The key database is back (%s)", self._folder)
            self.trouble, self._alarmed_at = None, 0.0
        if found is not None:
            keys, pepper, pepper_is_new = found
            if pepper_is_new and keys:
                log.error("The pepper of %s was lost: no key that was made before is good any more", self._folder)
            self.keyring.replace(keys, pepper)

    def _alarm(self, error: Exception) -> None:
        self.failures += 1
        self.trouble = f"{type(error).__name__}: {error}"
        if time.monotonic() - self._alarmed_at < ALARM_S and self._alarmed_at:
            return
        self._alarmed_at = time.monotonic()
        state = "serving the keys last read" if self.keyring.loaded else "no key but the master key is accepted"
        log.error("The key database fails (%s): %s; %s", self._folder, self.trouble, state)

    async def _run(self, work: Callable[[], T]) -> T:
        # Shielded: a caller that leaves must not leave the thread's work half known.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work))

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
            self._store = KeyStore(self._folder, timeout_s=BUSY_S)
            self._seen = -1
        return self._store

    def _drop(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()
