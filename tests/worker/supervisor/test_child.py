"""One child process in the hands of a supervisor."""

import os
import queue
import select
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.supervisor.child import Child

Exits = queue.SimpleQueue[tuple[int, str]]
Run = Callable[..., tuple[Child, Exits]]


@pytest.fixture
def run() -> Run:
    """Start Python code as a child; its end arrives in the queue."""

    def run(code: str) -> tuple[Child, Exits]:
        exits: Exits = queue.SimpleQueue()
        command = [sys.executable, "-c", code]
        child = Child(
            lambda fd: [*command, str(fd)], environment=os.environ, on_exit=lambda code, line: exits.put((code, line))
        )
        return child, exits

    return run


def test_last_line_is_reported_with_the_code(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """The words before an end come with it, and stderr is passed on unchanged."""
    _, exits = run("import sys; print('first\\nsecond\\n\\n', file=sys.stderr); sys.exit(3)")
    assert exits.get(timeout=20) == (3, "second")
    assert capfd.readouterr().err == "first\nsecond\n\n\n"


def test_last_line_is_reported_when_stderr_is_passed_on_slowly(
    run: Run, gone: Callable[[int, float], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason of a death is told, however busy the machine is while the engine dies."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reader, os.fdopen(theirs, "wb", buffering=0) as full:
        full.write(bytes(select.PIPE_BUF * 16))
        monkeypatch.setattr("worker.supervisor.child.TAIL_WAIT_S", 20.0)
        monkeypatch.setattr("sys.stderr", full)
        # Two reads of whoever passes it on, who stands still between them.
        child, exits = run("import os, time; os.write(2, b'first\\n'); time.sleep(0.1); os.write(2, b'second\\n')")
        assert gone(child.pid, 20)
        with pytest.raises(queue.Empty):
            exits.get(timeout=0.2)
        reader.read(select.PIPE_BUF * 16)
        assert exits.get(timeout=20) == (0, "second")


def test_long_stderr_is_passed_on_whole(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """More than a pipe holds, without a line end: nothing is lost and the remembered part stays small."""
    _, exits = run("import sys; sys.stderr.write('x' * 300_000)")
    code, last_line = exits.get(timeout=20)
    assert (code, len(last_line)) == (0, 300)
    assert capfd.readouterr().err == "x" * 300_000


def test_end_is_reported_while_a_grandchild_holds_stderr(
    run: Run, reap: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that left the engine's session keeps stderr open; that must not hide or delay a death."""
    monkeypatch.setattr("worker.supervisor.child.TAIL_WAIT_S", 60.0)
    grandchild = "subprocess.Popen(['sleep', '60'], start_new_session=True).pid"
    _, exits = run(f"import subprocess, sys; print({grandchild}, file=sys.stderr); sys.exit(4)")
    code, last_line = exits.get(timeout=20)
    assert code == 4
    os.kill(reap(int(last_line)), 0)


def test_end_takes_grandchildren_along(run: Run, gone: Callable[[int, float], bool]) -> None:
    """Whatever an engine started and left behind ends with it, also where nobody killed the engine."""
    _, exits = run("import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, file=sys.stderr)")
    code, last_line = exits.get(timeout=20)
    assert code == 0
    assert gone(int(last_line), 1)


def test_kill_is_harmless_when_the_child_has_ended(run: Run) -> None:
    """A number that the system may have given to someone else is not signalled."""
    child, exits = run("pass")
    assert exits.get(timeout=20) == (0, "")
    child.kill()
    child.terminate()


def test_lifeline_closes_when_the_child_has_ended(run: Run) -> None:
    """A restart every minute for a year must not run out of descriptors."""
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        _, exits = run("pass")
        exits.get(timeout=20)
    assert len(list(Path("/dev/fd").iterdir())) <= before + 1
