"""A gateway's end of the wire for one engine process, and engine processes to hold on to."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from protocol import codec
from protocol.address import endpoint
from protocol.messages import Hello, ToGateway, ToWorker
from worker.config import WorkerConfig
from worker.process.launch import engine_command

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 60.0


class Gateway:
    """A ROUTER that says only what a test tells it to, and keeps all it hears, as (epoch, message)."""

    def __init__(self, run_dir: Path, epoch: int = 7) -> None:
        self.epoch = epoch
        self.peer = b""
        self.heard: list[tuple[int, ToGateway]] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint(run_dir))

    def listen(self, timeout_s: float = PATIENCE_S) -> bool:
        """Take in one envelope; False if none comes."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return False
        self.peer, frame = self._socket.recv_multipart()
        envelope = codec.decode_to_gateway(frame)
        self.heard += [(envelope.epoch, message) for message in envelope.messages]
        return True

    def wait_until(
        self, kind: type[Any], want: Callable[[Any], bool] = lambda _: True, *, timeout_s: float = PATIENCE_S
    ) -> Any:
        """Listen for the first message of a kind that is wanted, among what has not been looked at yet."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self.heard:
                _, message = self.heard.pop(0)
                if isinstance(message, kind) and want(message):
                    return message
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self.listen(left_s):
                raise AssertionError(f"no such {kind.__name__}")

    def greet(self) -> None:
        """Wait for whoever is there and say hello."""
        while not self.peer:
            assert self.listen()
        self.send(Hello(os.getpid()))

    def send(self, *messages: ToWorker, epoch: int | None = None) -> None:
        self.send_raw(codec.encode(messages, epoch=self.epoch if epoch is None else epoch))

    def send_raw(self, *frames: bytes) -> None:
        self._socket.send_multipart([self.peer, *frames])

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, as socket paths have to be."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def gateway_at(run_dir: Path) -> Iterator[Callable[..., Gateway]]:
    """Open a gateway's socket, as the run of the given epoch."""
    with contextlib.ExitStack() as stack:

        def open_gateway(epoch: int = 7) -> Gateway:
            gateway = Gateway(run_dir, epoch)
            stack.callback(gateway.close)
            return gateway

        yield open_gateway


@pytest.fixture
def gateway(gateway_at: Callable[..., Gateway]) -> Gateway:
    return gateway_at()


class EngineProcess:
    """One engine process, without a supervisor: this test holds its lifeline."""

    def __init__(self, run_dir: Path, engine: str) -> None:
        config = WorkerConfig(model_path="none", served_name="m", engine=engine, run_dir=run_dir)
        read_end, self.lifeline = os.pipe()
        self.process = subprocess.Popen(
            engine_command(config, "uid1", read_end),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=(read_end,),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)
        self.pid = self.process.pid

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def cut_lifeline(self) -> None:
        os.close(self.lifeline)
        self.lifeline = -1

    def cpu_s(self) -> float:
        """Processor time that its threads have used, from /proc: exact, where `stat` counts in hundredths."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@pytest.fixture
def engine_process(run_dir: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Start engine processes; whatever is left of them at the end is killed."""
    started: list[EngineProcess] = []

    def start(engine: str = "worker.engines.fake:FakeEngine") -> EngineProcess:
        started.append(EngineProcess(run_dir, engine))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        if one.lifeline >= 0:
            os.close(one.lifeline)
