"""The run directory: private, short enough, one gateway at a time."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.address import AddressError, GatewayLock, default_run_dir, endpoint, prepare_run_dir

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 103 if sys.platform == "darwin" else 107
HOLD = """
import sys
from pathlib import Path
from protocol.address import GatewayLock
lock = GatewayLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """Short, as socket paths have to be."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as path:
        yield Path(path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def holder(run_dir: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait(10)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_directory_is_private_whatever_the_umask(base: Path, umask: int) -> None:
    """Made with mode 0700: nobody else reaches the socket in it."""
    before = os.umask(umask)
    try:
        path = prepare_run_dir(base / "run")
    finally:
        os.umask(before)
    assert mode(path) == 0o700


@pytest.mark.parametrize("open_mode", [0o777, 0o755, 0o710, 0o701])
def test_open_directory_is_closed(base: Path, open_mode: int) -> None:
    """A directory that others may enter is made private, one that is there already included."""
    (base / "run").mkdir()
    (base / "run").chmod(open_mode)
    assert mode(prepare_run_dir(base / "run")) == 0o700


def test_prepared_twice_is_the_same(base: Path) -> None:
    """Gateway and every worker prepare it; what is in it stays."""
    path = prepare_run_dir(base / "run")
    (path / "gateway.lock").touch()
    assert prepare_run_dir(base / "run") == path
    assert (path / "gateway.lock").exists()


def test_directory_of_somebody_else_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another user owns, another user can replace."""
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(AddressError, match=r"belongs to another user.*POOL_RUN_DIR"):
        prepare_run_dir(base)


def test_file_in_its_place_is_refused(base: Path) -> None:
    """A run directory that can't be made is an `AddressError`, not a traceback."""
    (base / "run").write_text("")
    with pytest.raises(AddressError, match="POOL_RUN_DIR"):
        prepare_run_dir(base / "run")
    with pytest.raises(AddressError, match="POOL_RUN_DIR"):
        prepare_run_dir(base / "run" / "below")


STRANGER = 54_321


def foreign_link(path: Path, target: Path) -> None:
    """A symbolic link of another user; only root can make one."""
    if os.getuid():
        pytest.skip("needs root")
    path.symlink_to(target, target_is_directory=True)
    os.lchown(path, STRANGER, STRANGER)


@pytest.mark.parametrize("below", ["", "pool/run"])
def test_link_of_somebody_else_is_refused_and_what_it_leads_to_is_left_alone(base: Path, below: str) -> None:
    """In the place of the run directory, or above it: nothing is followed, made or closed."""
    (base / "documents").mkdir(mode=0o755)
    (base / "documents").chmod(0o755)
    foreign_link(base / "run", base / "documents")
    with pytest.raises(AddressError, match=r"is a symbolic link of another user: choose another POOL_RUN_DIR"):
        prepare_run_dir(base / "run" / below)
    assert mode(base / "documents") == 0o755
    assert not [*(base / "documents").iterdir()]


def test_folder_of_somebody_else_is_left_alone(base: Path) -> None:
    """Refused, by root, too, which could change it."""
    (base / "theirs").mkdir()
    (base / "theirs").chmod(0o755)
    if os.getuid():
        pytest.skip("needs root")
    os.chown(base / "theirs", STRANGER, STRANGER)
    with pytest.raises(AddressError, match="belongs to another user"):
        prepare_run_dir(base / "theirs")
    assert mode(base / "theirs") == 0o755


def test_link_of_ones_own_is_followed(base: Path) -> None:
    """Who keeps the folder elsewhere may say so; what it leads to is private then."""
    (base / "disk").mkdir(mode=0o755)
    (base / "run").symlink_to("disk/../disk/run")
    assert prepare_run_dir(base / "run") == base / "run"
    assert mode(base / "disk" / "run") == 0o700
    (base / "loop").symlink_to("loop")
    with pytest.raises(AddressError, match="without end"):
        prepare_run_dir(base / "loop")


