"""Whether the honcho above us still lives, seen from a grandchild as honcho makes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.parent_watch import HELPER, command_of, parent_of

# honcho forks a helper, the helper starts us: here `middle` forks and its child starts one that looks. With `late`,
# that is only after the end of `middle`; else `middle` ends only after the first look.
MIDDLE = """
import os, subprocess, sys, time
middle, (looked, look) = os.getpid(), os.pipe()
if os.fork():
    if not {late}:
        os.read(looked, 1)
    os._exit(0)
while {late} and os.getppid() == middle:
    time.sleep(0.01)
subprocess.run([sys.executable, "-c", {look!r}, str(look)], pass_fds=[look])
"""
LOOK = """
import os, sys, time
sys.path.insert(0, {root!r})
from protocol.parent_watch import ParentWatch
watch = ParentWatch()
print("first", watch.alive(), flush=True)
os.write(int(sys.argv[1]), b"l")
deadline = time.monotonic() + {patience_s}
while watch.alive() and time.monotonic() < deadline:
    time.sleep(0.02)
print("then", watch.alive(), flush=True)
"""


def look(root: str, folder: Path, *, late: bool, name: str = "honcho") -> list[str]:
    """Have `middle` run under a name, and a process below it look."""
    script = folder / name
    script.write_text(MIDDLE.format(late=late, look=LOOK.format(root=root, patience_s=20 if name == "honcho" else 0.5)))
    command = [sys.executable, str(script), "start"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("\n")[:2]


@pytest.mark.skipif(sys.platform != "linux", reason="init adopts orphans under number 1 here")
def test_death_of_the_one_above_is_seen_when_it_comes_later(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """Alive at first, gone once the process above the helper has ended, whoever has its number now."""
    assert look(str(pytestconfig.rootpath), tmp_path, late=False) == ["first True", "then False"]


@pytest.mark.skipif(sys.platform != "linux", reason="init adopts orphans under number 1 here")
def test_death_of_the_one_above_is_seen_when_it_came_before(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """A process that starts when honcho is already dead must not take init for it, and live for ever."""
    assert look(str(pytestconfig.rootpath), tmp_path, late=True) == ["first False", "then False"]


@pytest.mark.skipif(parent_of(1) is None, reason="needs /proc")
def test_command_of_a_process_is_told() -> None:
    """Of ourselves, at least; and nothing of a process that is not there."""
    import os

    assert "python" in command_of(os.getpid())
    assert command_of(2**22 + 1) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="init adopts orphans under number 1 here")
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("name", ["supervisord", "systemd", "not-honcho", "honcho.conf"])
def test_process_stays_when_no_honcho_started_it(
    pytestconfig: pytest.Config, tmp_path: Path, name: str, late: bool
) -> None:
    """A service manager that init is the parent of, and one that goes: neither is a honcho that was killed."""
    assert look(str(pytestconfig.rootpath), tmp_path, late=late, name=name) == ["first True", "then True"]


@pytest.mark.parametrize(
    ("command", "helps"),
    [
        ("/home/pool/.venv/bin/python /home/pool/.venv/bin/honcho start -c chat=2", True),
        ("python3 -m honcho -f Procfile start", True),
        ("/usr/bin/python3 -c from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5)", True),
        ("python -c from multiprocessing.forkserver import main; main(3, 5, ['__main__'])", True),
        ("/usr/lib/systemd/systemd --user", False),
        ("/sbin/init", False),
        ("/usr/bin/python3 /usr/bin/supervisord -c /etc/supervisor/honcho.conf", False),
        ("runsv mlx-pool-chat-1", False),
        ("/bin/bash -l", False),
        ("", False),
    ],
)
def test_helper_of_honcho_is_known_by_its_command(command: str, helps: bool) -> None:
    """As each way of starting processes writes it; a path with honcho's name in it is none."""
    assert bool(HELPER.search(command)) is helps
