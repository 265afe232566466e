"""Whether the honcho above us still lives, seen from a grandchild as honcho makes them."""

import subprocess
import sys

import pytest

from protocol.parent_watch import command_of, parent_of

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
deadline = time.monotonic() + 20
while watch.alive() and time.monotonic() < deadline:
    time.sleep(0.02)
print("then", watch.alive(), flush=True)
"""


def look(root: str, *, late: bool) -> list[str]:
    script = MIDDLE.format(late=late, look=LOOK.format(root=root))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("\n")[:2]


@pytest.mark.skipif(sys.platform != "linux", reason="init adopts orphans under number 1 here")
def test_death_of_the_one_above_is_seen_when_it_comes_later(pytestconfig: pytest.Config) -> None:
    """Alive at first, gone once the process above the helper has ended, whoever has its number now."""
    assert look(str(pytestconfig.rootpath), late=False) == ["first True", "then False"]


@pytest.mark.skipif(sys.platform != "linux", reason="init adopts orphans under number 1 here")
def test_death_of_the_one_above_is_seen_when_it_came_before(pytestconfig: pytest.Config) -> None:
    """A process that starts when honcho is already dead must not take init for it, and live for ever."""
    assert look(str(pytestconfig.rootpath), late=True) == ["first False", "then False"]


@pytest.mark.skipif(parent_of(1) is None, reason="needs /proc")
def test_command_of_a_process_is_told() -> None:
    """Of ourselves, at least; and nothing of a process that is not there."""
    import os

    assert "python" in command_of(os.getpid())
    assert command_of(2**22 + 1) == ""
