"""Supervisors under the real honcho: one engine's death is no reason to stop, and the end is the end of all."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.parent_watch import parent_of

ROOT = Path(__file__).resolve().parents[3]
SLEEPER = "import os, signal; print('dummy ready', os.getpid(), flush=True); signal.pause()"


@pytest.fixture
def honcho(start: Callable[..., Any], run_dir: Path, tmp_path: Path) -> Any:
    """honcho with one supervisor of stub engines and a process that only waits."""
    stubbed = [sys.executable, str(Path(__file__).with_name("stubbed.py")), str(run_dir), "run"]
    lines = {"chat": stubbed, "dummy": [sys.executable, "-c", SLEEPER]}
    procfile = tmp_path / "Procfile"
    procfile.write_text("".join(f"{name}: exec {shlex.join(command)}\n" for name, command in lines.items()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return start(sys.executable, "-m", "honcho", "-f", str(procfile), "-d", str(tmp_path), "start", env=environment)


def test_killed_engine_does_not_stop_honcho(honcho: Any, gone: Callable[[int, float], bool]) -> None:
    """kill -9 of an engine: honcho lives, the log explains, a new engine is up. Then SIGTERM: all gone."""
    first = honcho.engine_pid()
    os.kill(first, signal.SIGKILL)
    honcho.line("likely out of memory.*starting it again at once")
    second = honcho.engine_pid()
    assert first != second
    assert honcho.process.poll() is None
    honcho.end(signal.SIGTERM)
    assert gone(second, 10)
    with pytest.raises(AssertionError):
        honcho.line("SIGKILL")


def test_killed_supervisor_takes_its_engine_with_it(honcho: Any, gone: Callable[[int, float], bool]) -> None:
    """kill -9 of a supervisor: honcho stops the rest, and no engine is left."""
    pid = honcho.engine_pid()
    supervisor = parent_of(pid)
    os.kill(supervisor, signal.SIGKILL)
    assert gone(pid, 10)
    honcho.process.wait(10)


def test_killed_honcho_takes_supervisors_and_engines_with_it(
    honcho: Any, gone: Callable[[int, float], bool], reap: Callable[[int], int]
) -> None:
    """kill -9 of honcho itself: its helpers live on, supervisors notice all the same."""
    seen = {"engine": 0, "dummy": 0}
    while not all(seen.values()):
        ready = honcho.line(r"(engine|dummy) ready (\d+)$")
        seen[ready[1]] = reap(int(ready[2]))
    honcho.end(signal.SIGKILL)
    assert gone(seen["engine"], 4)
