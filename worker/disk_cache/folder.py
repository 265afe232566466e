"""The folder of a disk cache: private, bounded, and shared by every process that is told of it, without locks.

Files appear whole (by rename), are never changed, and may vanish at any time, since everybody may clear up; whoever
misses one has a miss. A file's time is that of its last use.
"""

import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from protocol.private import ForeignPathError, check_own, prepare_folder
from worker.disk_cache import tensors
from worker.disk_cache.eviction import TenantShare, select_for_eviction
from worker.disk_cache.tensors import Damaged, Tensor

SUFFIX = ".safetensors"
KEY_NAME = "key"
KEY_BYTES = 32
TAG_NAME = "CACHEDIR.TAG"
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# A cache: backups may leave this folder out (bford.info/cachedir).\n"
)
ABANDONED_S = 600.0
"""A file that somebody began so long ago and has not finished: whoever it was is dead."""
STALE_S = 86_400.0
"""What was not used for so long goes before anything else, whosever it is."""
LEAVE = 0.9
"""How full the folder is after clearing up."""


class DiskCacheError(Exception):
    """The folder can't be used. The message says why."""


class CacheFolder:
    """Files below one folder. For one thread; other processes may do the same in it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Make it, or check that it is private. Raises `DiskCacheError`."""
        self._path = path
        self._max_bytes = max_bytes
        self._numbers = itertools.count()
        self._unseen_bytes = 0
        self.used_bytes = 0
        try:
            prepare_folder(path)
            self.key = self._read_key()
            with contextlib.suppress(FileExistsError), (path / TAG_NAME).open("x") as tag:
                tag.write(TAG)
            self.clear_up()
        except ForeignPathError as error:
            raise DiskCacheError(str(error)) from None
        except OSError as error:
            raise DiskCacheError(f"{path}: {error.strerror or error}") from None

    def has_file(self, folder: str, name: str) -> bool:
        """Return whether a file is there now."""
        return self._file(folder, name).exists()

    def list_files(self, folder: str) -> list[str]:
        """Return the files of one tenant."""
        try:
            return [entry.name.removesuffix(SUFFIX) for entry in os.scandir(self._path / folder)]
        except OSError:
            return []

    def touch_file(self, folder: str, name: str, used_at: float) -> bool:
        """Note that a file is in use, if it is there."""
        try:
            os.utime(self._file(folder, name), (used_at, used_at))
        except OSError:
            return False
        return True

    def read_file(self, folder: str, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return a file's content; None where there is none any more. A damaged one is removed."""
        path = self._file(folder, name)
        try:
            return tensors.read(path)
        except OSError:
            return None
        except Damaged:
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def write_file(
        self, folder: str, name: str, content: Mapping[str, Tensor], metadata: Mapping[str, str], *, used_at: float
    ) -> None:
        """Add a file, then make room. Raises `OSError`."""
        target = self._file(folder, name)
        try:
            size_bytes = self._place(target, content, metadata, used_at)
        except FileNotFoundError:
            # Another process has just removed the folder, which was empty.
            size_bytes = self._place(target, content, metadata, used_at)
        self.used_bytes += size_bytes
        self._unseen_bytes += size_bytes
        # Others write here too: what they wrote is seen when we have written an eighth of what there is room for.
        if self.used_bytes > self._max_bytes or self._unseen_bytes > self._max_bytes / 8:
            self.clear_up()

    def _place(self, target: Path, content: Mapping[str, Tensor], metadata: Mapping[str, str], used_at: float) -> int:
        for part in (target.parent.parent, target.parent):
            part.mkdir(mode=0o700, exist_ok=True)
        draft = target.with_name(f".{target.stem}.{os.getpid()}.{next(self._numbers)}")
        try:
            size_bytes = tensors.write(draft, content, metadata)
            os.utime(draft, (used_at, used_at))
            draft.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        return size_bytes

    def clear_up(self) -> None:
        """Count what is there, and drop what is too much."""
        now = time.time()
        files = sorted(self._files(now), key=lambda item: item.used_at)
        self.used_bytes = sum(item.size_bytes for item in files)
        self._unseen_bytes = 0
        if self.used_bytes <= self._max_bytes:
            return
        excess_bytes = self.used_bytes - int(self._max_bytes * LEAVE)
        sizes = {item.key: item.size_bytes for item in files}
        for path in select_for_eviction(files, excess_bytes, stale_before=now - STALE_S):
            with contextlib.suppress(OSError):
                path.unlink()
            self.used_bytes -= sizes[path]

    def remove_all(self) -> None:
        """Remove everything but the key."""
        for item in self._files(time.time()):
            with contextlib.suppress(OSError):
                item.key.unlink()
        self.used_bytes = self._unseen_bytes = 0

    def _files(self, now: float) -> Iterator[TenantShare]:
        """Every file of every tenant and model; abandoned drafts and empty folders are removed in passing."""
        for model in _folders(self._path):
            for tenant in _folders(model):
                count = 0
                for path in _entries(tenant):
                    with contextlib.suppress(OSError):
                        status = path.stat()
                        count += 1
                        if path.suffix == SUFFIX:
                            yield TenantShare(path, str(tenant), status.st_size, status.st_mtime)
                        elif status.st_mtime < now - ABANDONED_S:
                            path.unlink()
                if not count:
                    with contextlib.suppress(OSError):
                        tenant.rmdir()
                        model.rmdir()

    def _file(self, folder: str, name: str) -> Path:
        return self._path / folder / (name + SUFFIX)

    def _read_key(self) -> bytes:
        """Return the secret that names are made with; made by whoever comes first."""
        path = self._path / KEY_NAME
        check_own(path)
        draft = path.with_name(f".{KEY_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
        if not path.exists() or path.stat().st_size != KEY_BYTES:
            path.unlink(missing_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            # A link, unlike a rename, does not replace what another one has made meanwhile.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
            draft.unlink()
        return path.read_bytes()


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if entry.is_dir() and not entry.is_symlink()]


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []
