"""Whether an answer could fit two branches of a JSON schema, as far as values, types and properties tell. Pure."""

import json
from collections.abc import Mapping
from typing import Any


def listed_values(schema: Any) -> list[Any] | None:
    """Return all values that a schema lists; None where it lists none."""
    if not isinstance(schema, Mapping):
        return None
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return listed if isinstance(listed, list) else None


def with_required(branch: Any, tag: str) -> Any:
    """Return a branch that requires one property more."""
    required = branch.get("required")
    return {**branch, "required": [*dict.fromkeys([*(required if isinstance(required, list) else []), tag])]}


def shared_properties(facts: list[Mapping[str, Any]]) -> list[str]:
    """Return the properties that all branches have, where all are objects."""
    shared = [one.get("properties") for one in facts]
    if not all(isinstance(one, Mapping) for one in shared):
        return []
    return [name for name in shared[0] or () if all(name in (one or ()) for one in shared)]


def all_different(known: list[list[Any] | None]) -> bool:
    """Return whether no two lists share a value; False where one is not known."""
    seen: set[str] = set()
    for values in known:
        if values is None:
            return False
        named = {_name(value) for value in values}
        if not seen.isdisjoint(named):
            return False
        seen |= named
    return True


def _name(value: Any) -> str:
    """Return a text that equal values share: to JSON Schema 1 is 1.0."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, sort_keys=True)


def excludes(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether no answer fits both, as far as their types, values and properties tell."""
    listed = listed_values(one), listed_values(other)
    if None not in listed:
        return all_different([*listed])
    kinds = _kinds(one, listed[0]), _kinds(other, listed[1])
    if kinds[0] and kinds[1] and not kinds[0] & kinds[1]:
        return True
    return _forbids(one, other) or _forbids(other, one)


def _kinds(schema: Mapping[str, Any], values: list[Any] | None) -> set[str]:
    """Return the types of JSON that a schema allows; a whole number is a number. Empty: any."""
    if values is not None:
        return {_kind(value) for value in values}
    return {"number" if name == "integer" else name for name in types_of(schema)}


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds = ((str, "string"), (int, "number"), (float, "number"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")


def _forbids(closed: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether an object has no place for a property that the other one requires."""
    if closed.get("additionalProperties") is not False or closed.get("patternProperties"):
        return False
    required, known = other.get("required"), closed.get("properties") or {}
    objects = types_of(closed) == types_of(other) == {"object"}
    return objects and isinstance(required, list) and any(name not in known for name in required)


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """Return the types that a schema names; empty: it names none."""
    found = schema.get("type")
    return {found} if isinstance(found, str) else {*found} if isinstance(found, list) else set()
