"""Tools as clients declare them. Only functions, and none with an enforced schema."""

from typing import Annotated, Any

import orjson
from msgspec import Meta

from gateway.errors import invalid, unsupported
from gateway.schema.base import Part
from gateway.schema.bounds import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, MAX_TOOLS
from gateway.schema.decode import depth

FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Part, frozen=True, kw_only=True):
    """A function the model may call. `parameters` is a JSON Schema, shown to the model but not enforced."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function tool."""

    function: Function


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]


def check_tools(tools: list[Tool]) -> None:
    """Bounds of schemas, and no promise that is not kept. Raises `ApiError`."""
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        if tool.function.strict:
            raise unsupported(f"{where}.strict", "is not supported by this server: arguments are not enforced.")
        if tool.function.parameters is not None:
            _check_schema(tool.function.parameters, f"{where}.parameters")


def _check_schema(schema: dict[str, Any], where: str) -> None:
    deep = invalid(f"'{where}' is nested more than {MAX_SCHEMA_DEPTH} levels deep.", where)
    try:
        size = len(orjson.dumps(schema))
    except TypeError:  # orjson's own limit, 254 levels
        raise deep from None
    if size > MAX_SCHEMA_BYTES:
        raise invalid(f"'{where}' is larger than {MAX_SCHEMA_BYTES} bytes.", where)
    if depth(schema, MAX_SCHEMA_DEPTH) > MAX_SCHEMA_DEPTH:
        raise deep
