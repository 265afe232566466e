"""What a folder is that was named as a model: one sentence where it can't be served, which says what to do.

Pure, and light: it reads the beginnings of files, and is asked before anything is imported that could load them.
"""

import json
import re
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from worker.engines.base import EngineLoadError

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
POINTER = b"version https://git-lfs"
MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as the library has it."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "vocab.txt", "spiece.model", "*.vocab")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ENCODERS = frozenset(
    {
        "albert", "bert", "camembert", "clip", "deberta", "deberta-v2", "distilbert", "electra", "eurobert", "gte",
        "ernie", "modernbert", "mpnet", "new", "nomic_bert", "roberta", "siglip", "siglip2", "t5", "xlm-roberta",
    }
)  # fmt: skip
"""`model_type`s of models that make vectors and write no text."""
SPEECH = frozenset({"whisper", "wav2vec2", "speecht5", "seamless_m4t", "parakeet"})
SEES = re.compile(r"vision|visual|image|mm_")
"""What some key of a configuration has in it where a model looks at images."""
TAKE_ANOTHER = "take a conversion for MLX, such as one of mlx-community"
GGUF = f"GGUF, which is for llama.cpp: {TAKE_ANOTHER}, or convert the original with `mlx_lm.convert`"
PULL = "holds pointers of Git LFS in place of its files: run `git lfs pull` in it"


def check_folder(path: Path, kind: str, *, tokenizer: bool = True, source: str = "") -> None:
    """Refuse what can't be a model of that kind. Raises `EngineLoadError` with one sentence that says what to do.

    `tokenizer` is whether one has to be with it; `source` the hub id that the folder was fetched for.
    """
    try:
        _check(path, kind, tokenizer=tokenizer, fetched=bool(source))
    except _UnfitError as unfit:
        raise EngineLoadError(f"{source or path} {unfit}") from None


class _UnfitError(Exception):
    """What is wrong with a folder; the folder's name is the subject of the sentence."""


def _check(path: Path, kind: str, *, tokenizer: bool, fetched: bool) -> None:
    if not path.exists():
        raise _UnfitError("is not there: name a folder, or a model of the hub as OWNER/NAME")
    if path.is_file():
        gguf = path.suffix.lower() == ".gguf"
        raise _UnfitError(f"is a file of {GGUF}" if gguf else "is a file: name the folder of the model that it is of")
    config = _read_config(path)
    _check_kind(config, kind)
    _check_weights(path, kind, fetched=fetched)
    if not tokenizer:
        return
    if not any(_any(path, pattern) for pattern in TOKENIZERS):
        raise _UnfitError("has no tokenizer: put the files of its original's in it, or give --tokenizer-path")
    for file in path.glob("tokenizer*.json"):
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise _UnfitError(PULL)


