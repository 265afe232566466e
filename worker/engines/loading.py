"""Reading a model folder: where it is, what its configuration promises. Loads data only, never code."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.utils import load_model, load_tokenizer

from protocol.messages import Kind
from worker import hub
from worker.config import WorkerConfig
from worker.device_errors import is_device_error
from worker.engines import adapters, weights
from worker.engines.adapters import Adapted
from worker.engines.base import EngineLoadError
from worker.engines.context import ContextLimits, promised_tokens
from worker.engines.ends import end_tokens
from worker.engines.output_formats import recognise_format
from worker.model_folder import name_refusal

LEARNED_POSITIONS = frozenset({"wpe", "wpos", "embed_positions", "position_embeddings", "position_embedding"})
"""What tables of absolute positions are called; beyond the last row there is nothing to read."""
OTHERS = ("vis", "image", "audio", "multi_modal")
"""Beginnings of the names of parts that read no text."""


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
    path = hub.model_folder(config, Kind.CHAT)
    try:
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
        raise EngineLoadError(
            name_refusal(error, config.model_path, "chat", config=read_json(path / "config.json"))
        ) from error


def loaded_from(
    config: WorkerConfig, path: Path, model: Any, model_config: dict[str, Any], quantization: str
) -> LoadedModel:
    """Return a model with its tokenizer and with what its files say about it. Raises what mlx-lm raises."""
    tokenizer = load_tokenizer(
        hub.local_folder(config.tokenizer_path, config) if config.tokenizer_path else path,
        eos_token_ids=model_config.get("eos_token_id"),
    )
    recognise_format(tokenizer)
    generation = read_json(path / "generation_config.json")
    # The configuration that the model was built from lacks what generation_config.json replaced in it.
    configs = {"model": model_config, "config": read_json(path / "config.json"), "generation": generation}
    tokenizer.eos_token_ids = end_tokens(configs, tokenizer)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=model_config,
        generation=generation,
        context_length=_limits(path, model, model_config).settle(config.context_length),
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


def _limits(path: Path, model: Any, model_config: dict[str, Any]) -> ContextLimits:
    promised = promised_tokens(model_config, read_json(path / "tokenizer_config.json").get("model_max_length"))
    if promised is None:
        # mlx-lm's own default for the family: conversions leave out what is usual.
        parts = (model, getattr(model, "language_model", None), getattr(model, "model", None))
        defaults = (getattr(getattr(part, "args", None), "max_position_embeddings", None) for part in parts)
        promised = next((count for count in defaults if isinstance(count, int)), None)
    return ContextLimits(promised=promised, placed=_placed(model))


def _placed(model: Any) -> int | None:
    """Return the rows of the table of absolute positions of a model's text; None where it has none."""
    for name, module in model.named_modules():
        *parents, last = name.split(".")
        if last in LEARNED_POSITIONS and "weight" in module and not any(part.startswith(OTHERS) for part in parents):
            return int(module.weight.shape[0])
    return None


def _vocab_size(model_config: dict[str, Any], tokenizer: Any) -> int:
    text = model_config.get("text_config") or {}
    return int(model_config.get("vocab_size") or text.get("vocab_size") or len(tokenizer))
