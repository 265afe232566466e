"""Reading a model folder: where it is, what its configuration promises. Loads data only, never code."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.utils import load_model, load_tokenizer

from worker import hub
from worker.config import WorkerConfig
from worker.device_errors import is_device_error
from worker.engines import adapters, weights
from worker.engines.adapters import Adapted
from worker.engines.base import EngineLoadError
from worker.engines.output_formats import recognise_format

UNKNOWN_CONTEXT = 4096
"""For a model that says nothing about its context."""


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory with what its files say about it."""

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    generation: dict[str, Any]
    context_length: int
    vocab_size: int
    """Rows of the output head: what logits, and so every id from a request, index."""
    weights_bytes: int
    quantization: str
    adapted: dict[str, Adapted] = {}
    """The model with each of its adapters, by the name that it is served under."""


def load(config: WorkerConfig) -> LoadedModel:
    """Load model, adapters and tokenizer through mlx-lm. Raises `EngineLoadError`."""
    if config.device == "cpu":
        mx.set_default_device(mx.cpu)
    try:
        path = hub.local_folder(config.model_path, config)
        # trust_remote_code stays False: a model folder must not bring code along.
        # Lazily, so that weights on their way into fewer bits are never all in memory.
        model, model_config = load_model(path, lazy=True)
        if config.adapter_path:
            adapters.apply(model, hub.adapter_folder(config.adapter_path, config))
        quantization = weights.settle(model, model_config, quantize=config.quantize)
        loaded = loaded_from(config, path, model, model_config, quantization)
        adapted = {
            name: adapters.adapt(model, name, hub.adapter_folder(source, config))
            for name, source in config.adapters.items()
        }
        own_bytes = sum(one.own_bytes for one in adapted.values())
        return msgspec.structs.replace(loaded, adapted=adapted, weights_bytes=loaded.weights_bytes + own_bytes)
    except EngineLoadError:
        raise
    except Exception as error:
        if is_device_error(error):
            raise
        raise EngineLoadError(f"{type(error).__name__}: {error}") from error


def loaded_from(
    config: WorkerConfig, path: Path, model: Any, model_config: dict[str, Any], quantization: str
) -> LoadedModel:
    """Return a model with its tokenizer and with what its files say about it. Raises what mlx-lm raises."""
    tokenizer = load_tokenizer(
        hub.local_folder(config.tokenizer_path, config) if config.tokenizer_path else path,
        eos_token_ids=model_config.get("eos_token_id"),
    )
    recognise_format(tokenizer)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=model_config,
        generation=read_json(path / "generation_config.json"),
        context_length=_context_length(model_config, config.context_length),
        vocab_size=_vocab_size(model_config, tokenizer),
        weights_bytes=weights.size(model),
        quantization=quantization,
    )


def family(model_type: str) -> str:
    """`gemma3_text` is a `gemma`: the name that people use for a line of models."""
    found = re.match(r"[a-z]+", model_type.lower())
    return found.group(0) if found else model_type


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file; empty where there is none."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _context_length(model_config: dict[str, Any], asked: int | None) -> int:
    text = model_config.get("text_config") or {}
    trained = model_config.get("max_position_embeddings") or text.get("max_position_embeddings") or UNKNOWN_CONTEXT
    return min(asked, trained) if asked else int(trained)


def _vocab_size(model_config: dict[str, Any], tokenizer: Any) -> int:
    text = model_config.get("text_config") or {}
    return int(model_config.get("vocab_size") or text.get("vocab_size") or len(tokenizer))
