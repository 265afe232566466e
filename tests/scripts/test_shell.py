"""The shell around the Python: it parses, it can be run, it finds an interpreter or says which one it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [ROOT / "scripts" / "serve", ROOT / "scripts" / "test", ROOT / "scripts" / "check", ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", [*COMMANDS, ROOT / "scripts" / "lib.sh"], ids=lambda script: script.name)
def test_script_parses_and_is_short(script: Path) -> None:
    """Shell is glue here: what has decisions in it is Python."""
    subprocess.run(["bash", "-n", script], check=True)
    assert len(script.read_text().splitlines()) <= 40


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.name)
def test_command_can_be_run(script: Path) -> None:
    """A fresh clone needs no chmod."""
    assert os.access(script, os.X_OK)


def find_python(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), **variables}
    bash = shutil.which("bash")
    assert bash
    line = 'set -euo pipefail; . "$0"; echo "$python"'
    return subprocess.run(
        [bash, "-c", line, ROOT / "scripts" / "lib.sh"], env=environment, capture_output=True, text=True
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A search path with nothing on it but `dirname`."""
    dirname = shutil.which("dirname")
    assert dirname
    (tmp_path / "dirname").symlink_to(dirname)
    return tmp_path


def install(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_interpreter_that_starts_nothing_is_passed_over(path: Path) -> None:
    """A version manager's shim for a version that is not installed, an old python3: the next one is tried."""
    install(path, "python3.11", "echo 'version not installed' >&2; exit 127")
    install(path, "python3.12", f'exec "{sys.executable}" "$@"')
    assert find_python(path).stdout == "python3.12\n"


def test_missing_interpreter_is_named(path: Path) -> None:
    """One line that says what to install."""
    install(path, "python3", "exit 1")
    done = find_python(path)
    assert done.returncode != 0
    assert done.stderr.startswith("Python 3.11 or newer is needed")


def test_interpreter_can_be_chosen(path: Path) -> None:
    """`PYTHON` goes before what is on the path."""
    install(path, "python3.11", "exit 0")
    assert find_python(path, PYTHON=sys.executable).stdout.strip() == sys.executable
