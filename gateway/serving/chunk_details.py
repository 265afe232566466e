"""Streams whose frames tell more, or less, than usual: usage up to each, token ids, no reasoning.

They are written delta by delta; nobody else pays for it.
"""

from collections import defaultdict

import msgspec
import orjson

from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.completion import CompletionRequest
from gateway.schema.parts.answers import UsageBody
from gateway.serving.chat_chunks import ChatChunks
from gateway.serving.response_meta import ResponseMeta
from gateway.serving.text_chunks import TextChunks
from protocol.messages import Accepted, Delta


class FrameDetails:
    """What is told on each frame of one request; `ids` are those of tokens that no frame has told yet."""

    def __init__(self, *, usage: bool, token_ids: bool) -> None:
        self.usage = usage
        self.token_ids = token_ids
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.ids: defaultdict[int, list[int]] = defaultdict(list)

    def add_delta(self, delta: Delta, choice: int) -> None:
        """Count what a delta brings."""
        self.completion_tokens += len(delta.tokens)
        if self.token_ids:
            self.ids[choice] += delta.tokens

    def end_of_frame(self, otherwise: bytes) -> bytes:
        """Return the end of a frame behind its choices."""
        if not self.usage:
            return otherwise
        usage = UsageBody(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
        )
        return b'],"usage":' + msgspec.json.encode(usage) + b"}\n\n"


class DetailedChatChunks(ChatChunks):
    """See `ChatChunks`."""

    def __init__(self, wanted: ChatCompletionRequest, meta: ResponseMeta, accepted: Accepted) -> None:
        super().__init__(meta, choices=wanted.n or 1, include_usage=wanted.include_usage)
        self._details = FrameDetails(usage=wanted.usage_on_chunks, token_ids=bool(wanted.return_token_ids))
        self._details.prompt_tokens = accepted.prompt_tokens
        self._prompt = accepted.prompt
        self._tells_reasoning = wanted.tells_reasoning
        self._plain_tail = self._tail

    def encode_opening(self) -> bytes:
        """Encode the first frame of every choice; the very first tells the prompt's ids, where they were asked for."""
        tail = self._tail = self._details.end_of_frame(self._plain_tail)
        if not self._details.token_ids:
            return super().encode_opening()
        told = b'],"prompt_token_ids":' + orjson.dumps(self._prompt) + tail.removeprefix(b"]")
        return super().encode_opening().replace(tail, told, 1)

    def encode_deltas(self, deltas: list[Delta]) -> bytes:
        """Encode all frames that `deltas` amount to."""
        return b"".join(map(self._encode_delta, deltas))

    def _encode_delta(self, delta: Delta) -> bytes:
        details = self._details
        details.add_delta(delta, delta.choice)
        if not self._tells_reasoning and delta.reasoning:
            delta = msgspec.structs.replace(delta, reasoning="")
        self._tail = details.end_of_frame(self._plain_tail)
        ids = b""
        if details.token_ids:
            self._token_ids = details.ids[delta.choice]
            ids = b',"token_ids":' + orjson.dumps(self._token_ids)
        self._text_tail = b'},"logprobs":null,"finish_reason":null' + ids + b"}" + self._tail
        if frames := super().encode_deltas([delta]):
            details.ids.pop(delta.choice, None)
        return frames


class DetailedTextChunks(TextChunks):
    """See `TextChunks`."""

    def __init__(self, wanted: CompletionRequest, meta: ResponseMeta, *, choices: int) -> None:
        super().__init__(meta, choices=choices, logprobs=wanted.logprobs, include_usage=wanted.include_usage)
        self._details = FrameDetails(usage=wanted.usage_on_chunks, token_ids=bool(wanted.return_token_ids))
        self._prompts: dict[int, list[int]] = {}
        self._plain_tail = self._tail

    def begin_job(self, accepted: Accepted, choices: range) -> None:
        """Take note of a prompt, before the first frame of its choices."""
        self._details.prompt_tokens += accepted.prompt_tokens
        if self._details.token_ids:
            self._prompts |= dict.fromkeys(choices, accepted.prompt)

    def encode_deltas(self, deltas: list[Delta], first_choice: int) -> bytes:
        """Encode all frames that the deltas of one job amount to."""
        return b"".join(self._encode_delta(delta, first_choice) for delta in deltas)

    def _encode_delta(self, delta: Delta, first_choice: int) -> bytes:
        details, choice = self._details, first_choice + delta.choice
        details.add_delta(delta, choice)
        self._tail = details.end_of_frame(self._plain_tail)
        ids = b""
        if details.token_ids:
            self._token_ids = details.ids[choice]
            ids = b',"token_ids":' + orjson.dumps(self._token_ids)
            if choice in self._prompts:
                self._prompt_ids = self._prompts[choice]
                ids += b',"prompt_token_ids":' + orjson.dumps(self._prompt_ids)
        self._text_tail = b',"logprobs":null,"finish_reason":null' + ids + b"}" + self._tail
        if frames := super().encode_deltas([delta], first_choice):
            details.ids.pop(choice, None)
            self._prompts.pop(choice, None)
        return frames


def chat_chunks(wanted: ChatCompletionRequest, meta: ResponseMeta, accepted: Accepted) -> ChatChunks:
    """Return what writes the frames of a chat."""
    if wanted.usage_on_chunks or wanted.return_token_ids or not wanted.tells_reasoning:
        return DetailedChatChunks(wanted, meta, accepted)
    return ChatChunks(meta, choices=wanted.n or 1, include_usage=wanted.include_usage)


def text_chunks(wanted: CompletionRequest, meta: ResponseMeta, *, choices: int) -> TextChunks:
    """Return what writes the frames of plain completions."""
    if wanted.usage_on_chunks or wanted.return_token_ids:
        return DetailedTextChunks(wanted, meta, choices=choices)
    return TextChunks(meta, choices=choices, logprobs=wanted.logprobs, include_usage=wanted.include_usage)
