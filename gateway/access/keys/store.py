"""Keys and their usage in SQLite, and the pepper beside it. Blocks: for a thread of its own, or a command line.

Every call may raise `sqlite3.Error` (locked, corrupt, disk full) or `OSError`; a failed call leaves nothing half done.
A change is read, judged and written in one transaction, so that changes from several sides never undo each other.
"""

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.access.keys.key import Key
from protocol.private import WRITING, open_private, prepare_folder

DATABASE = "keys.db"
PEPPER = "pepper"
PEPPER_BYTES = 32
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
_IDENTITY = "CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL) STRICT"
"""Beside the schema: earlier versions need not know of it."""
_JSON = ("permissions", "models", "limits")
_COUNTED = ("last_used_at", "requests", "tokens")
"""Written by `add_usage` alone: a changed key must not bring back old sums."""
_FIELDS = tuple(name for name in Key.__struct_fields__ if name not in _COUNTED)


T = TypeVar("T")


class UnknownKey(Exception):
    """There is no such key."""


class RevokedKey(Exception):
    """The key is revoked, for good: nothing about it changes any more."""


class UsageRow(msgspec.Struct, frozen=True):
    """What one key used in one minute (since 1970, UTC)."""

    id: str
    minute: int
    requests: int
    tokens: int
    last_used_at: float = 0.0


