"""Keys and their usage in SQLite, and the pepper beside it. Blocks: for a thread of its own, or a command line.

Every call may raise `sqlite3.Error` (locked, corrupt, disk full) or `OSError`; a failed call leaves nothing half done.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from gateway.access.record import Key

DATABASE = "keys.db"
PEPPER = "pepper"
VERSION = 1
KEPT_MINUTES = 2 * 24 * 60
"""How long the minutes of usage are kept; sums per key stay."""

_SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL, permissions TEXT NOT NULL, models TEXT NOT NULL,
    limits TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL, revoked_at REAL,
    old_digest BLOB NOT NULL, old_until REAL NOT NULL,
    last_used_at REAL, requests INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE usage (
    id TEXT NOT NULL, minute INTEGER NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (id, minute)
) STRICT, WITHOUT ROWID;
"""
_JSON = ("permissions", "models", "limits")
_COUNTED = ("last_used_at", "requests", "tokens")
"""Written by `add_usage` alone: a changed key must not bring back old sums."""
_FIELDS = tuple(name for name in Key.__struct_fields__ if name not in _COUNTED)


class Spent(msgspec.Struct, frozen=True):
    """What one key used in one minute (since 1970, UTC)."""

    id: str
    minute: int
    requests: int
    tokens: int
    last_used_at: float = 0.0


class KeyStore:
    """An open database. Use it in the thread that opened it."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.pepper, self.pepper_is_new = _pepper(folder / PEPPER)
        path = self._path = folder / DATABASE
        # Made by us, so that SQLite can't make it readable to others; its two companions take over its mode.
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        self._inode = os.fstat(handle).st_ino
        os.close(handle)
        self._db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def version(self) -> int:
        """A number that changes when another process has written. Raises `OSError` where the file was taken away."""
        if os.stat(self._path).st_ino != self._inode:  # noqa: PTH116
            raise OSError(f"{self._path} is not the file that was opened")
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def read(self) -> list[Key]:
        """All keys, the newest first. Raises `sqlite3.DatabaseError` for a row that no version of ours wrote."""
        rows = self._db.execute(f"SELECT {', '.join(Key.__struct_fields__)} FROM keys ORDER BY created_at DESC, id")  # noqa: S608
        try:
            return [_key(row) for row in rows]
        except (ValueError, msgspec.DecodeError) as error:
            raise sqlite3.DatabaseError(f"a key in the database is damaged: {error}") from error

    def put(self, key: Key) -> None:
        """Add a key, or change it; its sums stay as they are."""
        values = [
            msgspec.json.encode(getattr(key, name)).decode() if name in _JSON else getattr(key, name)
            for name in _FIELDS
        ]
        marks = ", ".join("?" * len(_FIELDS))
        changes = ", ".join(f"{name} = excluded.{name}" for name in _FIELDS)
        self._db.execute(
            f"INSERT INTO keys ({', '.join(_FIELDS)}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {changes}",  # noqa: S608
            values,
        )

    def add_usage(self, spent: Iterable[Spent]) -> None:
        """Add to the sums; all or nothing."""
        rows = [*spent]
        with self._transaction():
            self._db.executemany(
                "INSERT INTO usage VALUES (?, ?, ?, ?) ON CONFLICT (id, minute) DO UPDATE SET "
                "requests = requests + excluded.requests, tokens = tokens + excluded.tokens",
                [(row.id, row.minute, row.requests, row.tokens) for row in rows],
            )
            self._db.executemany(
                "UPDATE keys SET requests = requests + ?, tokens = tokens + ?, "
                "last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?",
                [(row.requests, row.tokens, row.last_used_at, row.id) for row in rows],
            )

    def usage(self, since_minute: int) -> list[Spent]:
        """What every key used in each minute from `since_minute` on."""
        rows = self._db.execute("SELECT id, minute, requests, tokens FROM usage WHERE minute >= ?", (since_minute,))
        return [Spent(*row) for row in rows]

    def prune(self, before_minute: int) -> None:
        """Drop minutes that nobody needs any more."""
        self._db.execute("DELETE FROM usage WHERE minute < ?", (before_minute,))

    # -- inside ------------------------------------------------------------

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # In WAL mode a crash of this process loses nothing that was committed, one of the machine at most the last.
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found > VERSION:
                raise sqlite3.DatabaseError(f"written by a later version (schema {found}, this one knows {VERSION})")
            if found == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # A full disk may show only now.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _key(row: tuple[Any, ...]) -> Key:
    values = dict(zip(Key.__struct_fields__, row, strict=True))
    values |= {name: msgspec.json.decode(values[name]) for name in _JSON}
    return msgspec.convert(values, Key)


def _pepper(path: Path) -> tuple[bytes, bool]:
    """The secret under which keys are hashed, and whether it was made just now.

    Without it a stolen database is worth nothing.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        pepper = path.read_bytes()
        if len(pepper) != 32:
            raise OSError(f"{path} is damaged: it should hold 32 bytes, not {len(pepper)}") from None
        return pepper, False
    with os.fdopen(handle, "wb") as file:
        pepper = secrets.token_bytes(32)
        file.write(pepper)
        file.flush()
        os.fsync(file.fileno())
    return pepper, True