def test_folder_that_everybody_shares_is_refused(base: Path) -> None:
    """Root, above all, must not close `/tmp` to all others. Tried on a folder like it: a fault must do no harm."""
    path = base / "tmp"
    path.mkdir()
    path.chmod(0o1777)
    with pytest.raises(AddressError, match="shared by all users"):
        prepare_run_dir(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o1777


@pytest.mark.parametrize("name", ["gateway.ipc", "gateway.lock"])
def test_link_in_the_place_of_socket_or_lock_is_refused(base: Path, name: str) -> None:
    """Planted while the folder was open to others: it leads nowhere, and what it leads to stays whole."""
    precious = base / "precious"
    precious.write_text("content")
    (base / "run").mkdir()
    (base / "run" / name).symlink_to(precious)
    with pytest.raises(AddressError, match=rf"{name} is a symbolic link.*remove it"):
        prepare_run_dir(base / "run")
    if name == "gateway.lock":
        with pytest.raises(AddressError, match="symbolic link"):
            GatewayLock(base / "run")
    assert precious.read_text() == "content"


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_length_is_checked_in_bytes(base: Path, letter: str) -> None:
    """A socket path of exactly the system's limit is taken, one byte more is refused before anything is made."""
    room = LIMIT - len(os.fsencode(base / "gateway.ipc")) - 1
    name = letter * (room // len(letter.encode()))
    name += "y" * (room - len(name.encode()))
    assert len(os.fsencode(prepare_run_dir(base / name) / "gateway.ipc")) == LIMIT
    with pytest.raises(AddressError, match=f"{LIMIT} bytes at most.*POOL_RUN_DIR"):
        prepare_run_dir(base / f"{name}z")
    assert not (base / f"{name}z").exists()


def test_longest_path_can_be_bound(base: Path) -> None:
    """The limit is the system's own: a socket does open there."""
    import zmq

    room = LIMIT - len(os.fsencode(base / "gateway.ipc")) - 1
    run_dir = prepare_run_dir(base / ("x" * room))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint(run_dir))
        assert (run_dir / "gateway.ipc").exists()


def test_relative_path_means_the_same_for_everyone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint is absolute: gateway and worker may be started anywhere."""
    monkeypatch.chdir(base)
    assert prepare_run_dir(Path("run")) == base / "run"
    assert endpoint(Path("run")) == f"ipc://{base}/run/gateway.ipc"


def test_default_is_ones_own_and_outside_tmp(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the home folder; where that gives no path for a socket, or none that may be made, a short one by user."""
    monkeypatch.setenv("HOME", str(base))
    assert default_run_dir() == base / ".mlx-pool" / "run"
    assert prepare_run_dir(default_run_dir()).stat().st_mode & 0o777 == 0o700
    for home in (str(base / ("long" * 20)), "/nonexistent", "relative"):
        monkeypatch.setenv("HOME", home)
        assert default_run_dir() == Path(f"/tmp/mlx-pool-{os.getuid()}")
        assert len(os.fsencode(default_run_dir() / "gateway.ipc")) < 60


async def test_second_gateway_is_refused_when_the_lock_was_deleted(base: Path) -> None:
    """A cleaner of temporary files takes the lock and leaves the socket: whoever listens there is asked."""
    first = GatewayLock(base)
    server = await asyncio.start_unix_server(lambda *_: None, base / "gateway.ipc")
    (base / "gateway.lock").unlink()
    with pytest.raises(AddressError, match="another gateway runs in"):
        GatewayLock(base)
    server.close()
    GatewayLock(base).release()
    first.release()


def test_second_gateway_is_refused(base: Path) -> None:
    """The lock is exclusive, in this process and between processes, until it is released."""
    lock = GatewayLock(base)
    with pytest.raises(AddressError, match=r"another gateway runs in.*POOL_RUN_DIR"):
        GatewayLock(base)
    other = subprocess.run(
        [sys.executable, "-c", HOLD, str(base)], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert other.returncode != 0
    assert "AddressError" in other.stderr
    lock.release()
    GatewayLock(base).release()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_lock_dies_with_its_process(base: Path, number: signal.Signals) -> None:
    """Held against us while its process lives, free as soon as it is gone, however it went."""
    process = holder(base)
    with pytest.raises(AddressError):
        GatewayLock(base)
    end(process, number)
    GatewayLock(base).release()


def test_refused_gateway_leaves_the_lock_alone(base: Path) -> None:
    """Being refused does not free the lock that somebody else holds."""
    process = holder(base)
    for _ in range(3):
        with pytest.raises(AddressError):
            GatewayLock(base)
    assert process.poll() is None
    end(process, signal.SIGKILL)
