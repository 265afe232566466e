"""Tool calls as a model's parser reports them, brought to one shape. Executes and checks nothing.

A call of a function that was not offered is still a call: the client answers it with an error the model can read.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import msgspec

from worker.text.tool_calls.objects import to_json

ToolParser = Callable[[str, Any], Any]
"""mlx-lm's `parse_tool_call(text, tools)`: one dict or a list of them, or any exception."""


_NAME = re.compile(r"[\w.:-]+")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call: `arguments` is the text of a JSON object, `id` the model's own where it has one."""

    name: str
    arguments: str
    id: str | None = None


def calls_from(
    tool_parser: ToolParser, tools: Sequence[Mapping[str, Any]] | None = None
) -> Callable[[str], list[Call]]:
    """Return a function from the inside of a tool block to its calls (at least one). It raises `ValueError`, only."""
    offered = {tool.get("function", {}).get("name") for tool in tools or ()}

    def parse(text: str) -> list[Call]:
        try:
            parsed = tool_parser(text, tools)
            found = parsed if isinstance(parsed, list) else [parsed]
            calls = [_call(item, offered) for item in found]
        # Parsers meet whatever a model wrote: besides ValueError they raise KeyError, AttributeError (no match),
        # SyntaxError, RecursionError and MemoryError (nesting). None of them may reach the other rows.
        except Exception as error:
            raise ValueError(f"not a tool call: {type(error).__name__}") from error
        if not calls:
            raise ValueError("not a tool call: nothing in the block")
        return calls

    return parse


def calls_in(value: Any, offered: Container[str], *, offered_only: bool = False) -> list[Call]:
    """Return the calls that JSON holds, whichever of the usual names it has for things. Raises `ValueError`."""
    calls = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            raise ValueError("not a tool call: no object")  # noqa: TRY004
        inner = item["function"] if isinstance(item.get("function"), dict) else item
        name = inner.get("name", inner.get("function"))
        arguments = next((inner[key] for key in ("arguments", "parameters") if key in inner), None)
        if offered_only and (name not in offered or not isinstance(arguments, dict)):
            raise ValueError("not a tool call: an object")
        try:
            calls.append(_call({"name": name, "arguments": arguments, "id": item.get("id")}, offered))
        except TypeError as error:
            raise ValueError(f"not a tool call: {error}") from error
    if not calls:
        raise ValueError("not a tool call: nothing in the block")
    return calls


def _call(item: Any, offered: Container[Any]) -> Call:
    name, arguments, own_id = item["name"], item.get("arguments"), item.get("id")
    if not isinstance(name, str) or not name:
        raise ValueError("a call without a name")
    # mlx-lm's glm47 takes any text for a call: its first word as the name, the rest as an argument "raw".
    raw = isinstance(arguments, dict) and arguments.keys() == {"raw"}
    if name not in offered and (raw or not _NAME.fullmatch(name)):
        raise ValueError("free text")
    # A lone surrogate can't travel: better found here than in the encoder of a whole step.
    name.encode()
    return Call(
        name=name,
        arguments=_arguments(arguments),
        id=own_id if isinstance(own_id, str) and own_id.isascii() and own_id else None,
    )


def _arguments(value: Any) -> str:
    """Return the JSON text of an object. Raises `ValueError` or `TypeError` for anything else."""
    if value is None or value == "":
        return "{}"
    if isinstance(value, str):
        return _text_of_object(value)
    if isinstance(value, dict):
        return as_json(value)
    raise TypeError("arguments that are no object")


def _text_of_object(text: str) -> str:
    written = to_json(text)
    if not isinstance(json.loads(written), dict):
        raise TypeError("arguments that are no object")
    return written


def as_json(value: Mapping[str, Any]) -> str:
    """Return the JSON text of an object. Raises `ValueError` or `TypeError` for what is none."""
    written = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    try:
        written.encode()
    except UnicodeEncodeError:
        # Half a character can't travel but by its number.
        return json.dumps(_finite(value), allow_nan=False)
    return written


def _finite(value: Any) -> Any:
    """Return the same with numbers that are JSON but too large for a double (`1e999`) as the largest one."""
    match value:
        case float() if math.isinf(value):
            return math.copysign(sys.float_info.max, value)
        case dict():
            return {key: _finite(part) for key, part in value.items()}
        case list():
            return [_finite(part) for part in value]
        case _:
            return value
