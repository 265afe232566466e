"""What is read from a model folder, and what is done about it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from worker.config import WorkerConfig
from worker.engines.base import EngineLoadError
from worker.engines.loading import family, load
from worker.text.markers import markers_of
from worker.text.tool_calls import llama3
from worker.text.tool_calls.formats import parser_name


def configured(folder: Path, **fields: object) -> WorkerConfig:
    return WorkerConfig(model_path=str(folder), served_name="m", **fields)  # type: ignore[arg-type]


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="on a GPU half precision stays")
def test_half_precision_becomes_single_when_the_cpu_computes(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """On disk two bytes a number, in memory four: the CPU multiplies nothing else fast."""
    folder = shutil.copytree(model_folder("qwen3"), tmp_path / "half")
    weights = mx.load(str(folder / "model.safetensors"))
    halved = {name: array.astype(mx.float16) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), halved, {"format": "mlx"})
    loaded = load(configured(folder))
    assert {array.dtype for _, array in tree_flatten(loaded.model.parameters())} == {mx.float32}
    assert loaded.weights_bytes == sum(array.nbytes for array in weights.values())


def test_code_in_a_model_folder_is_not_run(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """A folder that wants a module of its own is refused, and the module never imported (CVE-2026-5843)."""
    folder = shutil.copytree(model_folder("qwen3"), tmp_path / "code")
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{"model_file": "evil.py", ', 1))
    with pytest.raises(EngineLoadError, match="custom"):
        load(configured(folder))
    assert not canary.exists()


@pytest.mark.parametrize(("kind", "name"), [("gemma3_text", "gemma"), ("qwen3", "qwen"), ("llama", "llama"), ("", "")])
def test_family_is_the_name_of_the_line(kind: str, name: str) -> None:
    """Versions and variants are no part of it."""
    assert family(kind) == name


def test_calls_of_llama_are_recognised_by_its_template(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """mlx-lm has no parser for them; any other model keeps the one that mlx-lm found, or none."""
    plain = load(WorkerConfig(model_path=str(model_folder("qwen3")), served_name="m")).tokenizer
    assert parser_name(plain) == "json_tools"
    shutil.copytree(model_folder("qwen3"), tmp_path / "llama")
    template = "{# " + llama3.SIGN + " #}{{ messages[0].content }}"
    (tmp_path / "llama" / "chat_template.jinja").write_text(template)
    found = load(WorkerConfig(model_path=str(tmp_path / "llama"), served_name="m")).tokenizer
    assert parser_name(found) == "llama3"
    assert markers_of(found).transitions["normal"][-2:] == [("{", "tool"), ("<|python_tag|>", "normal")]
