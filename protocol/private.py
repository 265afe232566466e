"""Folders and files that must be this user's own: who else can replace one, can speak in our name or read what is ours.

What is ours is made private; what is somebody else's is refused, and never changed.
"""

import contextlib
import os
import stat
from pathlib import Path

OTHERS = 0o077
"""What others may do with a folder."""
WRITING = 0o022
"""What lets others add to a folder, or replace what is in it."""
MOST_LINKS = 40
_ROOT = 0


class ForeignPathError(OSError):
    """A path can't be used since it is not ours alone. One sentence, for who configured it."""


def prepare_folder(path: Path, *, close: int = OTHERS) -> Path:
    """Make a folder, and what is missing above it, mode 0700; take from one that is there the rights in `close`.

    Returns its absolute path, symbolic links resolved. A link of ours or of root is followed, anybody else's refused,
    as is a folder that is not ours, or that everybody shares (as `/tmp`). Raises `OSError`.
    """
    place = _walk(path.absolute())
    # Through a descriptor: what is looked at is what is changed.
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid():
            raise ForeignPathError(f"{path} belongs to another user")
        if status.st_mode & stat.S_ISVTX or place == place.parent:
            raise ForeignPathError(f"{path} is shared by all users")
        if status.st_mode & close:
            os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~close)
    finally:
        os.close(fd)
    return place


def open_private(path: Path, flags: int) -> int:
    """Open a file of ours, mode 0600, with `os.open`'s `flags`; what is there is made private. Raises `OSError`.

    A symbolic link, a file of somebody else, or what is no file at all is refused.
    """
    try:
        # Not blocking: a named pipe that lies there would hold us up for ever.
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise ForeignPathError(f"{path} is a symbolic link: remove it") from error
        raise
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
            raise ForeignPathError(f"{path} is no file of this user: remove it")
        if status.st_mode & OTHERS:
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_own(path: Path) -> None:
    """Raise `ForeignPathError` where there is something at `path`, and it is a symbolic link or somebody else's."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid():
            raise ForeignPathError(f"{path} is a symbolic link, or belongs to another user: remove it")


def _walk(path: Path) -> Path:
    """Make what is missing of an absolute path; returns where it leads."""
    place, rest, links = Path(path.anchor), list(path.parts[1:]), 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            place = place.parent
            continue
        here = place / part
        with contextlib.suppress(FileExistsError):
            if not os.path.lexists(here):
                here.mkdir(mode=0o700)
        status = here.lstat()
        if not stat.S_ISLNK(status.st_mode):
            place = here
            continue
        if status.st_uid not in (_ROOT, os.getuid()):
            raise ForeignPathError(f"{here} is a symbolic link of another user")
        links += 1
        if links > MOST_LINKS:
            raise ForeignPathError(f"{path} holds symbolic links without end")
        target = here.readlink()
        rest = [*(target.parts[1:] if target.is_absolute() else target.parts), *rest]
        place = Path(target.anchor) if target.is_absolute() else place
    return place
