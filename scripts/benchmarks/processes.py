"""What is measured, as processes: the pool, mlx-lm's server, mlx-lm in a process of its own. Ended by pid."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from benchmarks.client import Server

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own for as long as the block lasts."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(8)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_for(url: str, log: Path) -> None:
    """Wait until the address answers 200."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urlopen(url, timeout=2) as answer:  # noqa: S310 - our own address
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing answers at {url}; its log ends:\n{log.read_text()[-2000:]}")


class Pool:
    """A running gateway with one worker."""

    def __init__(self, port: int, gateway: int, supervisor: int) -> None:
        self.port = port
        self.server = Server(name="pool", port=port)
        self.gateway = gateway
        self.supervisor = supervisor


@contextlib.contextmanager
def pool(*worker: str) -> Iterator[Pool]:
    """Run the pool with one worker of these flags for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as folder, contextlib.ExitStack() as stack:
        port, run_dir = free_port(), str(Path(folder) / "run")
        logs = [Path(folder) / "gateway.log", Path(folder) / "worker.log"]
        command = [sys.executable, "-m", "gateway", "--port", str(port), "--log-level", "warning"]
        gateway = stack.enter_context(process(command, logs[0], POOL_RUN_DIR=run_dir))
        command = [sys.executable, "-m", "worker", "--log-level", "warning", *worker]
        supervisor = stack.enter_context(process(command, logs[1], POOL_RUN_DIR=run_dir, POOL_SPARE="false"))
        wait_for(f"http://127.0.0.1:{port}/health", logs[1])
        yield Pool(port, gateway.pid, supervisor.pid)


@contextlib.contextmanager
def mlx_lm_server(folder: Path) -> Iterator[Server]:
    """Run mlx-lm's own server."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as logs:
        port, log = free_port(), Path(logs) / "server.log"
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]
        command += ["--log-level", "ERROR", "--decode-concurrency", "32", "--prompt-concurrency", "32"]
        with process(command, log):
            wait_for(f"http://127.0.0.1:{port}/health", log)
            yield Server(name="mlx_lm.server", port=port)


@contextlib.contextmanager
def mlx_vlm_server(python: str, folder: Path) -> Iterator[Server]:
    """Run mlx-vlm's own server by a Python that has all of its packages."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as logs:
        port, log = free_port(), Path(logs) / "server.log"
        command = [python, "-m", "mlx_vlm.server", "--model", str(folder), "--port", str(port), "--host", "127.0.0.1"]
        with process([*command, "--log-level", "ERROR"], log):
            wait_for(f"http://127.0.0.1:{port}/health", log)
            yield Server(name="mlx_vlm.server", port=port, model=str(folder))


def running(url: str, model: str | None) -> Server:
    """Return a server that runs already, its key from `BENCH_KEY`; no `model` means the first it names."""
    parts, key = urlsplit(url.rstrip("/")), os.environ.get("BENCH_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SystemExit(f"--against {url}: not an address like http://127.0.0.1:8080/v1")
    if model is None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with urlopen(Request(f"{url.rstrip('/')}/models", headers=headers), timeout=10) as answer:  # noqa: S310
                model = json.load(answer)["data"][0]["id"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            hint = "does the address end in /v1? Else say --against-model"
            raise SystemExit(f"--against {url}: it names no models ({error!r}); {hint}") from error
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return Server(
        name=f"{parts.hostname}:{port}", host=parts.hostname, port=port, tls=tls, root=parts.path, model=model, key=key
    )


class Direct:
    """A process that answers one measurement at a time; see `benchmarks.direct.serve`."""

    def __init__(self, started: subprocess.Popen[str]) -> None:
        self._started = started

    def measure(self, **asked: Any) -> float:
        """Return tokens, or texts, per second."""
        if self._started.stdin is None or self._started.stdout is None:
            raise RuntimeError("started without pipes")
        self._started.stdin.write(json.dumps(asked) + "\n")
        self._started.stdin.flush()
        return float(json.loads(self._started.stdout.readline()))


@contextlib.contextmanager
def direct(module: str = "benchmarks.direct") -> Iterator[Direct]:
    """Run a library, called directly, in a process of its own for as long as the block lasts."""
    command = [sys.executable, "-m", module]
    path = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    with subprocess.Popen(command, env=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield Direct(started)
        started.terminate()


def resident_bytes(pid: int) -> int:
    """Return what a process holds in memory now."""
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(answer.stdout) * 1024


def children(pid: int) -> list[int]:
    """Return the process ids below a process."""
    answer = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in answer.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]
