"""Deltas to the bytes of a streamed chat completion. The hot path: a text delta is three byte strings joined."""

from collections.abc import Iterator

import msgspec
import orjson
from msgspec import UNSET

from gateway.schema.parts.answers import (
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    Finish,
    FunctionDelta,
    Timings,
    TokenIds,
    ToolCallDelta,
    UsageBody,
)
from gateway.serving.response_meta import ResponseMeta, closing_frame, finish_of, logprob_of
from protocol.messages import Delta, TokenLogprob, ToolCall

KIND = "chat.completion.chunk"


class ChatChunks:
    """Writes the frames of one request, in the shape of `gateway.schema.parts.answers.ChatCompletionChunk`."""

    def __init__(self, meta: ResponseMeta, *, choices: int, include_usage: bool) -> None:
        self._head = meta.frame_head(KIND)
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._choices = choices
        self._token_ids: TokenIds = UNSET
        """Of the next frame that is written."""
        self._text_heads = [self._head + b'{"index":%d,"delta":{"content":' % choice for choice in range(choices)]
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def encode_opening(self) -> bytes:
        """Encode the first frame of every choice: who speaks."""
        speaker = ChatDelta(role="assistant", content="")
        return b"".join(self._frame(choice, speaker) for choice in range(self._choices))

    def encode_deltas(self, deltas: list[Delta]) -> bytes:
        """Encode all frames that `deltas` amount to; empty where they bring nothing to show."""
        parts: list[bytes] = []
        for delta in deltas:
            if delta.finish is not None or delta.reasoning or delta.calls or delta.logprobs:
                self._mixed(delta, parts)
            elif delta.text:
                parts += (self._text_heads[delta.choice], orjson.dumps(delta.text), self._text_tail)
        return b"".join(parts)

    def encode_closing(self, usage: UsageBody | None, timings: Timings | None) -> bytes:
        """Encode the frame without choices, where one was asked for."""
        return closing_frame(self._head, usage, timings)

    def _mixed(self, delta: Delta, parts: list[bytes]) -> None:
        choice = delta.choice
        if delta.text or delta.reasoning or delta.logprobs:
            said = ChatDelta(
                content=None if delta.reasoning and not delta.text else delta.text,
                reasoning_content=delta.reasoning or None,
                reasoning=delta.reasoning or None,
            )
            parts.append(self._frame(choice, said, logprobs=delta.logprobs))
        parts += (self._frame(choice, ChatDelta(tool_calls=[piece])) for call in delta.calls for piece in _pieces(call))
        if delta.finish is not None:
            parts.append(self._frame(choice, ChatDelta(), finish=finish_of(delta)))

    def _frame(
        self,
        choice: int,
        delta: ChatDelta,
        *,
        logprobs: list[TokenLogprob] | None = None,
        finish: Finish | None = None,
    ) -> bytes:
        found = ChatLogprobs(content=[logprob_of(token) for token in logprobs]) if logprobs else None
        ids, self._token_ids = self._token_ids, UNSET
        entry = ChatChunkChoice(index=choice, delta=delta, logprobs=found, finish_reason=finish, token_ids=ids)
        return self._head + msgspec.json.encode(entry) + self._tail


def _pieces(call: ToolCall) -> Iterator[ToolCallDelta]:
    """Split calls as OpenAI sends them: who is called, then the arguments."""
    if call.name:
        opening = FunctionDelta(name=call.name, arguments="")
        yield ToolCallDelta(index=call.index, id=call.id, type="function", function=opening)
    if call.arguments or call.name:
        yield ToolCallDelta(index=call.index, function=FunctionDelta(arguments=call.arguments))
