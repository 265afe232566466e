"""Parameters of other servers that change no answer here: taken, and named in the header `x-ignored-parameters`.

What by definition can't change an answer (attribution, hints for caches) is taken whatever it is. What could is taken
with the one value that asks for nothing, and refused with any other.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

HEADER = "x-ignored-parameters"

Rule = Callable[[Any, Mapping[str, Any]], bool]
"""Whether a value changes nothing, in the body that it stands in."""


def header_of(ignored: set[str]) -> str:
    """Return what the header says: the names, sorted."""
    return ", ".join(sorted(ignored))


def take_ignored(
    raw: dict[str, Any], rules: Mapping[str, Rule], fields: tuple[str, ...], ignored: set[str]
) -> dict[str, Any]:
    """Return a body's fields without those that change nothing; `ignored` gets their names.

    What a request reads (`fields`) is not touched.
    """
    idle = [
        name
        for name, value in raw.items()
        if name not in fields and (rule := rules.get(name)) is not None and rule(value, raw)
    ]
    if not idle:
        return raw
    ignored.update(idle)
    return {name: value for name, value in raw.items() if name not in idle}


def _anything(_value: Any, _raw: Mapping[str, Any]) -> bool:
    return True


def _only(*values: Any) -> Rule:
    return lambda value, _raw: value in values


def _nothing(value: Any, _raw: Mapping[str, Any]) -> bool:
    """Return whether a list, an object or a text is empty."""
    return isinstance(value, (str, list, dict)) and not value


def _unpenalised(value: Any, raw: Mapping[str, Any]) -> bool:
    """Return whether a window of penalties is all of the text, as it is here, or there is no penalty to look for."""
    penalties = (raw.get(name) for name in ("repetition_penalty", "repeat_penalty"))
    return value == -1 or all(penalty in (None, 1) for penalty in penalties)


def _greedy(value: Any, raw: Mapping[str, Any]) -> bool:
    """Return whether `do_sample` says what the temperature says."""
    return value is (raw.get("temperature", 1) != 0)


_ATTRIBUTION = (
    "chat_id",
    "client_metadata",
    "conversation_id",
    "end_user",
    "message_id",
    "metadata",
    "parent_id",
    "priority",
    "project",
    "request_id",
    "safety_identifier",
    "session_id",
    "store",
    "tags",
    "trace",
    "trace_id",
    "user",
    "user_id",
    "verbosity",
)
"""Who asks, what for, in which order: nothing of it reaches a model."""
_HINTS = (
    "cache_control",
    "cache_prompt",
    "cache_salt",
    "draft_model",
    "id_slot",
    "keep_alive",
    "n_discard",
    "n_keep",
    "num_batch",
    "num_draft_tokens",
    "num_gpu",
    "num_thread",
    "prediction",
    "prompt_cache_breakpoint",
    "prompt_cache_options",
    "prompt_cache_retention",
    "provider",
    "slot_id",
    "speculative.n_max",
    "speculative.n_min",
    "speculative.p_min",
    "ttl",
    "use_mlock",
    "use_mmap",
)
"""How an answer is to be computed, or what is to be kept of it: the answer is the same."""
_WITHOUT_EFFECT = (
    "dry_allowed_length",
    "dry_base",
    "dry_penalty_last_n",
    "dry_range",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "early_stopping",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "mirostat_eta",
    "mirostat_tau",
    "smoothing_curve",
    "spaces_between_special_tokens",
    "xtc_threshold",
)
"""Details of what is refused where it is turned on."""

GENERATION: Mapping[str, Rule] = MappingProxyType(
    dict.fromkeys((*_ATTRIBUTION, *_HINTS, *_WITHOUT_EFFECT), _anything)
    | {
        # Sampling.
        "best_of": _only(1),
        "cfg_scale": _only(1),
        "do_sample": _greedy,
        "dry_multiplier": _only(0),
        "dynatemp_range": _only(0),
        "encoder_repetition_penalty": _only(1),
        "epsilon_cutoff": _only(0),
        "eta_cutoff": _only(0),
        "guidance_scale": _only(1),
        "length_penalty": _only(1),
        "mirostat": _only(0),
        "mirostat_mode": _only(0),
        "no_repeat_ngram_size": _only(0),
        "num_beams": _only(1),
        "penalty_alpha": _only(0),
        "penalize_newline": _only(True),
        "penalize_nl": _only(True),
        "repeat_last_n": _unpenalised,
        "repetition_context_size": _unpenalised,
        "repetition_penalty_range": _unpenalised,
        "smoothing_factor": _only(0),
        "temperature_last": _only(False),
        "tfs": _only(1),
        "tfs_z": _only(1),
        "top_a": _only(0),
        "top_n_sigma": _only(0, -1),
        "typical": _only(1),
        "typical_p": _only(1),
        "use_beam_search": _only(False),
        "xtc_probability": _only(0),
        # What may be said.
        "allowed_token_ids": _nothing,
        "bad_words": _nothing,
        "bad_words_ids": _nothing,
        "ban_eos_token": _only(False),
        "banned_strings": _nothing,
        "banned_tokens": _nothing,
        "custom_token_bans": _nothing,
        "grammar": _nothing,
        "grammar_string": _nothing,
        "guided_choice": _nothing,
        "guided_grammar": _nothing,
        "guided_json": _only(""),
        "guided_regex": _nothing,
        "logits_processors": _nothing,
        "samplers": _nothing,
        # What is read.
        "add_bos_token": _only(True),
        "documents": _nothing,
        "enable_search": _only(False),
        "functions": _nothing,
        "images": _nothing,
        "mm_processor_kwargs": _nothing,
        "models": _nothing,
        "negative_prompt": _nothing,
        "plugins": _nothing,
        "route": _only("fallback"),
        "raw": _only(False),
        "safe_prompt": _only(False),
        "suffix": _nothing,
        "transforms": _nothing,
        # How it is answered.
        "details": _only(False),
        "detokenize": _only(True),
        "include_stop_str_in_output": _only(False),
        "incremental_output": _only(True),
        "n_probs": _only(0),
        "no_stop_trim": _only(False),
        "parse_tool_calls": _only(True),
        "post_sampling_probs": _only(False),
        "prompt_logprobs": _only(False),
        "reasoning_format": _only("auto", "deepseek"),
        "response_fields": _nothing,
        "result_format": _only("message"),
        "return_full_text": _only(False),
        "return_progress": _only(False),
        "return_tokens": _only(False),
        "separate_reasoning": _only(True),
        "skip_special_tokens": _only(True),
        "stream_reasoning": _only(True),
        "t_max_predict_ms": _only(0),
        "timings_per_token": _only(False),
        "tool_stream": _only(True),
        "truncation": _only("disabled"),
        # Containers.
        "extra_body": _nothing,
        "kv_transfer_params": _nothing,
        "lora": _nothing,
        "options": _nothing,
        "vllm_xargs": _nothing,
    }
)
"""Of chat and plain completions."""

EMBEDDING: Mapping[str, Rule] = MappingProxyType(
    dict.fromkeys(
        (*(name for name in _ATTRIBUTION if name != "verbosity"), "cache_control", "keep_alive", "ttl"), _anything
    )
    | {
        "add_special_tokens": _only(True),
        "embedding_type": _only("float"),
        "embedding_types": _only(["float"]),
        "extra_body": _nothing,
        "late_chunking": _only(False),
        "options": _nothing,
        "output_dtype": _only("float"),
        "return_multivector": _only(False),
        "truncation_direction": _only("right", "Right", "RIGHT"),
    }
)
"""Of embeddings, and whatever else embeds."""

TOKENS: Mapping[str, Rule] = MappingProxyType(dict.fromkeys(_ATTRIBUTION, _anything))
"""Of `tokenize` and `detokenize`."""
