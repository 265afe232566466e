"""Deltas to the bytes of a streamed plain completion, and the legacy log-probability lists."""

from math import inf, isnan
from statistics import fmean

import msgspec
import orjson
from msgspec import UNSET

from gateway.schema.parts.answers import TextChoice, TextFinish, TextLogprobs, Timings, TokenIds, UsageBody
from gateway.serving.response_meta import ResponseMeta, closing_frame, finite_logprob
from protocol.messages import Delta, TokenLogprob

KIND = "text_completion"


class TextChunks:
    """Writes the frames of one request, in the shape of `gateway.schema.parts.answers.Completion`.

    `choices` counts over all prompts; `logprobs` is what the request asked for.
    """

    def __init__(self, meta: ResponseMeta, *, choices: int, logprobs: int | None, include_usage: bool) -> None:
        self._head = meta.frame_head(KIND)
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._logprobs = logprobs
        self._token_ids: TokenIds = UNSET
        self._prompt_ids: TokenIds = UNSET
        """Of the next frame that is written."""
        self._offsets = [0] * choices
        self._text_heads = [self._head + b'{"index":%d,"text":' % choice for choice in range(choices)]
        self._text_tail = b',"logprobs":null,"finish_reason":null}' + self._tail

    def encode_deltas(self, deltas: list[Delta], first_choice: int) -> bytes:
        """Encode all frames that the deltas of one job amount to; its choice 0 is the request's `first_choice`."""
        parts: list[bytes] = []
        for delta in deltas:
            choice = first_choice + delta.choice
            if delta.finish is not None or delta.reasoning or delta.logprobs:
                entry = text_choice(delta, choice, alternatives=self._logprobs, offset=self._offsets[choice])
                entry = msgspec.structs.replace(entry, token_ids=self._token_ids, prompt_token_ids=self._prompt_ids)
                self._token_ids = self._prompt_ids = UNSET
                self._offsets[choice] += sum(len(token.token) for token in delta.logprobs)
                parts.append(self._head + msgspec.json.encode(entry) + self._tail)
            elif delta.text:
                parts += (self._text_heads[choice], orjson.dumps(delta.text), self._text_tail)
        return b"".join(parts)

    def encode_closing(self, usage: UsageBody | None, timings: Timings | None) -> bytes:
        """Encode the frame without choices, where one was asked for."""
        return closing_frame(self._head, usage, timings)


def text_choice(delta: Delta, index: int, *, alternatives: int | None, offset: int = 0) -> TextChoice:
    """Return what a delta adds to choice `index`, or all of it.

    A plain completion knows no channels and no tool calls: whatever a worker set apart as reasoning is text here.
    """
    logprobs = None
    if alternatives is not None and delta.logprobs:
        logprobs = legacy_logprobs(delta.logprobs, alternatives=alternatives, offset=offset)
    finish: TextFinish | None = None
    if delta.finish is not None:
        finish = "length" if delta.finish == "length" else "stop"
    return TextChoice(index=index, text=delta.reasoning + delta.text, logprobs=logprobs, finish_reason=finish)


def legacy_logprobs(tokens: list[TokenLogprob], *, alternatives: int, offset: int) -> TextLogprobs:
    """Return four lists; `offset` is the first token's place in the choice's text, in characters.

    As at OpenAI the chosen token is always among the alternatives, so there may be one more than asked for.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[None if isnan(token.logprob) else finite_logprob(token.logprob) for token in tokens],
        top_logprobs=[_alternatives(token) for token in tokens] if alternatives else None,
        text_offset=offsets,
    )


def _alternatives(token: TokenLogprob) -> dict[str, float] | None:
    if isnan(token.logprob):
        return None
    found = {text: finite_logprob(logprob) for text, _, logprob in token.top}
    found.setdefault(token.token, finite_logprob(token.logprob))
    return found


def pick_best(deltas: list[Delta], wanted: int, *, prompt_tokens: int) -> list[Delta]:
    """Return the `wanted` answers of highest log-probability per token, best first, numbered anew.

    `prompt_tokens` leading entries are of the prompt.
    """
    ranked = sorted(deltas, key=lambda delta: -_mean(delta.logprobs[prompt_tokens:]))
    return [msgspec.structs.replace(delta, choice=at) for at, delta in enumerate(ranked[:wanted])]


def _mean(tokens: list[TokenLogprob]) -> float:
    return fmean(finite_logprob(token.logprob) for token in tokens) if tokens else -inf
