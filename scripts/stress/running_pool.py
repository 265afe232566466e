"""A whole pool as its users run it: the gateway and its supervised workers as processes, real sockets, real logs.

Everything is started and ended here, by process id, in a short run directory of its own. `check_logs` is what makes
a test fail for what only the logs show: tracebacks, warnings, tasks whose exception nobody saw. Logs are thrown away
only after they were searched for every key that anyone used (`key_traces`).
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from stress import key_traces
from stress.waiting import PATIENCE_S as PATIENCE_S
from stress.waiting import starved_s
from stress.waiting import wait_until as wait_until

ROOT = Path(__file__).resolve().parents[2]
FAKE = ("--engine", "worker.engines.fake:FakeEngine", "--model-path", "fake")
STOP_S = 30.0
BAD_LINES = re.compile(
    r"never retrieved|never awaited|Traceback|Exception ignored|Task was destroyed|Unclosed|\b\w*Warning:|"
    r"Unhandled error|socket\.send\(\) raised|Fatal Python error"
)


def alive(pid: int) -> bool:
    """Return whether a process still runs (a zombie does not)."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and not found.stdout.strip().startswith("Z")


def children(pid: int) -> list[int]:
    """Return the process ids of the children of `pid`."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in found.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all processes below `pid`, by process id."""
    # Whole lines: without -ww they end where `COLUMNS` says, which some library may have set.
    found = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [(int(child), int(parent), args) for child, parent, args in map(_row, found.stdout.splitlines())]
    family = {pid}
    while more := {child for child, parent, _ in rows if parent in family} - family:
        family |= more
    return {child: args for child, _, args in rows if child in family - {pid}}


def _row(line: str) -> tuple[str, str, str]:
    child, parent, *args = line.split(maxsplit=2)
    return child, parent, "".join(args)


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in use."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(found.stdout) * 1024


def open_files(pid: int) -> int:
    """Count the file descriptors that a process holds (Linux only)."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """A whole HTTP answer."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        """Parse the body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of a refusal."""
        error: dict[str, Any] = self.json()["error"]
        return error


class Program:
    """One process whose output goes to a file."""

    def __init__(self, name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._seen = 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def text(self) -> str:
        """Return all that it wrote."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is somebody to get it."""
        if self.running:
            self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Wait for its end; returns the exit code."""
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL to what does not obey."""
        self.signal(signal.SIGTERM)
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.wait()

    def check_keys(self) -> None:
        """Fail for any key in what it wrote."""
        found = key_traces.traces(self.text())
        assert not found, f"keys in the log of {self.name}: {found[:5]}"

    def check_log(self, allowed: str) -> list[str]:
        """Return what no healthy run wrote since the last check, but for what matches `allowed`."""
        new = self.log.read_bytes()[self._seen :]
        self._seen += len(new)
        lines = new.decode(errors="replace").splitlines()
        bad = [at for at, line in enumerate(lines) if BAD_LINES.search(line)]
        found = ["\n".join([self.name, *lines[max(0, at - 2) : at + 30]]) for at in bad]
        return [text for text in found if not (allowed and re.search(allowed, text))]


class Api:
    """The HTTP side of a pool that listens on `port`."""

    def __init__(self) -> None:
        self.port = 0
        self._connections: list[socket.socket] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What OpenAI clients are given."""
        return f"{self.url}/v1"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> HttpAnswer:
        """Send one request on a connection of its own. `body`: bytes as they are, anything else as JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        key_traces.sent(path, headers or {})
        try:
            given: dict[str, str] = {}
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            if body is not None:
                given["Content-Type"] = "application/json"
            connection.request(method, path, body, {**given, **(headers or {})})
            response = connection.getresponse()
            return HttpAnswer(status=response.status, headers=response.headers, body=response.read())
        finally:
            connection.close()

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> HttpAnswer:
        """Send a GET request."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None) -> HttpAnswer:
        """Send a POST request."""
        return self.request("POST", path, body, headers=headers)

    def post_chunked(self, path: str, body: bytes) -> HttpAnswer:
        """Send a POST request of JSON whose length is not told in advance."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            chunks = iter([body[at : at + 65536] for at in range(0, len(body), 65536)])
            with contextlib.suppress(ConnectionError):  # refused before all was sent
                connection.request("POST", path, chunks, {"Content-Type": "application/json"}, encode_chunked=True)
            response = connection.getresponse()
            return HttpAnswer(status=response.status, headers=response.headers, body=response.read())
        finally:
            connection.close()

    def chat(self, content: str = "hello", **fields: Any) -> HttpAnswer:
        """Send a chat completion of one user message."""
        return self.post("/v1/chat/completions", chat_body(content, **fields))

    def open(self, path: str, body: Any) -> socket.socket:
        """Send a request on a connection of its own, and read nothing. It is closed at the test's end."""
        key_traces.sent(path, {})
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self._connections.append(connection)
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection

    def open_chat(self, content: str, **fields: Any) -> socket.socket:
        """Send a chat request on a connection of its own, and read nothing."""
        return self.open("/v1/chat/completions", chat_body(content, **fields))

    def hang_up(self) -> None:
        """Close all connections that `open` made."""
        while self._connections:
            self._connections.pop().close()

    def healthy(self) -> bool:
        """Return whether `/health` answers 200."""
        try:
            return self.get("/health").status == 200
        except (OSError, HTTPException):
            return False

    def wait_healthy(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every model is up."""
        wait_until(self.healthy, timeout_s=timeout_s, what="the pool is healthy", every_s=0.02)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over all its labels; -1 where it has no sample."""
        text = self.get("/metrics").body.decode()
        samples = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        ]
        return sum(samples) if samples else -1.0

    def queue(self) -> dict[str, Any]:
        """Return the totals of `/v1/queue/stats`."""
        stats: dict[str, Any] = self.get("/v1/queue/stats").json()["queue_stats"]
        return stats

    def active(self) -> int:
        """Return how many requests are at workers."""
        return int(self.queue()["active_requests"])

    def waiting(self) -> int:
        """Return how many requests wait for a worker."""
        return int(self.queue()["queue_size"])

    def replicas(self, headers: Mapping[str, str] | None = None) -> int:
        """Count the workers that take requests, of all models."""
        return sum(model["replicas"] for model in self.get("/health", headers=headers).json()["models"])

    def idle(self) -> bool:
        """Return whether nothing runs and nothing waits, by the gateway's own count."""
        stats = self.queue()
        return stats["active_requests"] == 0 and stats["queue_size"] == 0


