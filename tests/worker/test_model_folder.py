"""Folders that were named as a model and are none: one sentence that says what each is, and what to do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import Kind
from worker.config import WorkerConfig
from worker.engines.base import Engine, EngineLoadError
from worker.engines.chat.engine import ChatEngine
from worker.engines.embedding.engine import EmbeddingEngine
from worker.engines.vision.engine import VisionEngine
from worker.model_folder import check_folder

ROOT = Path(__file__).parents[2]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4000000000\n"
ENGINES: dict[str, type[Engine]] = {"chat": ChatEngine, "vision": VisionEngine, "embedding": EmbeddingEngine}


def configured(folder: Path, **changes: Any) -> None:
    """Change keys of `config.json`; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def without(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def only(folder: Path, **files: bytes) -> None:
    """Leave nothing but these files; `__` stands for a dot, `___` for a hyphen."""
    without(folder, "*")
    for name, content in files.items():
        (folder / name.replace("___", "-").replace("__", ".")).write_bytes(content)


def pytorch(folder: Path, name: str = "pytorch_model.bin") -> None:
    (folder / "model.safetensors").rename(folder / name)


def sharded(folder: Path, *, index: bool = True) -> None:
    """Half a download: the first of three files, with the index or without."""
    first, *others = (f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))
    (folder / "model.safetensors").rename(folder / first)
    if index:
        weights = {"a": first, "b": others[0], "c": others[1]}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def indexed(folder: Path) -> None:
    sharded(folder)
    without(folder, "*.safetensors")


def cut(folder: Path, size: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:size])


