"""A fresh copy of the project, with nothing installed, does what README and the operator's page promise."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from stress.running_pool import ROOT, Program, wait_until

from tests.docs.commands import block_with, commands

pytestmark = [pytest.mark.long, pytest.mark.mlx]
INSTALL_S = 1800


@pytest.fixture
def folder() -> Iterator[Path]:
    """A copy of what git tracks."""
    parent = Path(tempfile.mkdtemp(prefix="fresh-", dir="/tmp"))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (parent / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, parent / "pool" / name)
    yield parent / "pool"
    shutil.rmtree(parent, ignore_errors=True)


class Served:
    """A command of the copy that goes on running."""

    def __init__(self, folder: Path, command: str, environment: dict[str, str]) -> None:
        words = ["env", "-C", str(folder), "bash", "-eu", "-c", f"exec {command}"]
        name = f"served-{len(list(folder.parent.glob('*.log')))}"
        self.program = Program(name, words, folder=folder.parent, environment=environment)
        found = wait_until(self._listening, timeout_s=INSTALL_S, what=command, every_s=0.2)
        self.url = found[1]

    def _listening(self) -> "re.Match[str] | None":
        assert self.program.running, self.program.text()
        return re.search(r"Running on (http://\S+:\d+)", self.program.text())

    def ask(self, path: str, body: object = None, key: str = "any") -> object:
        """Ask until the models are up."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, data, headers)

        def answered() -> object:
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                assert error.code == 503, error.read()
                return None

        return wait_until(answered, timeout_s=120, what=path, every_s=0.5)


def test_documented_commands_work_in_a_fresh_copy(folder: Path) -> None:
    """`scripts/install`, three kinds of models from the Procfile, an extra, `scripts/serve`, a part of the suite."""
    home = folder.parent / "home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PIP_INDEX_URL", "PIP_CACHE_DIR") if name in os.environ}
    run = folder.parent / "run"
    environment = {**kept, "HOME": str(home), "POOL_PORT": "0", "POOL_RUN_DIR": str(run), "POOL_CONFIG": ""}

    def say(script: str) -> str:
        done = subprocess.run(
            ["bash", "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=INSTALL_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    lines = commands(block_with("docs/operations.md", "echo POOL_CONFIG"))
    key = say("\n".join(lines[:-1])).splitlines()[-1]
    assert key.startswith("mlx_")
    pool = Served(folder, ".venv/bin/honcho start", environment)
    try:
        health = pool.ask("/health", key=key)
        assert isinstance(health, dict)
        assert {model["kind"] for model in health["models"]} == {"chat", "vision", "embedding"}
        pool.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}, key)
        pool.ask("/v1/embeddings", {"input": "Hi"}, key)
    finally:
        pool.program.stop()
    say(commands(block_with("docs/operations.md", "scripts/install redis"))[0])
    say(".venv/bin/python -c 'import redis'")
    (folder / ".env").unlink()
    started = Served(folder, commands(block_with("README.md", "scripts/test"))[0], environment)
    try:
        started.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5})
    finally:
        started.program.stop()
    say("scripts/test tests/protocol -x -q")
