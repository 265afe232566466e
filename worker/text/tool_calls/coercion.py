"""Arguments that a model writes as bare text (`<parameter=days>3</parameter>`), read as what their schema says.

mlx-lm's parsers convert such texts as well, each by rules of its own; some lose large numbers, raise at others, or
leave `anyOf` alone. So they are told that everything is a string, and what is not one is read here.
"""

import ast
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worker.text.tool_calls.schemas import type_of, types_of

Parser = Callable[[str, Any], Any]


def coerce_arguments(parser: Parser, tools: Sequence[Mapping[str, Any]]) -> Parser:
    """Return the parser with arguments of the types that tools declare, where what was written can be read so."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    bare = [_bare(name, schema) for name, schema in schemas.items()]

    def parse(text: str, _: Any) -> Any:
        parsed = parser(text, bare)
        for call in parsed if isinstance(parsed, list) else [parsed]:
            schema = schemas.get(call["name"])
            if schema and isinstance(call["arguments"], dict):
                properties = schema.get("properties") or {}
                found = call["arguments"].items()
                call["arguments"] = {
                    name: _fit(value, types_of(properties[name], schema)) if name in properties else value
                    for name, value in found
                }
        return parsed

    return parse


def _bare(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in schema.get("properties") or {}}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def _fit(value: Any, types: frozenset[str]) -> Any:
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        return int(value)
    if not isinstance(value, str):
        # `null` and numbers that were read where text was asked for.
        return json.dumps(value) if types and type_of(value) not in types and "string" in types else value
    if types == {"string"}:
        return value
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = read(value)
            if isinstance(parsed, float):
                parsed = _fit(parsed, types)
            kinds = {type_of(parsed), *(("number",) if type(parsed) is int else ())}
            # Where anything may come, a bare word or number is as likely a text.
            if kinds & (types or {"object", "array"}):
                return parsed
    return value
