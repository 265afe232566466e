"""Where gateway and workers meet: one run directory per pool, private to its user.

The directory holds the ipc socket and the lock that makes its owner unique (libzmq lets a second
`bind` steal a live ipc path, so the lock is what keeps two gateways apart).
"""

import contextlib
import fcntl
import os
import socket
import sys
from pathlib import Path

from protocol.private import ForeignPathError, check_own, open_private, prepare_folder

SOCKET_NAME = "gateway.ipc"
LOCK_NAME = "gateway.lock"


class AddressError(Exception):
    """The run directory can't be used; the message says what to do."""


def default_run_dir() -> Path:
    """Return `~/.mlx-pool/run`, or `/tmp/mlx-pool-UID` where that is too long for a socket path.

    Not in /tmp: macOS deletes files there that three days have not touched, the lock of a running gateway among them.
    """
    with contextlib.suppress(KeyError, RuntimeError):
        own = Path("~/.mlx-pool/run").expanduser()
        if own.is_absolute() and not _excess(own) and os.access(own.parents[1], os.W_OK):
            return own
    # Safe although shared: `prepare_run_dir` makes it 0700 and refuses one that is somebody else's.
    return Path("/tmp") / f"mlx-pool-{os.getuid()}"  # noqa: S108


def _excess(run_dir: Path) -> int:
    """Return how many bytes may stand in the path of a socket, if that in `run_dir` has more; else 0."""
    most = 103 if sys.platform == "darwin" else 107
    return most if len(os.fsencode(run_dir / SOCKET_NAME)) > most else 0


def prepare_run_dir(path: Path) -> Path:
    """Make the directory, mode 0700, and check that it is ours and short enough. Raises `AddressError`.

    Whoever could lead gateway and workers elsewhere by a symbolic link would have them compute for somebody else.
    """
    path = path.absolute()
    if limit := _excess(path):
        raise AddressError(
            f"{path} is too long for a socket path ({limit} bytes at most): choose a shorter POOL_RUN_DIR"
        )
    try:
        prepare_folder(path)
        for name in (SOCKET_NAME, LOCK_NAME):
            check_own(path / name)
    except ForeignPathError as error:
        raise AddressError(f"{error}: choose another POOL_RUN_DIR") from None
    except OSError as error:
        raise AddressError(f"{path} can't be made ({error.strerror}): choose another POOL_RUN_DIR") from None
    return path


def endpoint(run_dir: Path) -> str:
    """Return the ZeroMQ endpoint inside `run_dir`."""
    return f"ipc://{run_dir.absolute() / SOCKET_NAME}"


class GatewayLock:
    """Held for a gateway's whole life; the system drops it with the process, however that ends."""

    def __init__(self, run_dir: Path) -> None:
        """Take the lock. Raises `AddressError` where another gateway holds it."""
        try:
            self._fd = open_private(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise AddressError(f"the lock can't be taken ({error}): choose another POOL_RUN_DIR") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = not _is_served(run_dir / SOCKET_NAME)
        except OSError:
            alone = False
        if not alone:
            os.close(self._fd)
            raise AddressError(f"another gateway runs in {run_dir}: stop it, or give this pool its own POOL_RUN_DIR")

    def release(self) -> None:
        """Let the next gateway in."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _is_served(path: Path) -> bool:
    """Return whether somebody listens there. The lock does not tell where its file was deleted and made anew."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fsencode(path))
        except OSError:
            return False
    return True
