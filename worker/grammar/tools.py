"""The tools that a job may call, with what their schemas say about each argument. Pure."""

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from protocol.messages import ChatPrompt, GenerateJob
from protocol.schemas.enforceable import SchemaError, make_enforceable

ANY_OBJECT: Mapping[str, Any] = MappingProxyType({"type": "object"})
_PLAIN = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "description",
        "title",
        "$defs",
        "definitions",
        "$schema",
    }
)


class ToolCase(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that may be called; `number` is its place in the request."""

    number: int
    name: str
    schema: dict[str, Any]
    strict: bool

    @property
    def param(self) -> str:
        """Where its schema stands in the request."""
        return f"tools[{self.number}].function.parameters"

    def without_strictness(self) -> "ToolCase":
        """Return the same with any object for its arguments."""
        return msgspec.structs.replace(self, schema=dict(ANY_OBJECT))

    def arguments_schema(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """Yield name, schema and whether it is required, of each argument; for formats that write them one by one.

        Raises `ValueError` where a strict schema says more than which arguments there are.
        """
        properties = self.schema.get("properties") or {}
        required = self.schema.get("required") or []
        if self.strict and (not _PLAIN.issuperset(self.schema) or not set(required) <= properties.keys()):
            raise ValueError("the model's format has no place for all that its schema says")
        for name, schema in properties.items():
            yield name, schema if isinstance(schema, dict) else {}, name in required


def callable_tools(job: GenerateJob) -> list[ToolCase]:
    """Return the tools that the job may call."""
    raw = job.prompt.tools if isinstance(job.prompt, ChatPrompt) else None
    cases = []
    for number, tool in enumerate(msgspec.json.decode(raw) if raw else ()):
        function = tool["function"]
        if job.tool_names and function["name"] not in job.tool_names:
            continue
        schema = {**ANY_OBJECT, **(function.get("parameters") or {})}
        strict = bool(function.get("strict"))
        # What can't be enforced is told where it is compiled, or not enforced where it need not be.
        with contextlib.suppress(SchemaError):
            enforceable = make_enforceable(schema)
            schema = schema if strict and enforceable.left else enforceable.schema
        cases.append(ToolCase(number=number, name=function["name"], schema=schema, strict=strict))
    return cases
