"""Real supervisor processes around stub engines, and a gateway's end of the wire to watch them by."""

import contextlib
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import zmq

from protocol import codec
from protocol.address import endpoint
from protocol.messages import Hello, Supervision, ToWorker

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 60.0


def gone_within(pid: int, seconds: float) -> bool:
    """Whether process `pid` ends in time (a zombie has ended)."""
    try:
        fd = os.pidfd_open(pid) if sys.platform == "linux" else _kqueue_of(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def _kqueue_of(pid: int) -> int:
    """A descriptor that becomes readable when `pid` exits, on macOS."""
    watch = select.kqueue()
    watch.control([select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)], 0)
    return os.dup(watch.fileno())


class Program:
    """A started command whose output is read line by line."""

    def __init__(self, command: Sequence[str], **options: object) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
        self.pid = self.process.pid
        self.seen: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self._lines.put(line.rstrip())
        self._lines.put(None)

    def line(self, pattern: str) -> re.Match[str]:
        """The next line that matches."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"no line {pattern!r} in {self.seen}"
            self.seen.append(line)
            if match := re.search(pattern, line):
                return match

    def engine_pid(self) -> int:
        """The next engine that says it is ready."""
        return int(self.line(r"engine ready (\d+)$")[1])

    def end(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


class Gateway:
    """A ROUTER that greets each supervisor once and keeps what they report."""

    def __init__(self, run_dir: Path, epoch: int) -> None:
        self.epoch = epoch
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint(run_dir))
        self.peer = b""
        self.reported_epoch = -1

    def report(self, want: Callable[[Supervision], bool] = lambda _: True) -> Supervision:
        """The next report that is wanted; greets whoever is new."""
        deadline = time.monotonic() + PATIENCE_S
        while self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            peer, frame = self._socket.recv_multipart()
            if b"/sup/" not in peer:
                continue  # an engine process speaks for itself
            envelope = codec.decode_to_gateway(frame)
            self.reported_epoch = envelope.epoch
            if peer != self.peer:
                self.peer = peer
                self.send(Hello(os.getpid()))
            [report] = envelope.messages
            assert isinstance(report, Supervision)
            if want(report):
                return report
        raise AssertionError("no such report")

    def send(self, message: ToWorker, epoch: int | None = None) -> None:
        self.send_raw(codec.encode([message], epoch=self.epoch if epoch is None else epoch))

    def send_raw(self, frame: bytes) -> None:
        self._socket.send_multipart([self.peer, frame])

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, as socket paths have to be."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def gateway_at(run_dir: Path) -> Iterator[Callable[[int], Gateway]]:
    """Open a gateway's socket, as the gateway run of the given epoch."""
    gateways: list[Gateway] = []

    def open_gateway(epoch: int) -> Gateway:
        gateways.append(Gateway(run_dir, epoch))
        return gateways[-1]

    yield open_gateway
    for gateway in gateways:
        gateway.close()


@pytest.fixture
def gateway(gateway_at: Callable[[int], Gateway]) -> Gateway:
    return gateway_at(7)


@pytest.fixture
def gone() -> Callable[[int, float], bool]:
    return gone_within


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Start programs; whatever of them is left at the end is killed."""
    programs: list[Program] = []

    def start(*command: str, **options: object) -> Program:
        programs.append(Program(command, **options))
        return programs[-1]

    yield start
    for program in programs:
        if program.process.poll() is None:
            program.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(1)
            program.process.kill()
            program.process.wait()


@pytest.fixture
def supervise(start: Callable[..., Program], run_dir: Path) -> Callable[..., Program]:
    """Start a supervisor of stub engines that `act`."""

    def supervise(act: str = "run", drain_s: float = 4.0) -> Program:
        return start(*stubbed(run_dir, act, drain_s), env={**os.environ, "PYTHONPATH": str(ROOT)})

    return supervise


def stubbed(run_dir: Path, act: str = "run", drain_s: float = 4.0) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("stubbed.py")), str(run_dir), act, str(drain_s)]


@pytest.fixture
def reap() -> Iterator[Callable[[int], int]]:
    """Note a process that a test leaves behind on purpose; it is killed at the end."""
    pids: list[int] = []

    def note(pid: int) -> int:
        pids.append(pid)
        return pid

    yield note
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
