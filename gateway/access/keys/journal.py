"""Revocations that the database could not take: a small file that is written in place, so that a full disk takes it.

Made, at its full size, when the database is opened. Gateways and command lines that share a folder share it. Blocks.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from gateway.access.keys.key import Key
from gateway.access.keys.store import KeyStore, UnknownKey
from protocol.private import open_private

log = logging.getLogger(__name__)

FILE = "revocations"
RECORD_BYTES = 64
RECORDS = 256
FILE_BYTES = RECORD_BYTES * RECORDS
WAIT_S = 0.25
"""For others who write; each takes less than a millisecond, and a disk's time to sync."""

_RECORD = re.compile(rb"(([0-9A-Za-z]{8}) (\d{1,12}\.\d{3})) ([0-9a-f]{8}) *\n")
_FREE = b" " * (RECORD_BYTES - 1) + b"\n"


class RevocationJournal:
    """The file of one folder. Every call may raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def reserve_file(self) -> None:
        """Make the file, unless it is there at its full size."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size == FILE_BYTES:
                return
        with self._opened(os.O_RDWR | os.O_CREAT) as fd:
            # Whoever is cut short leaves a shorter file, which the next one completes.
            held = os.fstat(fd).st_size // RECORD_BYTES
            os.ftruncate(fd, held * RECORD_BYTES)
            _write(fd, _FREE * (RECORDS - held), held * RECORD_BYTES)

    def read_revocations(self) -> dict[str, float]:
        """Return the ids of revoked keys, and when each was revoked; empty where there is no file."""
        with contextlib.suppress(FileNotFoundError), self._opened(os.O_RDONLY) as fd:
            return {key_id: at for key_id, at in _records(fd) if key_id}
        return {}

    def write_pending(self, store: KeyStore, more: Mapping[str, float]) -> tuple[list[Key], list[str]]:
        """Write what is noted, and `more`, to the database, which may raise.

        Returns the keys that are revoked there now, and the ids that it does not know.
        """
        noted = self.read_revocations()
        keys, strangers = [], []
        for key_id, at in (noted | dict(more)).items():
            try:
                keys.append(store.revoke_key(key_id, at))
            except UnknownKey:
                strangers.append(key_id)
        if noted:
            self.clear_revocations(noted)
            log.warning("Revocations that waited are in the key database now: %s", ", ".join(sorted(noted)))
        return keys, strangers

    def write_revocation(self, key_id: str, at: float) -> None:
        """Note a revocation, at once on disk."""
        text = f"{key_id} {at:.3f}".encode()
        record = b"%s %08x" % (text, zlib.crc32(text))
        with self._opened(os.O_RDWR) as fd:
            for place, (held, _) in enumerate(_records(fd)):
                if held == key_id:
                    return
                if not held:
                    _write(fd, record.ljust(RECORD_BYTES - 1) + b"\n", place * RECORD_BYTES)
                    return
        raise OSError(errno.ENOSPC, "the journal of revocations is full")

    def clear_revocations(self, key_ids: Collection[str]) -> None:
        """Forget revocations: the database has them."""
        with self._opened(os.O_RDWR) as fd:
            for place, (held, _) in enumerate(_records(fd)):
                if held in key_ids:
                    _write(fd, _FREE, place * RECORD_BYTES)

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        fd = open_private(self._path, flags)
        try:
            deadline = time.monotonic() + WAIT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)
            yield fd
        finally:
            os.close(fd)


def _records(fd: int) -> list[tuple[str, float]]:
    """Yield each record as (id, time), an empty id for one that is free, or was cut short by a crash."""
    data = os.pread(fd, FILE_BYTES, 0)
    found = []
    for start in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
        match = _RECORD.fullmatch(data, start, start + RECORD_BYTES)
        good = match is not None and zlib.crc32(match[1]) == int(match[4], 16)
        found.append((match[2].decode(), float(match[3])) if match is not None and good else ("", 0.0))
    return found


def _write(fd: int, data: bytes, place: int) -> None:
    """Write in place, and through to the disk."""
    while data:
        written = os.pwrite(fd, data, place)
        data, place = data[written:], place + written
    os.fsync(fd)