def name_refusal(error: Exception, path: object, kind: str, *, config: Mapping[str, Any] | None = None) -> str:
    """Return one sentence for what a library raised while it loaded such a folder."""
    said = " ".join(str(error).split())
    if found := re.search(r"Model type (\S+) not supported", said):
        if kind == "chat" and any(SEES.search(key) for key in config or ()):
            return f"{path} is a model of images ({found[1]}): start it with --model-type vision"
        library = "mlx-vlm" if kind == "vision" else "mlx-lm"
        return (
            f"{path} is a model of type {found[1]!r}, which the installed {library} does not know: "
            f"install a newer {library}, or serve another model"
        )
    if re.search(r"(?i)quant", said):
        return f"{path} is quantised in a way that is not known here ({said}): {TAKE_ANOTHER}"
    if re.search(r"parameters not in model|Missing \d+ parameters|Expected shape|size mismatch", said):
        return f"{path} has weights that do not fit its config.json ({said[:200]}): fetch the model again"
    return f"{path} can't be loaded: {type(error).__name__}: {said}"


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise _UnfitError(_without_config(path))
    raw = file.read_bytes()
    if raw.startswith(POINTER):
        raise _UnfitError(PULL)
    try:
        config = json.loads(raw)
    except ValueError:
        raise _UnfitError("has a config.json that is no JSON: fetch the model again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise _UnfitError("has a config.json without a model_type: it is no model that transformers or MLX wrote")
    return config


def _without_config(path: Path) -> str:
    adapter = _json(path / "adapter_config.json")
    if adapter is not None:
        base = adapter.get("base_model_name_or_path") or adapter.get("model") or "the model that it was trained on"
        return f"is an adapter, no model: serve {base}, and name this folder with --adapter-path or --adapter NAME=PATH"
    if _any(path, "*.gguf"):
        return f"holds files of {GGUF}"
    if (path / "model_index.json").is_file():
        return "is a pipeline that makes images, and is served by nothing here"
    if _any(path, "*.onnx") or _any(path, "*.mlpackage"):
        return f"holds a model for another runtime: {TAKE_ANOTHER}"
    if (path / "params.json").is_file() or _any(path, "consolidated*"):
        return "holds weights in their maker's own format: take the model in that of transformers, with a config.json"
    inner = sorted(found.parent for found in path.glob("*/config.json"))
    inner += sorted(found.parent for found in path.glob("snapshots/*/config.json"))
    if inner:
        return f"has no config.json, but {inner[-1].relative_to(path)} in it has one: name that folder"
    if not any(path.iterdir()):
        return "is empty: fetch the model into it"
    return "has no config.json: it is no model, or half of one, to be fetched again"


def _check_kind(config: Mapping[str, Any], kind: str) -> None:
    name = config["model_type"]
    sees = any(SEES.search(key) for key in config)
    if name in ENCODERS and kind != "embedding":
        raise _UnfitError(f"is an encoder ({name}), for vectors: start it with --model-type embedding")
    if name in SPEECH:
        raise _UnfitError(f"is a model of speech ({name}), which is served by nothing here")
    if kind == "vision" and not sees:
        raise _UnfitError(f"is a model of text ({name}), without vision: start it with --model-type chat")


def _check_weights(path: Path, kind: str, *, fetched: bool) -> None:
    files = sorted(path.glob("*.safetensors"))
    index = _json(path / "model.safetensors.index.json")
    wanted = {name for name in ((index or {}).get("weight_map") or {}).values() if isinstance(name, str)}
    for file in files:
        if found := SHARD.fullmatch(file.name):
            wanted |= {f"{found[1]}-{number:05d}-of-{found[3]}.safetensors" for number in range(1, int(found[3]) + 1)}
    if not files and not wanted:
        # Only safetensors are fetched.
        raise _UnfitError(f"has no safetensors weights: {TAKE_ANOTHER}" if fetched else _without_weights(path))
    missing = wanted - {file.name for file in files}
    # Where a model was saved again, its old index may have stayed.
    if missing and "model.safetensors" not in {file.name for file in files}:
        what = f"lacks {len(missing)} of its {len(wanted)} files of weights, {min(missing)} for one"
        raise _UnfitError(f"{what}: its download is not complete, fetch it again")
    for file in files:
        _check_file(file)
    if kind != "embedding" and not any(file.name.startswith("model") for file in files):
        raise _UnfitError(f"calls its weights {files[0].name}; mlx-lm and mlx-vlm read model*.safetensors")


def _check_file(file: Path) -> None:
    """Refuse a file that is not whole."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(len(POINTER))
        if start == POINTER:
            raise _UnfitError(PULL)
        header_bytes = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        if not 2 <= header_bytes <= min(size - 8, MOST_HEADER_BYTES):
            raise _UnfitError(f"has a {file.name} that is no whole safetensors file: fetch it again")
        opened.seek(8)
        try:
            header = json.loads(opened.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise _UnfitError(f"has a {file.name} that is no safetensors file: fetch it again") from None
    if size < 8 + header_bytes + max(ends, default=0):
        raise _UnfitError(f"has only the beginning of {file.name}: its download is not complete, fetch it again")


def _without_weights(path: Path) -> str:
    if _any(path, "*.gguf"):
        return f"holds files of {GGUF}"
    pickles = [file for pattern in PICKLES for file in sorted(path.glob(pattern))]
    if pickles:
        return (
            f"has PyTorch weights only ({pickles[0].name}), which run code when they are read: {TAKE_ANOTHER}, or "
            "save it as safetensors with transformers (`from_pretrained`, `save_pretrained`) and convert that with "
            "`mlx_lm.convert`"
        )
    if _any(path, "*.npz") or _any(path, "*.h5") or _any(path, "*.msgpack") or _any(path, "*.onnx"):
        return f"has weights for another runtime: {TAKE_ANOTHER}"
    if _any(path, "*.incomplete") or _any(path, "*.part") or _any(path, ".cache/huggingface/download/*.incomplete"):
        return "has no whole weights: its download is not complete, fetch it again"
    return "has no weights (*.safetensors): its download is not complete, or it never had any"


def _any(path: Path, pattern: str) -> bool:
    return next(path.glob(pattern), None) is not None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def main(arguments: Iterable[str]) -> int:
    """Check folders, each after its kind, as `chat path vision path`: 2 and a sentence for the first that fails."""
    given = list(arguments)
    for kind, path in zip(given[::2], given[1::2], strict=True):
        try:
            check_folder(Path(path), kind)
        except EngineLoadError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
