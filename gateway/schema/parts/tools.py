"""Tools as clients declare them (only functions), and which of them may or must be called."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from gateway.schema.base import ContentPart
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import MAX_TOOLS, NAME_PATTERN
from gateway.schema.parts.structured import checked_schema, unenforced_in

FunctionName = Annotated[str, Meta(pattern=NAME_PATTERN)]


class Function(ContentPart, frozen=True, kw_only=True):
    """A function the model may call. `parameters` is a JSON Schema; with `strict`, arguments always fit it."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function tool."""

    function: Function


class FunctionByName(ContentPart, frozen=True, kw_only=True):
    """One of the tools."""

    name: FunctionName


class NamedTool(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """Demands one call of this function."""

    function: FunctionByName


class AllowedTools(ContentPart, frozen=True, kw_only=True):
    """Some of the tools; `required` demands a call."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """Only some of the tools may be called."""

    allowed_tools: AllowedTools


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice


def check_tools(tools: list[Tool], choice: ToolChoice | None) -> None:
    """Check bounds of schemas, and that a choice names what is there. Raises `ApiError`."""
    for index, tool in enumerate(tools):
        if tool.function.parameters is not None:
            where = f"tools[{index}].function.parameters"
            checked_schema(tool.function.parameters, where, strict=bool(tool.function.strict))
    if choice not in (None, "none", "auto") and not tools:
        raise invalid("'tool_choice' demands a call, but there are no 'tools'.", "tool_choice")
    offered = {tool.function.name for tool in tools}
    for name in called_names(choice):
        if name not in offered:
            raise invalid(f"'tool_choice' names the function '{name}', which is not among 'tools'.", "tool_choice")


def unenforced_tools(tools: list[Tool], choice: ToolChoice | None) -> list[str]:
    """Return what the schemas of a demanded call leave to the model. Raises nothing: they need not be schemas."""
    if not call_demanded(choice):
        return []
    names, found = called_names(choice), list[str]()
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function.parameters"
        if tool.function.parameters is None or (names and tool.function.name not in names):
            continue
        try:
            found += unenforced_in(tool.function.parameters, where)
        except ApiError:
            found.append(where)
    return found


def called_names(choice: ToolChoice | None) -> list[str]:
    """Return the only functions that may be called; empty: any."""
    match choice:
        case NamedTool():
            return [choice.function.name]
        case AllowedToolChoice():
            return [tool.function.name for tool in choice.allowed_tools.tools]
        case _:
            return []


def call_demanded(choice: ToolChoice | None) -> bool:
    """Return whether the answer must be a call."""
    match choice:
        case NamedTool():
            return True
        case AllowedToolChoice():
            return choice.allowed_tools.mode == "required"
        case _:
            return choice == "required"
