"""Tool calls as a model's parser reports them, brought to one shape. Executes and checks nothing.

A call of a function that was not offered is still a call: the client answers it with an error the model can read.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from worker.text.tool_calls.coercion import coerce_arguments
from worker.text.tool_calls.formats import FORMATS

ToolParser = Callable[[str, Any], Any]
"""mlx-lm's `parse_tool_call(text, tools)`: one dict or a list of them, or any exception."""


_NAME = re.compile(r"[\w.:-]+")
_BEGINNING = re.compile(r"call:[\w-]+\{")
MOST_BEGINNINGS = 32
"""In one block of a `searched` format: without an end, each costs a search of all that follows, while streams wait."""


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
    form = FORMATS.get(tool_parser.__module__.rpartition(".")[2])
    searched = form is not None and form.searched
    if tools and form is not None and form.untyped:
        tool_parser = coerce_arguments(tool_parser, tools)

    def parse(text: str) -> list[Call]:
        if searched and sum(1 for _ in _BEGINNING.finditer(text)) > MOST_BEGINNINGS:
            raise ValueError("not a tool call: too many of them")
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


def parser_name(tokenizer: Any) -> str:
    """Return what mlx-lm calls the parser of a tokenizer's model; empty where it has none."""
    return str(getattr(tokenizer.tool_parser, "__module__", "")).rpartition(".")[2]


def _call(item: Any, offered: set[Any]) -> Call:
    name, arguments, own_id = item["name"], item.get("arguments"), item.get("id")
    if not isinstance(name, str) or not name:
        raise ValueError("a call without a name")
    # mlx-lm's glm47 takes any text for a call: its first word as the name, the rest as an argument "raw".
    raw = isinstance(arguments, dict) and arguments.keys() == {"raw"}
    if name not in offered and (raw or not _NAME.fullmatch(name)):
        raise ValueError("free text")
    call = Call(name=name, arguments=_arguments(arguments), id=own_id if isinstance(own_id, str) and own_id else None)
    # A lone surrogate can't travel: better found here than in the encoder of a whole step.
    msgspec.msgpack.encode(call)
    return call


def _arguments(value: Any) -> str:
    """Return the JSON text of an object. Raises `ValueError` or `TypeError` for anything else."""
    if value is None:
        return "{}"
    if isinstance(value, str) and isinstance(json.loads(value), dict):
        return value
    if isinstance(value, dict):
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    raise TypeError("arguments that are no object")


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
