"""What other servers and clients leave in a history: taken where it can't change the answer, and named in a header.

An assistant's message is what a server once answered, so that whatever else stands in it is an echo. In other messages
only certain names are.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.schema.parts.messages import (
    AssistantMessage,
    CalledFunction,
    CalledTool,
    DeveloperMessage,
    ImagePart,
    ReasoningPart,
    RefusalPart,
    SystemMessage,
    TextPart,
    ThinkingPart,
    ToolMessage,
    UserMessage,
)

ECHOES = frozenset(
    {
        "annotations",
        "cache_control",
        "citations",
        "created",
        "created_at",
        "createdAt",
        "experimental_providerMetadata",
        "id",
        "message_id",
        "metadata",
        "model",
        "parent_id",
        "prompt_cache_breakpoint",
        "providerMetadata",
        "providerOptions",
        "provider_metadata",
        "provider_options",
        "provider_specific_fields",
        "status",
        "timestamp",
        "updated_at",
        "usage",
        "uuid",
    }
)
"""Hints for caches, ids, dates and what a server added for itself: nothing of it reaches a model."""
CHANGING = frozenset({"prefix", "partial"})
"""Of an assistant's message: asks to go on from it, as `continue_final_message` does here."""
THOUGHTS = ("thinking", "reasoning_text")
"""Other names of `reasoning_content`."""
MOST_NAMES = 64
"""That the header says of one request."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a header can say."""


def _names_of(*kinds: type[msgspec.Struct]) -> Mapping[Any, frozenset[str]]:
    configs = [(kind.__struct_config__, kind.__struct_encode_fields__) for kind in kinds]
    return MappingProxyType({config.tag: frozenset((*fields, str(config.tag_field))) for config, fields in configs})


_MESSAGES = _names_of(SystemMessage, DeveloperMessage, UserMessage, AssistantMessage, ToolMessage)
_PARTS = _names_of(TextPart, ImagePart, RefusalPart, ThinkingPart, ReasoningPart)
_CALL = frozenset((*CalledTool.__struct_encode_fields__, "type"))
_FUNCTION = frozenset(CalledFunction.__struct_encode_fields__)


def take_echoes(messages: Any, ignored: set[str]) -> Any:
    """Return messages, as a body has them, without what changes nothing; `ignored` gets its names."""
    if not isinstance(messages, list):
        return messages
    return [_take(message, ignored) if isinstance(message, dict) else message for message in messages]


def _take(message: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
    role = message.get("role")
    known = _MESSAGES.get(role) if isinstance(role, str) else None
    if known is None:
        return message
    every = role == "assistant"
    if every:
        message = _read_thoughts(message)
    message = _without_echoes(message, known, "messages", ignored, every=every)
    if isinstance(content := message.get("content"), list):
        message = {**message, "content": [_take_from_part(part, ignored, every=every) for part in content]}
    if every and isinstance(calls := message.get("tool_calls"), list):
        message = {**message, "tool_calls": [_take_from_call(call, ignored) for call in calls]}
    return message


def _read_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose thoughts have a name that is read here."""
    for name in THOUGHTS:
        thought = message.get(name)
        if isinstance(thought, str) and not (message.get("reasoning_content") or message.get("reasoning")):
            message = {other: value for other, value in message.items() if other != name} | {"reasoning": thought}
    return message


def _take_from_part(part: Any, ignored: set[str], *, every: bool) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    return part if known is None else _without_echoes(part, known, "messages.content", ignored, every=every)


def _take_from_call(call: Any, ignored: set[str]) -> Any:
    if not isinstance(call, dict):
        return call
    call = _without_echoes(call, _CALL, "messages.tool_calls", ignored, every=True)
    if not isinstance(function := call.get("function"), dict):
        return call
    where = "messages.tool_calls.function"
    return {**call, "function": _without_echoes(function, _FUNCTION, where, ignored, every=True)}


def _without_echoes(
    found: dict[str, Any], known: frozenset[str], where: str, ignored: set[str], *, every: bool
) -> dict[str, Any]:
    """Return an object without echoes; `every` unknown name is one, unless it asks for something."""
    if found.keys() <= known:
        return found
    kept = {}
    for name, value in found.items():
        if name in known or not _is_echo(name, value, every=every):
            kept[name] = value
        elif value is not None and len(ignored) < MOST_NAMES:
            ignored.add(f"{where}.{name}")
    return kept


def _is_echo(name: str, value: Any, *, every: bool) -> bool:
    if value is None:
        return True
    if not _NAME.fullmatch(name):
        return False
    empty = isinstance(value, str | list | dict) and not value
    return empty or name in ECHOES or (every and (value is False or name not in CHANGING))
