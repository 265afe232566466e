"""Where gateway and workers meet: one run directory per pool, private to its user.

The directory holds the ipc socket and the lock that makes its owner unique (libzmq lets a second
`bind` steal a live ipc path, so the lock is what keeps two gateways apart).
"""

import fcntl
import os
import sys
from pathlib import Path

SOCKET_NAME = "gateway.ipc"
LOCK_NAME = "gateway.lock"


class AddressError(Exception):
    """The run directory can't be used; the message says what to do."""


def default_run_dir() -> Path:
    """`/tmp/mlx-pool-UID`: short on purpose, macOS's own temporary folder is too long for a socket path."""
    # Safe although shared: `prepare_run_dir` makes it 0700 and refuses one that is somebody else's.
    return Path("/tmp") / f"mlx-pool-{os.getuid()}"  # noqa: S108


def prepare_run_dir(path: Path) -> Path:
    """Make the directory, mode 0700, and check that it is ours and short enough. Raises `AddressError`."""
    path = path.absolute()
    limit = 103 if sys.platform == "darwin" else 107
    if len(os.fsencode(path / SOCKET_NAME)) > limit:
        raise AddressError(
            f"{path} is too long for a socket path ({limit} bytes at most): choose a shorter POOL_RUN_DIR"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AddressError(f"{path} can't be made ({error.strerror}): choose another POOL_RUN_DIR") from None
    status = path.stat()
    if status.st_uid != os.getuid():
        raise AddressError(f"{path} belongs to another user: choose another POOL_RUN_DIR")
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def endpoint(run_dir: Path) -> str:
    """The ZeroMQ endpoint inside `run_dir`."""
    return f"ipc://{run_dir.absolute() / SOCKET_NAME}"


class GatewayLock:
    """Held for a gateway's whole life; the system drops it with the process, however that ends."""

    def __init__(self, run_dir: Path) -> None:
        """Take the lock. Raises `AddressError` where another gateway holds it."""
        self._file = (run_dir / LOCK_NAME).open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise AddressError(
                f"another gateway runs in {run_dir}: stop it, or give this pool its own POOL_RUN_DIR"
            ) from None

    def release(self) -> None:
        """Let the next gateway in."""
        self._file.close()