def nested(folder: Path) -> None:
    inner = folder / "snapshots" / "0123"
    inner.mkdir(parents=True)
    for path in [*folder.iterdir()]:
        if path.is_file():
            path.rename(inner / path.name)


ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "acme/base"}).encode()
BROKEN: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "gguf only": ("chat", lambda f: only(f, model___q4__gguf=b"GGUF"), r"holds files of GGUF.*mlx_lm\.convert"),
    "gguf beside config": (
        "chat",
        lambda f: (without(f, "*.safetensors"), (f / "m.gguf").touch()),
        r"holds files of GGUF",
    ),
    "pytorch .bin": ("chat", pytorch, r"PyTorch weights only \(pytorch_model\.bin\).*mlx_lm\.convert"),
    "pytorch .pt": ("chat", lambda f: pytorch(f, "model.pt"), r"PyTorch weights only \(model\.pt\)"),
    "pytorch encoder": ("embedding", pytorch, r"PyTorch weights only"),
    "pytorch vision": ("vision", pytorch, r"vision: start it with --model-type chat|PyTorch"),
    "encoder as chat": ("chat", lambda f: configured(f, model_type="bert"), r"is an encoder .* --model-type embedding"),
    "encoder as vision": (
        "vision",
        lambda f: configured(f, model_type="xlm-roberta"),
        r"is an encoder .* --model-type embedding",
    ),
    "chat as vision": ("vision", lambda _f: None, r"is a model of text \(qwen3\).* --model-type chat"),
    "chat as embedding": (
        "embedding",
        lambda f: configured(f, model_type="llama"),
        r"type 'llama' are not supported .* --model-type chat",
    ),
    "speech": ("chat", lambda f: configured(f, model_type="whisper"), r"is a model of speech"),
    "peft adapter": (
        "chat",
        lambda f: only(f, adapter_config__json=ADAPTER, adapter_model__safetensors=b""),
        r"is an adapter, no model: serve acme/base, .* --adapter-path",
    ),
    "adapter of mlx-lm": (
        "chat",
        lambda f: only(f, adapter_config__json=b'{"model": "acme/other"}', adapters__safetensors=b""),
        r"is an adapter, no model: serve acme/other",
    ),
    "no tokenizer": ("chat", lambda f: without(f, "tokenizer*"), r"has no tokenizer: .* --tokenizer-path"),
    "no config": ("chat", lambda f: without(f, "config.json"), r"has no config\.json: it is no model, or half of one"),
    "config is no json": (
        "chat",
        lambda f: (f / "config.json").write_text("{"),
        r"has a config\.json that is no JSON: fetch",
    ),
    "config without type": (
        "chat",
        lambda f: configured(f, model_type=None),
        r"has a config\.json without a model_type",
    ),
    "no weights": ("chat", lambda f: without(f, "*.safetensors"), r"has no weights \(\*\.safetensors\)"),
    "no weights of an encoder": ("embedding", lambda f: without(f, "*.safetensors"), r"has no weights"),
    "empty": ("chat", lambda f: without(f, "*"), r"is empty: fetch the model into it"),
    "shards missing": ("chat", sharded, r"lacks 2 of its 3 files of weights, model-00002-of-00003.*not complete"),
    "shards missing, no index": ("chat", lambda f: sharded(f, index=False), r"lacks 2 of its 3 files of weights"),
    "all shards missing": ("chat", indexed, r"lacks 3 of its 3 files of weights, model-00001-of-00003"),
    "pointer for weights": ("chat", lambda f: (f / "model.safetensors").write_bytes(POINTER), r"run `git lfs pull`"),
    "pointer for config": ("chat", lambda f: (f / "config.json").write_bytes(POINTER), r"run `git lfs pull`"),
    "pointer for tokenizer": ("chat", lambda f: (f / "tokenizer.json").write_bytes(POINTER), r"run `git lfs pull`"),
    "half a file": ("chat", lambda f: cut(f, 1_000_000), r"only the beginning of model\.safetensors.*fetch it again"),
    "no header": ("chat", lambda f: cut(f, 100), r"model\.safetensors that is no whole safetensors file"),
    "empty file": ("chat", lambda f: cut(f, 0), r"model\.safetensors that is no whole safetensors file"),
    "other names": (
        "chat",
        lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
        r"calls its weights weights\.safetensors; mlx-lm and mlx-vlm read model\*\.safetensors",
    ),
    "maker's format": ("chat", lambda f: only(f, params__json=b"{}", consolidated__safetensors=b""), r"maker's own"),
    "folder around it": ("chat", nested, r"but snapshots/0123 in it has one: name that folder"),
    "onnx": ("chat", lambda f: only(f, model__onnx=b""), r"for another runtime"),
    "unknown type": (
        "chat",
        lambda f: configured(f, model_type="qwen9_omega"),
        r"is a model of type 'qwen9_omega', which the installed mlx-lm does not know: install a newer mlx-lm",
    ),
    "vision as chat": (
        "chat",
        lambda f: configured(f, model_type="idefics9", vision_config={}),
        r"is a model of images \(idefics9\): start it with --model-type vision",
    ),
    "unknown type of vision": (
        "vision",
        lambda f: configured(f, model_type="qwen9_vl", vision_config={}),
        r"is a model of type 'qwen9_vl', which the installed mlx-vlm does not know",
    ),
    "unknown quantisation": (
        "chat",
        lambda f: configured(f, quantization_config={"quant_method": "compressed-tensors", "format": "float9"}),
        r"is quantised in a way that is not known here .*float9.* mlx-community",
    ),
    "weights of another model": (
        "chat",
        lambda f: configured(f, num_hidden_layers=2),
        r"has weights that do not fit its config\.json .* fetch the model again",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_folder_is_refused_in_one_sentence_when_it_is_no_model_of_that_kind(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """What it is, and what to do: no error of a library inside of another one."""
    kind, damage, said = BROKEN[name]
    folder = shutil.copytree(model_folder("qwen3"), tmp_path / "m")
    damage(folder)
    engine = ENGINES[kind](WorkerConfig(model_path=str(folder), served_name="m", kind=Kind(kind)))  # type: ignore[call-arg]
    with pytest.raises(EngineLoadError, match=said) as refusal:
        engine.load()
    message = str(refusal.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 700


def test_file_is_refused_when_it_is_named_in_place_of_a_folder(tmp_path: Path) -> None:
    """A GGUF file, any other file, and nothing at all."""
    (tmp_path / "q4.gguf").write_bytes(b"GGUF")
    (tmp_path / "model.safetensors").touch()
    for name, said in (
        ("q4.gguf", r"is a file of GGUF.*mlx_lm\.convert"),
        ("model.safetensors", r"is a file: name the folder"),
        ("nothing", r"is not there: name a folder, or a model of the hub"),
    ):
        with pytest.raises(EngineLoadError, match=said):
            check_folder(tmp_path / name, "chat")


def test_folder_is_taken_when_its_index_is_older_than_its_weights(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Weights that were saved again as one file beside the index of many: nothing is missing."""
    folder = shutil.copytree(model_folder("qwen3"), tmp_path / "m")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    check_folder(folder, "chat")


def test_tokenizer_may_be_elsewhere_when_it_is_named(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """`--tokenizer-path` is what the sentence advises."""
    folder = shutil.copytree(model_folder("qwen3"), tmp_path / "m")
    without(folder, "tokenizer*")
    own = WorkerConfig(model_path=str(folder), served_name="m", tokenizer_path=str(model_folder("qwen3")))
    engine = ChatEngine(own)
    engine.load()
    assert engine.describe().vocab_size == 2048


@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen2-vl"])
def test_folder_is_taken_when_it_is_whole(name: str, model_folder: Callable[[str], Path]) -> None:
    """What is served elsewhere in this suite passes; images are a vision model's."""
    check_folder(model_folder(name), "vision" if name.endswith("vl") else "chat")


def test_command_prints_the_sentence_when_a_folder_is_no_model(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """What `scripts/serve` asks before it starts anything: exit code 2, one line, no library imported."""
    folder = shutil.copytree(model_folder("qwen3"), tmp_path / "m")
    pytorch(folder)
    command = [sys.executable, "-m", "worker.model_folder", "chat", str(model_folder("qwen3")), "chat", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{folder} has PyTorch weights only")
    assert done.stderr.count("\n") == 1
