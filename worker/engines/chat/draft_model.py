"""The small model that proposes tokens for a large one: loaded beside it, and refused where it can't do that."""

import logging
from pathlib import Path
from typing import Any

import msgspec
from mlx_lm.utils import load_model, load_tokenizer

from worker import hub
from worker.batch import caches
from worker.config import WorkerConfig
from worker.device_errors import is_device_error
from worker.engines import weights
from worker.engines.base import EngineLoadError
from worker.engines.loading import LoadedModel
from worker.model_folder import check_folder, name_refusal

log = logging.getLogger("worker")


class LoadedDraft(msgspec.Struct, frozen=True, kw_only=True):
    """A draft model in memory. `vocab_size` are the rows of its table of tokens."""

    model: Any
    vocab_size: int
    weights_bytes: int


def load_draft(source: str, config: WorkerConfig, loaded: LoadedModel) -> LoadedDraft:
    """Load the draft model for one that is loaded already. Raises `EngineLoadError`."""
    try:
        path = hub.local_folder(source, config)
        check_folder(path, "chat")
        model, model_config = load_model(path, lazy=True)
        weights.settle(model, model_config, quantize=config.quantize)
        tokenizer = load_tokenizer(path)
    except EngineLoadError as error:
        raise EngineLoadError(f"--draft-model: {error}") from None
    except Exception as error:
        if is_device_error(error):
            raise
        raise EngineLoadError(f"--draft-model: {name_refusal(error, source, 'chat')}") from error
    _compare(loaded.tokenizer.get_vocab(), tokenizer.get_vocab(), Path(source).name)
    for name, one in (("the model", loaded.model), ("the draft model", model)):
        if not caches.trimmable(caches.new(one)):
            raise EngineLoadError(f"--draft-model: {name} can't take tokens back, as its state is no list of them")
    return LoadedDraft(model=model, vocab_size=_table_size(model, model_config), weights_bytes=weights.size(model))


def _compare(ours: dict[str, int], theirs: dict[str, int], name: str) -> None:
    """Raise `EngineLoadError` where a token of the one is another, or none, to the other."""
    if ours == theirs:
        return
    token = min((token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)), key=repr)
    raise EngineLoadError(
        f"--draft-model: {name} has another vocabulary: {token!r} is {theirs.get(token)}, not {ours.get(token)}"
    )


def _table_size(model: Any, model_config: dict[str, Any]) -> int:
    text = model_config.get("text_config") or {}
    found = model_config.get("vocab_size") or text.get("vocab_size") or getattr(model.args, "vocab_size", None)
    if not found:
        raise EngineLoadError("--draft-model: its config.json says no vocab_size")
    return int(found)
