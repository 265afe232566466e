"""What little of JSON schemas matters to calls whose arguments are written as text: which types a value may have."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

DEEPEST = 16
"""References followed before a schema counts as saying nothing."""
_NAMES = MappingProxyType(
    {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
        type(None): "null",
    }
)


def type_of(value: Any) -> str:
    """Return the JSON schema's name for the type of a value; empty where JSON has none (Python's sets, bytes, ...)."""
    return _NAMES.get(type(value), "")


def resolve_schema(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that references within `root` lead to; empty where they lead nowhere."""
    for _ in range(DEEPEST):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = root if reference.startswith("#") else {}
        for part in reference.split("/")[1:]:
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return {}


def types_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """Return the types that a value may have by what a schema says of it; empty: any."""
    schema = resolve_schema(schema, root)
    if depth > DEEPEST:
        return frozenset()
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return frozenset(map(type_of, values if isinstance(values, list) else ()))
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset((named,))
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    for key in ("anyOf", "oneOf"):
        if isinstance(parts := schema.get(key), list) and parts:
            each = [types_of(part, root, depth + 1) for part in parts]
            return frozenset().union(*each) if all(each) else frozenset()
    if isinstance(parts := schema.get("allOf"), list):
        return next((found for part in parts if (found := types_of(part, root, depth + 1))), frozenset())
    return frozenset()
