"""What a model folder says about making a sentence's vector: limit, pooling, extra layers, prompts. Reads data only.

The files are those of sentence-transformers: `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`,
`config_sentence_transformers.json`. A folder without them is pooled by the mean over its
tokens, or by the last one where only that has seen the whole text.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from worker.engines.base import EngineLoadError

WINDOW_BYTES = 64 * 1024
WINDOWS = 64
INPUT_TYPES = MappingProxyType(
    {
        "query": ("query", "search_query", "web_search_query"),
        "document": ("document", "search_document", "passage"),
    }
)
"""What models call the prompt of an input type, the likeliest name first."""
LAST_TOKEN = frozenset({"qwen2", "qwen3", "qwen2_vl"})
"""Architectures whose tokens see earlier ones alone: only the last has seen the whole text."""
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_OLD_NAMES = MappingProxyType(
    {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
)


class DenseFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A linear layer behind the pooling: its folder and its activation (`""`: none)."""

    folder: Path
    activation: str


class EmbeddingFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the files say. `max_tokens` None: no limit of their own."""

    config: dict[str, Any]
    poolings: tuple[str, ...] = ("mean",)
    assumed_pooling: bool = False
    """Whether nothing in the folder names it."""
    include_prompt: bool = True
    dense: tuple[DenseFiles, ...] = ()
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    dimensions: int | None = None

    def find_prompt(self, *, name: str | None, input_type: str | None) -> str:
        """Return the prompt that comes before a text. Raises `KeyError` for a name that the model does not have."""
        if name is not None:
            return self.prompts[name]
        if input_type is not None:
            # A model without such a prompt embeds queries and documents alike.
            names = INPUT_TYPES[input_type]
            return next((self.prompts[known] for known in names if known in self.prompts), "")
        return self.prompts.get(self.default_prompt or "", "")


def read(folder: Path) -> EmbeddingFiles:
    """Read a model folder. Raises `EngineLoadError` for a layer that is not known here."""
    config = _json(folder / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise EngineLoadError("there is no config.json with a model_type")
    limits = _json(folder / "sentence_bert_config.json") or {}
    extras = _json(folder / "config_sentence_transformers.json") or {}
    usual = "lasttoken" if config["model_type"] in LAST_TOKEN else "mean"
    poolings, include_prompt, dense = _modules(folder, usual)
    return EmbeddingFiles(
        config=config,
        poolings=poolings,
        assumed_pooling=not _names_pooling(folder),
        include_prompt=include_prompt,
        dense=dense,
        max_tokens=limits.get("max_seq_length"),
        lower_case=bool(limits.get("do_lower_case")),
        prompts={str(name): str(text) for name, text in (extras.get("prompts") or {}).items()},
        default_prompt=extras.get("default_prompt_name"),
        dimensions=extras.get("truncate_dim"),
    )


def revision(folder: Path, *, settings: Iterable[object]) -> str:
    """Return a name for the exact files and `settings`: changes with anything that changes vectors.

    Small files are read whole, of large ones evenly spread windows: a training changes all weights.
    """
    digest = hashlib.blake2b(repr(tuple(settings)).encode(), digest_size=12)
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix not in (".json", ".safetensors", ".txt", ".model"):
            continue
        size = path.stat().st_size
        digest.update(f"\0{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WINDOWS * WINDOW_BYTES:
                digest.update(file.read())
                continue
            for window in range(WINDOWS):
                file.seek(window * (size - WINDOW_BYTES) // (WINDOWS - 1))
                digest.update(file.read(WINDOW_BYTES))
    return digest.hexdigest()


def _names_pooling(folder: Path) -> bool:
    return any(
        str(module.get("type", "")).endswith(".Pooling")
        and (folder / str(module.get("path", "")) / "config.json").exists()
        for module in _json(folder / "modules.json") or []
    )


def _modules(folder: Path, usual: str) -> tuple[tuple[str, ...], bool, tuple[DenseFiles, ...]]:
    poolings: tuple[str, ...] = (usual,)
    include_prompt = True
    dense: list[DenseFiles] = []
    for module in _json(folder / "modules.json") or []:
        kind = str(module.get("type", "")).rpartition(".")[2]
        place = folder / str(module.get("path", ""))
        if folder.resolve() not in (place.resolve(), *place.resolve().parents):
            raise EngineLoadError("modules.json points outside of the model's folder")
        match kind:
            case "Transformer" | "Normalize" | "Dropout":
                # Whether vectors are normalised is the request's choice.
                pass
            case "Pooling":
                # Conversions often keep the files at the top only.
                poolings, include_prompt = _pooling(_json(place / "config.json") or {"pooling_mode": usual})
            case "Dense":
                function = str((_json(place / "config.json") or {}).get("activation_function", ""))
                activation = function.rpartition(".")[2]
                dense.append(DenseFiles(folder=place, activation="" if activation == "Identity" else activation))
            case _:
                raise EngineLoadError(f"modules.json names a layer of type {kind!r}, which is not supported")
    return poolings, include_prompt, tuple(dense)


def _pooling(config: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
    mode = config.get("pooling_mode")
    if mode is not None:
        found = tuple(mode) if isinstance(mode, list) else (str(mode),)
    else:
        found = tuple(name for key, name in _OLD_NAMES.items() if config.get(key))
    if not found or any(name not in POOLINGS for name in found):
        raise EngineLoadError(f"pooling by {', '.join(found) or 'nothing'} is not supported")
    return found, bool(config.get("include_prompt", True))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
