"""Units that `honcho export` writes, run as service managers run them: not below any honcho."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stress.running_pool import FAKE, ROOT, Api, alive, wait_until

from tests.docs.commands import block_with, commands

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans get another parent here")

HONCHO = [sys.executable, "-m", "honcho"]
# A manager that has left its terminal: its parent is init, as a user's systemd or a daemonised supervisord has it.
MANAGER = """
import os, subprocess, sys, signal
if os.fork():
    os._exit(0)
os.setsid()
with open({pids!r}, "w") as written:
    for number, (command, folder, log) in enumerate({units!r}):
        process = subprocess.Popen(command, cwd=folder, env=dict({environments!r}[number]), stdin=subprocess.DEVNULL,
                                   stdout=open(log, "ab"), stderr=subprocess.STDOUT, start_new_session=True)
        written.write(f"{{process.pid}}\\n")
while True:
    signal.pause()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="units-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def export(kind: str, folder: Path) -> dict[str, str]:
    """The files that honcho writes for the project's own Procfile, by name."""
    settings = {
        "POOL_RUN_DIR": folder / "run",
        "POOL_DATA_DIR": folder / "data",
        "POOL_PORT": 0,
        "POOL_SPARE": "false",
        "POOL_ENGINE": FAKE[1],
        "CHAT_MODEL": "fake",
        "POOL_PYTHON": sys.executable,
    }
    (folder / "env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    command = ["-e", str(folder / "env"), "-f", "Procfile", "-a", "mlx-pool", "-c", "vision=0,embedding=0"]
    made = folder / "units"
    subprocess.run([*HONCHO, "export", *command, kind, str(made)], cwd=ROOT, check=True, timeout=60)
    return {path.name: path.read_text() for path in made.iterdir()}


class Managed(Api):
    """Commands that run below a process whose parent is init."""

    def __init__(self, units: list[tuple[list[str], dict[str, str]]], folder: Path) -> None:
        super().__init__()
        self.logs = [folder / f"{number}.log" for number in range(len(units))]
        pids = folder / "pids"
        script = MANAGER.format(
            pids=str(pids),
            units=[(command, str(ROOT), str(log)) for (command, _), log in zip(units, self.logs, strict=True)],
            environments=[environment for _, environment in units],
        )
        self._manager = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        self._manager.wait(60)
        self.pids = wait_until(lambda: self._read(pids, len(units)))
        self.port = int(wait_until(lambda: re.search(r"Running on http://\S+:(\d+)", self.text()))[1])

    @staticmethod
    def _read(path: Path, count: int) -> list[int] | None:
        found = path.read_text().split() if path.exists() else []
        return [int(pid) for pid in found] if len(found) == count else None

    def text(self) -> str:
        """All that was said."""
        return "".join(log.read_text() for log in self.logs if log.exists())

    def stop(self, number: signal.Signals) -> None:
        """End the units by a signal, then their manager."""
        manager = int(Path(f"/proc/{self.pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        for pid in self.pids:
            os.kill(pid, number)
        wait_until(lambda: not any(map(alive, self.pids)), what="the units have ended")
        os.kill(manager, signal.SIGKILL)


def systemd_units(files: dict[str, str]) -> list[tuple[list[str], dict[str, str]]]:
    """What systemd would run: the command, and its environment."""
    units = []
    for name, text in sorted(files.items()):
        if not name.endswith(".service"):
            continue
        [line] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
        command = shlex.split(line)
        assert command[1] == "-lc"
        environment = dict(
            shlex.split(given)[0].split("=", 1) for given in re.findall(r"^Environment=(.*)$", text, re.M)
        )
        units.append(([command[0], "-c", command[2]], {"PATH": "/usr/bin:/bin", **environment}))
    return units


def supervisord_units(files: dict[str, str]) -> list[tuple[list[str], dict[str, str]]]:
    """What supervisord would run."""
    [text] = files.values()
    units = []
    for program in re.findall(r"(?ms)^\[program:.*?(?=^\[)", text):
        command = shlex.split(re.findall(r"^command=(.*)$", program, re.MULTILINE)[0].replace("%%", "%"))
        [given] = re.findall(r"(?ms)^environment=(.*?)\n\n", program)
        environment = dict(pair.split("=", 1) for pair in shlex.split(given.replace(",", " ")))
        units.append((command, {"PATH": "/usr/bin:/bin", **environment}))
    return units


@pytest.mark.parametrize(("kind", "number"), [("systemd", signal.SIGTERM), ("supervisord", signal.SIGQUIT)])
def test_units_serve_and_stay_when_no_honcho_runs_them(folder: Path, kind: str, number: signal.Signals) -> None:
    """They find the project's Python, answer, do not take init for a dead honcho, and end by their manager's signal."""
    units = (systemd_units if kind == "systemd" else supervisord_units)(export(kind, folder))
    assert len(units) == 2
    pool = Managed(units, folder)
    try:
        pool.wait_healthy()
        assert pool.chat("fake: tokens@3").status == 200
        # Twice as long as the gateway looks for its honcho, and thrice as long as a supervisor does.
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 3.0)
        assert all(map(alive, pool.pids)), pool.text()
        assert pool.chat("fake: tokens@3").status == 200
    finally:
        pool.stop(number)
    assert "honcho ended" not in pool.text()
    assert "| WARNING |" not in pool.text()


def test_units_are_written_as_the_page_says(folder: Path) -> None:
    """The command of the operator's page, but for where it writes."""
    [command] = commands(block_with("docs/operations.md", ".venv/bin/honcho export"))
    assert command.endswith(" systemd units")
    script = command.replace(".venv/bin/honcho", shlex.join(HONCHO)).removesuffix("units") + str(folder / "units")
    subprocess.run(["bash", "-eu", "-c", script], cwd=ROOT, check=True, timeout=60, env={**os.environ, "USER": "pool"})
    names = {path.name for path in (folder / "units").iterdir()}
    assert {"mlx-pool.target", "mlx-pool-gateway-1.service", "mlx-pool-chat-1.service"} <= names
    assert not [name for name in names if "vision" in name]
    assert "User=pool" in (folder / "units" / "mlx-pool-gateway-1.service").read_text()
