"""The commands of README and of the operator's page, run as they stand there, in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stress.running_pool import FAKE, ROOT, Api, Program, RunningPool, wait_until

from tests.docs.commands import block_with, commands

PICTURE = ROOT / "gateway" / "static" / "docs" / "favicon-32x32.png"


class Checkout:
    """A copy of the project with this environment as its `.venv`, and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pool"
        self.home = folder / "home"
        self.home.mkdir()
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        (self.folder / ".venv").symlink_to(sys.prefix)
        self.environment = {
            "HOME": str(self.home),
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONUNBUFFERED": "1",
            "USER": "pool",
        }

    def write_env_file(self, **settings: object) -> None:
        """Put settings into `.env`, as honcho reads them: the fake engine, a free port."""
        fake = {
            "POOL_RUN_DIR": self.folder.parent / "run",
            "POOL_PORT": 0,
            "POOL_SPARE": "false",
            "POOL_ENGINE": FAKE[1],
            "CHAT_MODEL": "fake-chat",
            "VISION_MODEL": "fake-vision",
            "EMBEDDING_MODEL": "fake-embedding",
        }
        lines = [f"{name}={value}\n" for name, value in {**fake, **settings}.items()]
        with (self.folder / ".env").open("a") as file:
            file.writelines(lines)

    def run(self, script: str, *, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """Run shell commands, the first that fails being the last."""
        command = ["bash", "-eu", "-c", script]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


class Started(Api):
    """What a command started that goes on running."""

    def __init__(self, checkout: Checkout, script: str) -> None:
        super().__init__()
        environment = {name: "" for name in os.environ if name.startswith("POOL_")} | checkout.environment
        words = ["env", "-C", str(checkout.folder), "bash", "-eu", "-c", f"exec {script}"]
        name = f"started-{len(list(checkout.folder.parent.glob('*.log')))}"
        self.program = Program(name, words, folder=checkout.folder.parent, environment=environment)
        try:
            self.port = int(wait_until(self._listening)[1])
        except BaseException:
            self.program.stop()
            raise

    def _listening(self) -> "re.Match[str] | None":
        assert self.program.running, self.program.text()
        return re.search(r"Running on http://\S+:(\d+)", self.program.text())


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    folder = Path(tempfile.mkdtemp(prefix="copy-", dir="/tmp"))
    yield Checkout(folder)
    shutil.rmtree(folder, ignore_errors=True)


def states(pool: Api, headers: dict[str, str] | None = None) -> dict[str, tuple[str, int]]:
    """State and number of engines of each model."""
    models = pool.get("/health", headers=headers).json().get("models", [])
    return {model["id"]: (model["state"], model["replicas"]) for model in models}


def test_procfile_runs_as_the_readme_says(checkout: Checkout) -> None:
    """`honcho start` runs every line with the project's Python, whatever `python` is; `-c` scales and leaves out."""
    checkout.write_env_file()
    block = block_with("README.md", ".venv/bin/honcho start")
    expected = (
        {"fake-chat": ("ready", 1), "fake-vision": ("ready", 1), "fake-embedding": ("ready", 1)},
        {"fake-chat": ("ready", 2), "fake-embedding": ("ready", 1)},
    )
    starts = [command for command in commands(block) if "honcho" in command]
    for command, there in zip(starts, expected, strict=True):
        pool = Started(checkout, command)
        try:
            wait_until(lambda pool=pool, there=there: states(pool) == there, what=command)
            assert pool.chat("fake: tokens@2", model="chat").json()["model"] == "fake-chat"
        finally:
            pool.program.stop()
        assert "ModuleNotFoundError" not in pool.program.text()


def test_keys_live_as_the_pages_say(checkout: Checkout) -> None:
    """Made, listed, changed, rotated, revoked; the production's keys, not those of the development folder."""
    for page, command in (("README.md", "export POOL_CONFIG"), ("docs/keys.md", ".venv/bin/python -m gateway keys")):
        lines = commands(block_with(page, command))
        at = next(at for at, line in enumerate(lines) if " create " in line)
        exports = [line for line in lines[:at] if line.startswith("export")] or ["export POOL_CONFIG=config.yaml"]
        made = checkout.run("\n".join([*exports, lines[at]]))
        assert (made.returncode, made.stdout[:4]) == (0, "mlx_"), made.stderr
        assert f"It is kept in {checkout.home}/.mlx-pool, by the settings of config.yaml." in made.stderr
        assert "ask nobody" not in made.stderr
        [key_id] = re.findall(r"Its id is (\w+)\.", made.stderr)
        rest = "\n".join([*exports, *lines[at + 1 :]]).replace("aB3dE5gH", key_id)
        done = checkout.run(rest)
        assert done.returncode == 0, done.stderr
        assert "Ada's laptop" in done.stdout
        assert f"{key_id} is revoked." in done.stdout


def test_key_of_the_development_folder_says_so(checkout: Checkout) -> None:
    """Without `POOL_CONFIG` it is made for a gateway that asks nobody for a key, which is said."""
    made = checkout.run(".venv/bin/python -m gateway keys create x")
    assert made.returncode == 0
    assert f"It is kept in {checkout.folder}/.run/data, by the settings of config.dev.yaml." in made.stderr
    assert "ask nobody for a key" in made.stderr
    assert "POOL_CONFIG=config.yaml" in made.stderr


def test_production_starts_as_the_page_says(checkout: Checkout) -> None:
    """All that follows the installation: production by `.env`, a check, a key, the pool; no tracked file is touched."""
    lines = commands(block_with("docs/operations.md", "echo POOL_CONFIG"))
    assert lines[0] == "scripts/install"
    checkout.environment |= {"POOL_PORT": "0", "POOL_RUN_DIR": str(checkout.folder.parent / "run")}
    done = checkout.run("\n".join(lines[1:-1]))
    assert done.returncode == 0, done.stderr
    assert "# config.yaml" in done.stdout
    key = done.stdout.splitlines()[-1]
    assert key.startswith("mlx_")
    checkout.write_env_file()
    pool = Started(checkout, lines[-1])
    try:
        pool.wait_healthy()
        headers = {"Authorization": f"Bearer {key}"}
        wait_until(lambda: states(pool, headers).keys() == {"fake-chat", "fake-embedding"})
        pool.wait_healthy()
        body = {"messages": [{"role": "user", "content": "fake: tokens@2"}]}
        assert pool.post("/v1/chat/completions", body, headers=headers).status == 200
        assert pool.post("/v1/chat/completions", body).status == 401
    finally:
        pool.program.stop()


def test_readme_request_is_answered(fake: RunningPool) -> None:
    """The request that the README sends first, and its Python beside it, but for the address."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = block_with("README.md", "curl ").replace("http://127.0.0.1:8000", fake.url)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert '"object":"chat.completion"' in done.stdout
    [program] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    program = program.replace("http://127.0.0.1:8000", fake.url)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert len(told.stdout.split()) > 1


def test_forms_are_embedded_as_the_page_says(encoder: RunningPool, tmp_path: Path) -> None:
    """Images as `curl -F` sends them."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for name in ("a.png", "b.png"):
        shutil.copy(PICTURE, tmp_path / name)
    for command in commands(block_with("docs/api.md", "curl http://127.0.0.1:8000/embed/image")):
        words = shlex.split(command.replace("http://127.0.0.1:8000", encoder.url))
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert '"embeddings":[[' in done.stdout, done.stdout