class KeyStore:
    """An open database. Use it in the thread that opened it."""

    def __init__(self, folder: Path, *, timeout_s: float, create: bool = True) -> None:
        """Open it; with `create`, make it where neither it nor its pepper has ever been.

        A database that is missing, or empty, where there was one is a fault: whoever made another one in its place
        would forget all keys.
        """
        path, secret = folder / DATABASE, folder / PEPPER
        if create:
            prepare_folder(folder, close=WRITING)
        fresh = create and not secret.exists()
        if not (fresh or path.exists()):
            raise OSError(f"{path} is missing: put it back" + (f", or remove {secret} to start anew" * create))
        if not (create or secret.exists()):
            raise OSError(f"{secret} is missing: put it back")
        self._path = path
        # Made by us, so that SQLite can't make it readable to others; its two companions take over its mode.
        handle = open_private(path, os.O_RDWR | (os.O_CREAT if fresh else 0))
        self._inode = os.fstat(handle).st_ino
        os.close(handle)
        self._db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
        try:
            self.identity = self._prepare(fresh=fresh)
            # After the database: a pepper says that there was one.
            self.pepper, self.pepper_is_new = _pepper(secret)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def read_version(self) -> int:
        """Return a number that changes when another process has written. Raises `OSError` where the file is gone."""
        if os.stat(self._path).st_ino != self._inode:  # noqa: PTH116
            raise OSError(f"{self._path} is not the file that was opened")
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def read_keys(self) -> list[Key]:
        """Return all keys, the newest first. Raises `sqlite3.DatabaseError` for a row that no version of ours wrote."""
        return self._read()

    def write_key(self, key: Key) -> None:
        """Add a key."""
        values = _columns(key)
        marks = ", ".join("?" * len(values))
        with self._transaction(durable=True):
            self._db.execute(f"INSERT INTO keys ({', '.join(values)}) VALUES ({marks})", [*values.values()])  # noqa: S608

    def change_key(self, key_id: str, make: Callable[[Key], tuple[Key, T]]) -> tuple[Key, T]:
        """Write what `make` changes about a key as it is now, and nothing else of it.

        Raises `UnknownKey`, `RevokedKey`, and what `make` raises.
        """
        with self._transaction(durable=True):
            key = self._find(key_id)
            if key.revoked_at is not None:
                raise RevokedKey
            changed, rest = make(key)
            before = _columns(key)
            values = {name: value for name, value in _columns(changed).items() if value != before[name]}
            if values:
                marks = ", ".join(f"{name} = ?" for name in values)
                self._db.execute(f"UPDATE keys SET {marks} WHERE id = ?", [*values.values(), key_id])  # noqa: S608
        return changed, rest

    def revoke_key(self, key_id: str, at: float) -> Key:
        """Close a key for good; one that is revoked stays as it is. Raises `UnknownKey`."""
        with self._transaction(durable=True):
            self._db.execute("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, key_id))
        return self._find(key_id)

    def add_usage(self, spent: Iterable[UsageRow]) -> None:
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

    def read_usage(self, since_minute: int) -> list[UsageRow]:
        """Return what every key used in each minute from `since_minute` on."""
        rows = self._db.execute("SELECT id, minute, requests, tokens FROM usage WHERE minute >= ?", (since_minute,))
        return [UsageRow(*row) for row in rows]

    def prune_usage(self, before_minute: int) -> None:
        """Drop minutes that nobody needs any more."""
        self._db.execute("DELETE FROM usage WHERE minute < ?", (before_minute,))

    # -- inside ------------------------------------------------------------

    def _find(self, key_id: str) -> Key:
        rows = self._read(" WHERE id = ?", (key_id,))
        if not rows:
            raise UnknownKey
        return rows[0]

    def _read(self, where: str = "", values: tuple[str, ...] = ()) -> list[Key]:
        names = ", ".join(Key.__struct_fields__)
        rows = self._db.execute(f"SELECT {names} FROM keys{where} ORDER BY created_at DESC, id", values)  # noqa: S608
        try:
            return [_key(row) for row in rows]
        except (ValueError, msgspec.DecodeError) as error:
            raise sqlite3.DatabaseError(f"a key in the database is damaged: {error}") from error

    def _prepare(self, *, fresh: bool) -> str:
        """Make the tables where there are none yet; returns which database this is."""
        self._db.execute("PRAGMA journal_mode = WAL")
        # In WAL mode a crash of this process loses nothing that was committed, one of the machine at most the last.
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found > VERSION:
                raise sqlite3.DatabaseError(f"written by a later version (schema {found}, this one knows {VERSION})")
            if found == 0:
                if not fresh:
                    raise sqlite3.DatabaseError("the database is empty, and was not before: put the backup back")
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            self._db.execute(_IDENTITY)
            if (row := self._db.execute("SELECT id FROM identity").fetchone()) is None:
                row = (secrets.token_hex(16),)
                self._db.execute("INSERT INTO identity VALUES (?)", row)
        return str(row[0])

    def _transaction(self, *, durable: bool = False) -> "_Transaction":
        return _Transaction(self._db, durable=durable)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK. What is `durable` survives a crash of the machine, too."""

    def __init__(self, db: sqlite3.Connection, *, durable: bool) -> None:
        self._db = db
        self._durable = durable

    def __enter__(self) -> None:
        if self._durable:
            self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # A full disk may show only now.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if self._durable:
                self._db.execute("PRAGMA synchronous = NORMAL")


def _columns(key: Key) -> dict[str, Any]:
    """Return a key as it is written."""
    return {
        name: msgspec.json.encode(getattr(key, name)).decode() if name in _JSON else getattr(key, name)
        for name in _FIELDS
    }


def _key(row: tuple[Any, ...]) -> Key:
    values = dict(zip(Key.__struct_fields__, row, strict=True))
    values |= {name: msgspec.json.decode(values[name]) for name in _JSON}
    return msgspec.convert(values, Key)


def _pepper(path: Path) -> tuple[bytes, bool]:
    """Return the secret under which keys are hashed, and whether it was made just now.

    Without it a stolen database is worth nothing.
    """
    if not path.exists():
        draft = path.with_name(f".{PEPPER}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(pepper := secrets.token_bytes(PEPPER_BYTES))
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, does not replace what another process has made meanwhile; it appears whole.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
                return pepper, True
        finally:
            draft.unlink(missing_ok=True)
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        pepper = file.read()
    if len(pepper) != PEPPER_BYTES:
        raise OSError(f"{path} is damaged: it should hold {PEPPER_BYTES} bytes, not {len(pepper)}")
    return pepper, False
