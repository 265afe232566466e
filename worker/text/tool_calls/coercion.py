"""Arguments that a model writes as bare text (`<parameter=days>3</parameter>`), read as what their schema says."""

import ast
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from worker.text.tool_calls.objects import to_json
from worker.text.tool_calls.schemas import type_of, types_of

_AS_STRING = ("string", "true")
_STRING = frozenset({"string"})
_NO_STRING = frozenset({"object", "array", "number", "integer", "boolean", "null"})


def fit_arguments(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of the types that their schema declares, where what was written can be read so."""
    properties = schema.get("properties") or {}
    return {
        name: fit_value(value, types_of(properties[name], schema)) if name in properties else value
        for name, value in arguments.items()
    }


def fit_value(value: Any, types: frozenset[str], *, written_as: str | None = None) -> Any:
    """Return a value as one of these types (none: of any). `written_as` is what its tag says of whether it is text."""
    if written_as in _AS_STRING:
        return value
    if written_as is not None and not types:
        types = _NO_STRING
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        return int(value)
    if not isinstance(value, str):
        # `null` and numbers that were read where text was asked for.
        return json.dumps(value) if types and type_of(value) not in types and "string" in types else value
    if types == _STRING:
        return value
    for read in (_read_json, _read_python):
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            parsed = read(value.strip())
            if isinstance(parsed, float):
                parsed = fit_value(parsed, types)
            kinds = {type_of(parsed), *(("number",) if type(parsed) is int else ())}
            # Where anything may come, a bare word or number is as likely a text.
            if kinds & (types or {"object", "array"}):
                return parsed
    return value


def _read_json(text: str) -> Any:
    return json.loads(to_json(text) if text[:1] in ("[", "{") else text, parse_constant=_refuse)


def _read_python(text: str) -> Any:
    found = ast.literal_eval(text)
    # Python has values within lists that JSON has not.
    json.dumps(found, allow_nan=False)
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
