"""What messages are made of: the base of everything that travels, prompts, sampling, images, pieces of answers."""

from collections.abc import Iterable

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything that travels."""


# -- Parts of jobs


class ChatPrompt(Message, frozen=True):
    """A conversation, to be rendered by the model's own chat template.

    `messages` and `tools` are JSON as the client sent them (validated), so that the gateway pays one
    copy and the worker one parse. `template` holds scalars for the template, by its own names; what it does not read
    is left out. `add_generation_prompt` opens an answer; `continue_final_message` ends the prompt with the text of the
    last message instead, which is the assistant's.
    """

    messages: bytes
    tools: bytes | None = None
    template: dict[str, bool | int | float | str] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class TextPrompt(Message, frozen=True):
    """Plain text, tokenised as it is."""

    text: str
    add_special_tokens: bool = True


class TokenPrompt(Message, frozen=True):
    """Token ids, used as they are."""

    tokens: list[int]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Sampling(Message, frozen=True):
    """How one row picks its next token. `None` means: the model's own default.

    A row's draws depend on `(seed, choice, position)` alone, so an answer depends neither on its
    neighbours nor on where it is resumed. `top_k` 0 and `min_p` 0 are off. `stop_token_ids` end the answer besides the
    model's own ends; neither those nor stop texts do so within its first `min_tokens` tokens.
    """

    seed: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token_ids: list[int] = []


class Grammar(Message, frozen=True):
    """What the text of an answer (behind its reasoning) must be.

    `kind` says what `text` is: `json_schema` (JSON), `json_object` (nothing), `regex`, `choice` (a JSON list of
    strings) or `grammar` (Lark or GBNF). `param` is the request's field, for errors.
    """

    kind: str
    text: str = ""
    param: str = ""


class Image(Message, frozen=True):
    """A picture that belongs to a job, as the client's file.

    `buffer` is its place among the raw frames behind the envelope, `digest` the SHA-256 of its bytes: what caches know
    it by. `detail` is OpenAI's: `auto`, `low` or `high`.
    """

    buffer: int
    digest: bytes
    detail: str = "auto"


# -- Parts of answers


class ToolCall(Message, frozen=True):
    """One tool call, or more of one: without a `name`, its `arguments` go on those of the same `index` before it.

    `arguments`, all together, are JSON text, as far as the model wrote any.
    """

    index: int
    id: str
    name: str
    arguments: str


def joined_calls(pieces: Iterable[ToolCall]) -> list[ToolCall]:
    """Join pieces to tool calls with all their arguments. One whose beginning is missing stays a piece."""
    calls: list[ToolCall] = []
    for piece in pieces:
        if calls and not piece.name and calls[-1].index == piece.index:
            last = calls[-1]
            calls[-1] = ToolCall(last.index, last.id, last.name, last.arguments + piece.arguments)
        else:
            calls.append(piece)
    return calls


class TokenLogprob(Message, frozen=True):
    """One token with its log-probability (nats; NaN where it follows nothing) and the most likely alternatives.

    `token` is the text of the token, lossy where it is part of a character; `raw` its bytes.
    """

    token: str
    raw: bytes
    logprob: float
    top: list[tuple[str, bytes, float]] = []


class Usage(Message, frozen=True):
    """What a job cost, in tokens and seconds.

    `stepped_tokens` were computed: of prompts what was not cached, and each step of each choice, told or not; 0: nobody
    counted. `compile_s` is processor time that went into its grammar.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    wait_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    stepped_tokens: int = 0
    compile_s: float = 0.0
