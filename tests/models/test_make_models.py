"""Making models: complete or not at all, the same every time, and only when it has to be."""

import hashlib
import subprocess
import sys
from pathlib import Path

import make_models
import pytest
from make_models import NAMES, main, make

pytest.importorskip("mlx_lm")


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_model_is_the_same_when_made_by_two_processes(tmp_path: Path) -> None:
    """Every byte follows from the recipe, whatever the process and its hash seed."""
    for out in ("a", "b"):
        command = [sys.executable, make_models.__file__, str(tmp_path / out), "llama"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    made = contents(tmp_path / "a" / "llama")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= made.keys()
    assert {"chat_template.jinja", "generation_config.json"} <= made.keys()
    assert made == contents(tmp_path / "b" / "llama")


def test_folder_is_kept_when_the_recipe_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time costs nothing, and a changed recipe makes the folder anew, leaving nothing else behind."""
    folder = make("mamba2", tmp_path)
    before = folder.stat().st_ino
    assert make("mamba2", tmp_path) == folder
    assert folder.stat().st_ino == before
    monkeypatch.setattr(make_models, "_stamp", lambda name: "another recipe")
    make("mamba2", tmp_path)
    assert folder.stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["mamba2"]


def test_nothing_is_left_when_making_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a model must never be found under a model's name."""

    def fail(folder: Path, recipe: object) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(make_models, "_fill", fail)
    with pytest.raises(OSError, match="disk full"):
        make("qwen3", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_finished_folder_stays_when_another_process_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that make the same model at once both end with a whole one."""

    def lose(folder: Path, recipe: object) -> None:
        winner = tmp_path / "qwen3"
        winner.mkdir()
        (winner / "theirs").touch()
        (winner / ".recipe").write_text(make_models._stamp("qwen3"))

    monkeypatch.setattr(make_models, "_fill", lose)
    assert (make("qwen3", tmp_path) / "theirs").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]


def test_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typo names its remedy and makes nothing."""
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "qwen33"])
    message = capsys.readouterr().err
    assert all(name in message for name in NAMES)
    assert not (tmp_path / "out").exists()


def test_a_line_is_printed_for_each_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who waits can see what for."""
    assert main([str(tmp_path), "llama"]) == 0
    assert main([str(tmp_path), "llama"]) == 0
    made, kept = capsys.readouterr().out.splitlines()
    assert made.startswith(f"made {tmp_path / 'llama'}: ")
    assert kept.startswith(f"kept {tmp_path / 'llama'}: ")
