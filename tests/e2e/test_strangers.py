"""Whatever strangers send to a gateway in production, also over TLS: others are served, and it costs little."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest
from stress.key_commands import MASTER
from stress.running_pool import Program, open_files, resident_bytes, wait_until

from tests.support.raw_clients import make_certificate, trusting

FLOOD = Path(__file__).parents[1] / "support" / "flood.py"
KINDS = ("compressed", "chunks", "extension", "trailers", "long", "heads", "pipeline", "unread", "upgrade", "nonsense",
         "guesses", "silence")  # fmt: skip
FLOOD_S = 2.5
GROWTH_BYTES = 50_000_000
HELD_S = 1.5
FEW = 256


class Gateway:
    """One in production, without workers."""

    def __init__(self, folder: Path, *, tls: bool, files: int = 0) -> None:
        self.tls = tls
        flags: list[str] = []
        if tls:
            certificate, key = make_certificate(folder)
            flags = ["--tls-cert", str(certificate), "--tls-key", str(key)]
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}));" if files else ""
        program = f"{limit}import sys, gateway.__main__ as g; sys.exit(g.main())"
        environment = {"POOL_ENV": "production", "POOL_API_KEY": MASTER, "POOL_RUN_DIR": str(folder / "run")}
        environment |= {"POOL_DATA_DIR": str(folder / "data"), "PYTHONUNBUFFERED": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, "--port", "0", *flags]
        self.process = Program("gateway", command, folder=folder, environment=environment)
        self.port = 0
        self._connections: list[HTTPConnection] = []

    def wait(self) -> None:
        """Until it listens."""

        def listening() -> re.Match[str] | None:
            assert self.process.running, self.process.text()
            return re.search(r"Running on https?://127\.0\.0\.1:(\d+)", self.process.text())

        self.port = int(wait_until(listening)[1])

    def connect(self) -> HTTPConnection:
        """A client's connection."""
        made = HTTPConnection("127.0.0.1", self.port, timeout=20)
        if self.tls:
            made = HTTPSConnection("127.0.0.1", self.port, timeout=20, context=trusting())
        self._connections.append(made)
        return made

    def stop(self) -> None:
        """End it, once no key is found in what it wrote."""
        for one in self._connections:
            one.close()
        self.process.stop()
        self.process.check_keys()
        assert not self.process.check_log("")

    def ask(self, connection: HTTPConnection, path: str = "/v1/models") -> tuple[int, bytes]:
        """Status and body, with a good key."""
        connection.request("GET", path, headers={"Authorization": f"Bearer {MASTER}"})
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    started: list[Gateway] = []

    def begin(**options: bool | int) -> Gateway:
        started.append(Gateway(tmp_path, **options))  # type: ignore[arg-type]
        started[-1].wait()
        return started[-1]

    yield begin
    for gateway in started:
        gateway.stop()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_others_are_served_while_strangers_send_everything_at_once(
    start: Callable[..., Gateway], record: Callable[[str, object], None], tls: bool
) -> None:
    """No loop held for long by computing, little memory, few lines; a client with a key is served throughout."""
    gateway = start(tls=tls)
    client = gateway.connect()
    assert gateway.ask(client)[0] == 200
    before, files, lines = resident_bytes(gateway.process.pid), open_files(gateway.process.pid), 0
    flood = subprocess.Popen(
        [sys.executable, FLOOD, str(gateway.port), "tls" if tls else "plain", str(FLOOD_S), *KINDS]
    )
    gaps, most = [], 0
    try:
        while flood.poll() is None:
            began = time.monotonic()
            assert gateway.ask(client)[0] == 200
            gaps.append(time.monotonic() - began)
            most = max(most, resident_bytes(gateway.process.pid))
            lines += 2
    finally:
        flood.kill()
        flood.wait()
    fresh = gateway.connect()
    assert gateway.ask(fresh)[0] == 200
    text = gateway.process.text()
    held = [float(found) for found in re.findall(r"loop was held for .* s, (\d+\.\d+) s of it computing", text)]
    record("growth_mb", round((most - before) / 1e6, 1))
    record("longest_gap_s", round(max(gaps), 3))
    record("held_computing_s", max(held, default=0.0))
    assert most - before < GROWTH_BYTES
    assert max(held, default=0.0) < HELD_S
    wait_until(lambda: open_files(gateway.process.pid) <= files + 2, what="descriptors are free again")
    malformed = len(re.findall("Malformed request", text))
    assert 20 <= malformed < 100
    assert len(re.findall("Failed login", text)) < 30


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_descriptors_are_left_when_strangers_hold_all_connections(start: Callable[..., Gateway], tls: bool) -> None:
    """With 256 of them, and 400 connections that say nothing: a new client is served, and so are files and sockets."""
    gateway = start(tls=tls, files=FEW)
    known = gateway.connect()
    assert gateway.ask(known)[0] == 200
    silent: list[socket.socket] = []
    try:
        silent.extend(socket.create_connection(("127.0.0.1", gateway.port), timeout=20) for _ in range(400))
        wait_until(lambda: open_files(gateway.process.pid) > 60, what="they are accepted")
        for _ in range(3):
            assert gateway.ask(gateway.connect())[0] == 200
        assert gateway.ask(known)[0] == 200
        assert open_files(gateway.process.pid) < FEW - 64
        status, metrics = gateway.ask(known, "/metrics")
        assert status == 200
        found = re.search(rb"pool_connections_strangers (\d+)", metrics)
        assert found
        assert int(found[1]) <= 128
    finally:
        for one in silent:
            one.close()
