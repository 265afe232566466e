"""Answer bodies of generations. Streams are written by `gateway/routes/*_chunks.py` in the shapes given here."""

from typing import Literal

from msgspec import UNSET, UnsetType

from gateway.schema.base import Answer
from protocol.messages import Usage as JobUsage

TokenIds = list[int] | UnsetType
"""Only there where `return_token_ids` asked for them."""


class PromptDetails(Answer, frozen=True, kw_only=True):
    """Of the prompt's tokens: those whose work was found in the prefix cache."""

    cached_tokens: int


class CompletionDetails(Answer, frozen=True, kw_only=True):
    """Of the generated tokens: those spent on reasoning."""

    reasoning_tokens: int


class UsageBody(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens. The details are known at the end of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Timings(Answer, frozen=True, kw_only=True):
    """Where the time went, in seconds; present when `return_timing` was asked for."""

    wait_s: float
    prefill_s: float
    decode_s: float
    tokens_per_second: float


class Alternative(Answer, frozen=True, kw_only=True):
    """A token that could have been chosen. `bytes` are exact where `token` holds a replacement character."""

    token: str
    bytes: list[int]
    logprob: float


class LogprobBody(Alternative, frozen=True, kw_only=True):
    """A token that was chosen, with the likeliest alternatives."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Answer, frozen=True, kw_only=True):
    """One entry per generated token."""

    content: list[LogprobBody]
    refusal: None = None


class FunctionCall(Answer, frozen=True, kw_only=True):
    """`arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolCallBody(Answer, frozen=True, kw_only=True):
    """A call for the client to carry out."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """`reasoning` repeats `reasoning_content`; clients look for either."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallBody] | None = None


Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(Answer, frozen=True, kw_only=True):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    token_ids: TokenIds = UNSET


class ChatCompletion(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Answer of a chat completion that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageBody
    timings: Timings | None = None
    prompt_token_ids: list[int] | None = None


class FunctionDelta(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """The name comes first, the arguments after it."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """`id`, `type` and the name come in a call's first frame."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class ChatDelta(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What a frame adds to a choice's message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Answer, frozen=True, kw_only=True):
    """What a frame adds to a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    token_ids: TokenIds = UNSET


class ChatCompletionChunk(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """One frame of a streamed chat completion. The last one before `[DONE]` may have no choices but `usage`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None
    timings: Timings | None = None
    prompt_token_ids: list[int] | None = None


TextFinish = Literal["stop", "length"]


class TextLogprobs(Answer, frozen=True, kw_only=True):
    """Four lists of equal length; offsets count characters of the choice's text.

    The first token of an echoed prompt follows nothing: its entries are null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Answer, frozen=True, kw_only=True):
    """Answer number `index % n` to prompt number `index // n`."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: TextFinish | None
    token_ids: TokenIds = UNSET
    prompt_token_ids: TokenIds = UNSET


class Completion(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Answer of a plain completion, and one frame of it where it is streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageBody | None = None
    timings: Timings | None = None


def usage_of(parts: list[JobUsage]) -> UsageBody:
    """Return the tokens of one request, over all its jobs."""
    prompt = sum(part.prompt_tokens for part in parts)
    completion = sum(part.completion_tokens for part in parts)
    return UsageBody(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(part.cached_tokens for part in parts)),
        completion_tokens_details=CompletionDetails(reasoning_tokens=sum(part.reasoning_tokens for part in parts)),
    )


def timings_of(parts: list[JobUsage]) -> Timings:
    """Return seconds of the slowest job in each phase (a request's jobs run side by side), and tokens/s over all."""
    decode_s = max((part.decode_s for part in parts), default=0.0)
    tokens = sum(part.completion_tokens for part in parts)
    return Timings(
        wait_s=max((part.wait_s for part in parts), default=0.0),
        prefill_s=max((part.prefill_s for part in parts), default=0.0),
        decode_s=decode_s,
        tokens_per_second=tokens / decode_s if decode_s > 0 else 0.0,
    )
