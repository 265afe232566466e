"""How many tokens a model takes: what its files promise, what its weights can place, what was asked for. Pure.

Families keep the promise under many names. A scaled rope reaches further than the positions that the model was trained
with first; sliding windows bound what one layer sees, and no context.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from worker.engines.base import EngineLoadError

log = logging.getLogger("worker")

UNKNOWN_CONTEXT = 4096
"""For a model that says nothing about its context, unless `--context-length` does."""
KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "seq_len",
    "max_len",
    "context_length",
)
"""Names of the promise in `config.json`. Where there are several, the smallest is kept."""
LAST_KEY = "block_size"
"""What nanoGPT's descendants call it; to others it is something else, so it counts where nothing else is said."""
NESTED = ("text_config", "llm_config", "language_config", "language_model", "thinker_config", "model_config", "decoder")
"""Where models of several parts keep the configuration of their text."""
NO_LIMIT = 10**9
"""Tokenizers without a limit say 10³⁰."""
SCALED_ALREADY = ("llama3", "longrope", "su", "mrope", "default", "proportional")
"""Kinds of ropes whose `max_position_embeddings` counts what they reach."""


class ContextLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`promised` tokens by the files (None: they say nothing); at most `placed` by learned positions (None: any)."""

    promised: int | None
    placed: int | None = None

    def settle(self, asked: int | None) -> int:
        """Return the tokens that are served. Raises `EngineLoadError` where what was asked for can't be placed."""
        placed, promised = self.placed, self.promised or UNKNOWN_CONTEXT
        if placed is not None:
            promised = min(promised, placed) if self.promised else placed
        if asked is None:
            return promised
        if placed is not None and asked > placed:
            raise EngineLoadError(
                f"--context-length {asked}: the model has learned positions for {placed} tokens, and none beyond"
            )
        if self.promised and asked > promised:
            log.warning(
                "--context-length %d goes beyond the %d tokens that the model's files promise: "
                "answers may get worse from there on",
                asked,
                promised,
            )
        return asked


def promised_tokens(config: Mapping[str, Any], tokenizer_limit: Any = None) -> int | None:
    """Return the context that `config.json` promises; else what the tokenizer's files do; None where neither does.

    `tokenizer_limit` is `model_max_length` of `tokenizer_config.json`.
    """
    cut = _count(tokenizer_limit)
    for part in parts_of(config):
        found = [count for key in KEYS if (count := _count(part.get(key)))]
        # Cohere's models were trained again for more than their positions say.
        own = _count(part.get("model_max_length")) or min(found, default=None) or _count(part.get(LAST_KEY))
        if own:
            return max(own, _scaled(part, config, own, cut))
    return cut


def parts_of(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the configurations of a model's text, the innermost first, then its own."""
    for name in NESTED:
        if isinstance(part := config.get(name), Mapping):
            yield from parts_of(part)
    yield config


def _scaled(part: Mapping[str, Any], config: Mapping[str, Any], own: int, cut: int | None) -> int:
    """Return how far a scaled rope reaches; 0 where that is not more than the promise."""
    rope = part.get("rope_scaling") or part.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        return 0
    # Some keep one for each kind of layer.
    if isinstance(full := rope.get("full_attention"), Mapping):
        rope = full
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    factor = rope.get("factor")
    if kind in SCALED_ALREADY or not isinstance(factor, int | float) or not 1 < factor < NO_LIMIT:
        return 0
    original = _count(rope.get("original_max_position_embeddings"))
    if original:
        return int(original * factor)
    # Gemma counts what its rope reaches, as do models whose tokenizers promise no more.
    if "gemma" in str(part.get("model_type") or config.get("model_type")) or (cut and cut <= own):
        return 0
    return min(int(own * factor), cut or NO_LIMIT)


def _count(value: Any) -> int | None:
    """Return a number of tokens; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < NO_LIMIT:
        return None
    return int(value)
