"""Messages in the form that chat templates expect: parsed tool arguments, no developer role, string contents.

A content with images is a list of parts instead, with `{"type": "image"}` where each image belongs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, assert_never

import orjson

from gateway.schema.decode import depth
from gateway.schema.errors import invalid
from gateway.schema.parts.bounds import MAX_JSON_DEPTH
from gateway.schema.parts.messages import (
    AssistantMessage,
    AssistantPart,
    CalledTool,
    DeveloperMessage,
    ImagePart,
    Message,
    ReasoningPart,
    RefusalPart,
    SystemMessage,
    TextPart,
    ThinkingPart,
    ToolMessage,
    UserMessage,
)


def check_messages(messages: list[Message]) -> None:
    """Check how deep arguments of calls nest. Raises `ApiError`."""
    for index, message in enumerate(messages):
        if not isinstance(message, AssistantMessage):
            continue
        for number, call in enumerate(message.tool_calls or ()):
            if depth(_arguments(call), MAX_JSON_DEPTH) > MAX_JSON_DEPTH:
                where = f"messages[{index}].tool_calls[{number}].function.arguments"
                raise invalid(f"'{where}' is nested more than {MAX_JSON_DEPTH} levels deep.", where)


def check_continuation(messages: list[Message], *, opened: bool | None, continued: bool | None) -> None:
    """Check that a last message that is to be continued can be. Raises `ApiError`."""
    if not continued:
        return
    if opened:
        message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
        raise invalid(message, "continue_final_message")
    last = messages[-1]
    if not isinstance(last, AssistantMessage) or last.tool_calls or not _text(last.content or last.refusal or ""):
        message = "'continue_final_message' needs a last message of the assistant with content and without tool calls."
        raise invalid(message, "continue_final_message")


def inner_arguments(messages: list[Message]) -> Iterator[tuple[str, str]]:
    """Yield the arguments of all calls, each with its place."""
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            for number, call in enumerate(message.tool_calls or ()):
                yield f"messages[{index}].tool_calls[{number}].function.arguments", call.function.arguments


def template_messages(messages: list[Message]) -> bytes:
    """Write the JSON for the worker's template engine."""
    return orjson.dumps([_plain(message) for message in messages])


def _plain(message: Message) -> dict[str, Any]:
    match message:
        case SystemMessage() | DeveloperMessage():
            plain: dict[str, Any] = {"role": "system", "content": _text(message.content)}
        case UserMessage():
            plain = {"role": "user", "content": _with_images(message.content)}
        case ToolMessage():
            content = _with_images(message.content or "")
            plain = {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
        case AssistantMessage():
            plain = _assistant(message)
        case _:
            assert_never(message)
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    content = message.content or message.refusal or ""
    plain: dict[str, Any] = {"role": "assistant", "content": _text(content)}
    thoughts = "".join(map(_thought, content)) if isinstance(content, list) else ""
    if reasoning := message.reasoning_content or message.reasoning or thoughts:
        plain["reasoning_content"] = reasoning
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    return plain


def _with_images(content: str | list[TextPart | ImagePart]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    texts = [part for part in content if isinstance(part, TextPart)]
    if len(texts) == len(content):
        return _text(texts)
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"} for part in content
    ]


def _text(content: str | Sequence[AssistantPart]) -> str:
    return content if isinstance(content, str) else "".join(map(_said, content))


def _said(part: AssistantPart) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case ThinkingPart() | ReasoningPart():
            return ""


def _thought(part: AssistantPart) -> str:
    match part:
        case ThinkingPart():
            return _text(part.thinking)
        case ReasoningPart():
            return part.text
        case TextPart() | RefusalPart():
            return ""


def _arguments(call: CalledTool) -> dict[str, Any] | str:
    """Parse arguments: templates (Qwen's and its kin) iterate over a mapping. Text that is no object stays text."""
    if not call.function.arguments.strip():
        # A call without parameters, as many clients and servers write it.
        return {}
    try:
        parsed = orjson.loads(call.function.arguments)
    except orjson.JSONDecodeError:
        return call.function.arguments
    return parsed if isinstance(parsed, dict) else call.function.arguments