class RunningPool(Api):
    """A gateway with workers. `workers` are the argument lists of `python -m worker`, one supervisor each."""

    def __init__(
        self,
        *workers: Sequence[str],
        gateway: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))
        self._environment = {
            "POOL_RUN_DIR": str(self.folder / "run"),
            "POOL_DATA_DIR": str(self.folder / "data"),
            "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # One more process for each worker would take its time from the tests.
            "POOL_SPARE": "false",
            **(environment or {}),
        }
        key_traces.shown(self._environment.get("POOL_API_KEY", ""))
        self._gateway_flags = [*gateway]
        self.programs: list[Program] = []
        self.supervisors: list[Program] = []
        try:
            self.start_gateway()
            for flags in workers:
                self.add_worker(flags)
        except BaseException:
            self.stop()
            self.remove()
            raise

    # -- processes ---------------------------------------------------------

    def start(self, name: str, *command: str) -> Program:
        """Start any Python program in this pool's environment."""
        program = Program(name, [sys.executable, *command], folder=self.folder, environment=self._environment)
        self.programs.append(program)
        return program

    def start_gateway(self) -> None:
        """Start a gateway, on the port that the last one had, and wait until it listens."""
        name = f"gateway-{sum(program.name.startswith('gateway') for program in self.programs)}"
        flags = ["--port", str(self.port), "--log-level", "info", *self._gateway_flags]
        self.gateway = gateway = self.start(name, "-W", "error", "-m", "gateway", *flags)

        def listening() -> re.Match[str] | None:
            assert gateway.running, gateway.text()
            return re.search(r"Running on http://127\.0\.0\.1:(\d+)", gateway.text())

        found = wait_until(listening, what="the gateway listens", starved_s=lambda: starved_s(gateway.pid))
        self.port = int(found[1])

    def add_worker(self, flags: Sequence[str]) -> Program:
        """Start one more supervisor."""
        supervisor = self.start(f"worker-{len(self.supervisors)}", "-m", "worker", *flags)
        self.supervisors.append(supervisor)
        return supervisor

    def engine_pid(self, worker: int = 0) -> int:
        """Return the engine process that a supervisor started last; 0 where that is gone."""
        started = re.findall(r"engine started as process (\d+)", self.supervisors[worker].text())
        pid = int(started[-1]) if started else 0
        return pid if pid in children(self.supervisors[worker].pid) else 0

    def pids(self) -> list[int]:
        """Return the ids of all processes of the pool."""
        engines = [pid for supervisor in self.supervisors for pid in children(supervisor.pid)]
        return [self.gateway.pid, *(supervisor.pid for supervisor in self.supervisors), *engines]

    def stop(self) -> None:
        """End everything, wait for it, remove the run directory. Twice is once."""
        self.hang_up()
        for program in reversed(self.programs):
            program.signal(signal.SIGTERM)
        for program in reversed(self.programs):
            program.stop()
        shutil.rmtree(self.folder / "run", ignore_errors=True)

    def remove(self) -> None:
        """Delete the logs, too, once it is certain that no key stands in them."""
        try:
            for program in self.programs:
                program.check_keys()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- logs --------------------------------------------------------------

    def logs(self) -> str:
        """Return the last lines of every process of the pool, without those of our own asking."""
        tails = []
        for program in self.programs:
            lines = [line for line in program.text().splitlines() if ": GET /" not in line]
            tails += [f"--- {program.name}", *lines[-60:]]
        return "\n".join(tails)

    def check_logs(self, allowed: str = "") -> None:
        """Fail for lines since the last call that no healthy run writes; those matching `allowed` are expected."""
        bad = [line for program in self.programs for line in program.check_log(allowed)]
        assert not bad, "\n".join([*bad, self.logs()])


def chat_body(content: Any, **fields: Any) -> dict[str, Any]:
    """Return a chat request of one user message; the fake engine takes its faults from `content`."""
    return {"messages": [{"role": "user", "content": content}], **fields}
