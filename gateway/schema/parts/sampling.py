"""The fields that every generation shares, and their meaning for a worker."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateway.schema import ignored
from gateway.schema.base import ContentPart, Request
from gateway.schema.errors import ApiError, invalid, unsupported
from gateway.schema.parts.bounds import (
    MAX_BIAS,
    MAX_LOGIT_BIAS,
    MAX_TOKEN_ID,
    MAX_TOKENS,
    Bookkeeping,
    Choices,
    LogitBias,
    MaxTokens,
    MinP,
    MinTokens,
    ModelName,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    StopIds,
    Temperature,
    TopK,
    TopP,
)
from gateway.schema.parts.structured import StructuredOutputs, extra_grammar, unenforced_extra
from gateway.schema.parts.thinking import agree_on
from protocol.errors import context_message
from protocol.messages import Grammar, Ready, Sampling

_SEED_MASK = 2**63 - 1
_SHOWN_CHARS = 32


class StreamOptions(ContentPart, frozen=True, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class UsageOptions(ContentPart, frozen=True, kw_only=True):
    """OpenRouter's way to ask for usage."""

    include: bool | None = None


LENGTHS = ("max_tokens", "max_completion_tokens", "n_predict", "num_predict", "max_new_tokens")
"""Names of the same ceiling."""


class Generation(Request, frozen=True, kw_only=True):
    """Fields that chat and plain completions share."""

    ignorable: ClassVar[Mapping[str, ignored.Rule]] = ignored.GENERATION
    idle: ClassVar[frozenset[str]] = frozenset({"user"})
    model: ModelName | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    max_tokens: MaxTokens | None = None
    n_predict: MaxTokens | None = None
    num_predict: MaxTokens | None = None
    max_new_tokens: MaxTokens | None = None
    min_tokens: MinTokens | None = None
    stop_token_ids: StopIds | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    ignore_eos: bool | None = None
    usage: UsageOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_timing: bool | None = None
    user: Bookkeeping | None = None

    @classmethod
    def read_dialect(cls, raw: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
        """Return a body's fields, ceilings brought into their range: -1 is none, and none is too high."""
        raw = super().read_dialect(raw, ignored)
        for name in LENGTHS:
            value = raw.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value == -1:
                raw = {other: kept for other, kept in raw.items() if other != name}
            elif value > MAX_TOKENS:
                raw = {**raw, name: MAX_TOKENS}
        return raw

    @classmethod
    def refuse_unsupported(cls, raw: dict[str, Any]) -> None:
        """Refuse padded frames, which are OpenAI's answer to a threat of theirs, and name a bad bias.

        Raises `ApiError`.
        """
        options = raw.get("stream_options")
        if isinstance(options, dict) and options.get("include_obfuscation") is True:
            raise unsupported("stream_options.include_obfuscation")
        bias = raw.get("logit_bias")
        if isinstance(bias, dict) and len(bias) <= MAX_LOGIT_BIAS:
            for key, value in bias.items():
                _check_bias(key, value)

    def check_values(self) -> None:
        """Check that `stream_options` goes with `stream`, and names of one thing agree. Raises `ApiError`."""
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
        agree_on({name: getattr(self, name) for name in ("repetition_penalty", "repeat_penalty")})
        ceiling = self.ceiling
        if self.min_tokens is not None and ceiling is not None and self.min_tokens > ceiling:
            raise invalid("'min_tokens' must not be above 'max_tokens'.", "min_tokens")
        self.make_grammar()

    def list_unenforced(self) -> list[str]:
        """Return what `structured_outputs` leaves to the model."""
        return unenforced_extra(self.structured_outputs)

    @property
    def ceiling(self) -> int | None:
        """The most tokens of an answer; None: nothing was said. Raises `ApiError`."""
        return agree_on({name: getattr(self, name, None) for name in LENGTHS})

    def make_grammar(self) -> Grammar | None:
        """Return what the text of an answer must be. Raises `ApiError`."""
        return extra_grammar(self.structured_outputs)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a frame of usage."""
        if self.usage is not None and self.usage.include:
            return True
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_on_chunks(self) -> bool:
        """Whether every frame of a stream tells usage up to it."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    def list_stops(self) -> list[str]:
        """Stop strings, as a list."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    def make_sampling(self, ready: Ready | None) -> Sampling:
        """Return how rows of this request sample; a seed is drawn where none was given.

        `ready` is what is known of the model so far: with it, ids outside the vocabulary are refused here
        (workers refuse them too, since MLX would write out of bounds). Raises `ApiError`.
        """
        bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        if ready is not None:
            for token in bias:
                check_id(token, ready, f"logit_bias.{token}")
            for at, token in enumerate(self.stop_token_ids or ()):
                check_id(token, ready, f"stop_token_ids[{at}]")
        return Sampling(
            seed=secrets.randbits(63) if self.seed is None else self.seed & _SEED_MASK,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=bias,
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            stop_token_ids=self.stop_token_ids or [],
        )


def _check_bias(key: str, value: Any) -> None:
    """Check one entry of `logit_bias`, which is named where it is wrong. Raises `ApiError`."""
    shown = key if len(key) <= _SHOWN_CHARS else f"{key[:_SHOWN_CHARS]}…"
    if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID):
        message = f"The keys of 'logit_bias' must be token ids, not 'logit_bias.{shown}'."
        raise invalid(message, f"logit_bias.{shown}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_BIAS:
        message = f"Invalid value for 'logit_bias.{shown}': expected a number from -{MAX_BIAS} to {MAX_BIAS}."
        raise invalid(message, f"logit_bias.{shown}")


def check_id(token: int, ready: Ready, param: str) -> None:
    """Check that the model has a token. Raises `ApiError`."""
    if token >= ready.vocab_size:
        raise invalid(f"'{param}' names token {token}; the model has {ready.vocab_size}.", param)


def check_tokens(tokens: Sequence[int], ready: Ready | None, param: str) -> None:
    """Check a prompt's token ids: in the vocabulary, no more than the context holds. Raises `ApiError`."""
    if ready is None:
        return
    if tokens and max(tokens) >= ready.vocab_size:
        raise invalid(f"'{param}' holds token {max(tokens)}; the model has {ready.vocab_size}.", param)
    if len(tokens) > ready.context_length:
        raise ApiError(
            "context_length_exceeded",
            context_message(ready.context_length, f"'{param}' has {len(tokens)}"),
            param,
        )
