"""The project's own Procfile under the real honcho, with the fake engine in place of a model."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stress.running_pool import alive, wait_until

from tests.support.honcho_stack import Procfile


@pytest.fixture
def stack() -> Iterator[Procfile]:
    """`honcho start -c chat=2,vision=0,embedding=0`."""
    folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))
    stack = Procfile(folder, concurrency="chat=2,vision=0,embedding=0")
    stack.wait_healthy()
    yield stack
    stack.stop()
    stack.check_logs()
    shutil.rmtree(folder)


def test_stack_stays_up_when_an_engine_is_killed(stack: Procfile) -> None:
    """kill -9 of each engine in turn: honcho and the gateway are who they were, every request is answered."""
    gateway = stack.gateway_pid()
    first = set(stack.engines())
    assert len(first) == 2
    for pid in first:
        os.kill(pid, signal.SIGKILL)
        answer = stack.chat("fake: slow@0.01 tokens@20")
        assert answer.status == 200, stack.logs()
    wait_until(lambda: len(set(stack.engines()) - first) == 2, what="two new engines")
    assert stack.honcho.running
    assert stack.gateway_pid() == gateway
    stack.wait_healthy()


def test_everything_ends_in_time_when_honcho_is_told_to(stack: Procfile) -> None:
    """SIGTERM with a stream running: all processes are gone before honcho would have killed them."""
    stack.open_chat("fake: slow@0.05 tokens@2000", stream=True)
    wait_until(lambda: stack.active() == 1)
    pids = [stack.honcho.pid, stack.gateway_pid(), *stack.engines()]
    stack.honcho.signal(signal.SIGTERM)
    stack.honcho.wait(30)
    wait_until(lambda: not any(map(alive, pids)), what="all processes are gone")
    assert "SIGKILL" not in stack.logs()


def test_everything_ends_when_honcho_is_killed(stack: Procfile) -> None:
    """kill -9 of honcho tells nobody, and still leaves no process behind to hold the port or the model's memory."""
    pids = [stack.gateway_pid(), *stack.engines()]
    stack.honcho.signal(signal.SIGKILL)
    stack.honcho.wait(30)
    wait_until(lambda: not any(alive(pid) for pid in pids), what="the processes of a killed honcho are gone")
