"""The fields that every generation shares, and their meaning for a worker."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateway.schema import ignored
from gateway.schema.base import ContentPart, Request
from gateway.schema.errors import ApiError, invalid, unsupported
from gateway.schema.parts.bounds import (
    MAX_TOKEN_ID,
    Bookkeeping,
    Choices,
    LogitBias,
    MaxTokens,
    MinP,
    ModelName,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
)
from gateway.schema.parts.structured import StructuredOutputs, extra_grammar, unenforced_extra
from protocol.errors import context_message
from protocol.messages import Grammar, Ready, Sampling

_SEED_MASK = 2**63 - 1


class StreamOptions(ContentPart, frozen=True, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


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
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    max_tokens: MaxTokens | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    ignore_eos: bool | None = None
    return_timing: bool | None = None
    user: Bookkeeping | None = None

    @classmethod
    def refuse_unsupported(cls, raw: dict[str, Any]) -> None:
        """Refuse padded frames, which are OpenAI's answer to a threat of theirs. Raises `ApiError`."""
        options = raw.get("stream_options")
        if isinstance(options, dict) and options.get("include_obfuscation") is True:
            raise unsupported("stream_options.include_obfuscation")

    def check_values(self) -> None:
        """Check that `stream_options` goes with `stream`, and keys of `logit_bias` are token ids. Raises `ApiError`."""
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
        for key in self.logit_bias or ():
            if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_TOKEN_ID):
                raise invalid("The keys of 'logit_bias' must be token ids.", "logit_bias")
        self.make_grammar()

    def list_unenforced(self) -> list[str]:
        """Return what `structured_outputs` leaves to the model."""
        return unenforced_extra(self.structured_outputs)

    def make_grammar(self) -> Grammar | None:
        """Return what the text of an answer must be. Raises `ApiError`."""
        return extra_grammar(self.structured_outputs)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a frame of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def list_stops(self) -> list[str]:
        """Stop strings, as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def make_sampling(self, ready: Ready | None) -> Sampling:
        """Return how rows of this request sample; a seed is drawn where none was given.

        `ready` is what is known of the model so far: with it, ids outside the vocabulary are refused here
        (workers refuse them too, since MLX would write out of bounds). Raises `ApiError`.
        """
        bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        if ready is not None and bias and max(bias) >= ready.vocab_size:
            raise invalid(f"'logit_bias' names token {max(bias)}; the model has {ready.vocab_size}.", "logit_bias")
        return Sampling(
            seed=secrets.randbits(63) if self.seed is None else self.seed & _SEED_MASK,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=bias,
            ignore_eos=bool(self.ignore_eos),
        )


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
