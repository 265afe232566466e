"""One call of a tool as rules: JSON, tags around each argument, or literals with quotes of a model's own. Pure.

Whatever a grammar made here lets through is what mlx-lm's parser of that format, or ours, reads as a call.
"""

import json
import keyword
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from worker.grammar.lark import LarkBuilder, quoted
from worker.grammar.tools import ToolCase
from worker.text.tool_calls.formats import JsonSyntax, LiteralSyntax, TagSyntax
from worker.text.tool_calls.schemas import DEEPEST, resolve_schema, types_of

_DEFINITIONS = ("$defs", "definitions")
_WILDCARDS = MappingProxyType({"~": "/[ ]?/", "#": "/[0-9]{1,2}/"})


def write_call(syntax: JsonSyntax | TagSyntax | LiteralSyntax, builder: LarkBuilder, tool: ToolCase) -> str:
    """Return what one call of a tool is; `builder` gets the rules that it needs.

    Raises `ValueError` where the tool's strict schema can't be kept.
    """
    match syntax:
        case JsonSyntax():
            before, after = (_spell_json(text, builder, tool) for text in (syntax.before, syntax.after))
            return f"{before} {builder.add_json(tool.schema)} {after}"
        case TagSyntax():
            return _write_tags(syntax, builder, tool)
        case LiteralSyntax():
            inside = _LiteralWriter(syntax, builder, tool).write_members(tool.arguments_schema())
            return f"{builder.spell(syntax.before.format(tool.name))} {inside} {builder.spell(syntax.after)}"


def _spell_json(text: str, builder: LarkBuilder, tool: ToolCase) -> str:
    names = {"name": tool.name, "json": json.dumps(tool.name)}
    pieces = [piece for piece in re.split(r"([~#])", text) if piece]
    return " ".join(_WILDCARDS.get(piece) or builder.spell(piece.format(**names)) for piece in pieces)


def _write_tags(syntax: TagSyntax, builder: LarkBuilder, tool: ToolCase) -> str:
    pieces = [builder.spell(syntax.before.format(tool.name)), syntax.gap]
    for name, schema, required in tool.arguments_schema():
        if not re.fullmatch(syntax.names, name):
            if required and tool.strict:
                raise ValueError(f"the model's format has no place for an argument {name!r}")
            continue
        opened = _write_tagged(syntax, builder, tool, name, schema)
        piece = builder.add_rule(f"{opened} {syntax.gap}")
        pieces.append(piece if required else f"{piece}?")
    return " ".join([*pieces, builder.spell(syntax.after)])


def _write_tagged(syntax: TagSyntax, builder: LarkBuilder, tool: ToolCase, name: str, schema: Mapping[str, Any]) -> str:
    """Return an argument from its opening tag up to and with its closing tag."""
    text = _text_schema(schema, tool.schema)
    if text is None:
        opening = builder.spell((syntax.json_opening or syntax.opening).format(name))
        return f"{opening} {builder.add_json(_with_definitions(schema, tool.schema))} {builder.spell(syntax.closing)}"
    written = builder.write_text(text, syntax.closing, without=syntax.without, strict=tool.strict)
    return f"{builder.spell(syntax.opening.format(name))} {written}"


def _text_schema(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what is said of a value that is written as it is, string or anything; None: it is written as JSON."""
    types = types_of(schema, root)
    if not types or types == {"string"}:
        return resolve_schema(schema, root)
    return None


def _with_definitions(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a schema by itself, with the definitions that it may refer to."""
    return {**schema, **{name: root[name] for name in _DEFINITIONS if name in root}}


class _LiteralWriter:
    """Writer of the rules for one tool's schemas as literals."""

    def __init__(self, syntax: LiteralSyntax, builder: LarkBuilder, tool: ToolCase) -> None:
        self._syntax = syntax
        self._builder = builder
        self._tool = tool
        self._known: dict[str, str] = {}

    def write_members(self, arguments: Iterator[tuple[str, dict[str, Any], bool]]) -> str:
        """Return the arguments, required ones first: their order means nothing, and commas are simple then."""
        required: list[str] = []
        optional: list[str] = []
        for name, schema, needed in arguments:
            if not re.fullmatch(self._syntax.names, name) or keyword.iskeyword(name):
                if needed and self._tool.strict:
                    raise ValueError(f"the model's format has no place for an argument {name!r}")
                continue
            value = f"{self._builder.spell(name + self._syntax.assign)} {self.write_value(schema, 0)}"
            (required if needed else optional).append(self._builder.add_rule(value))
        comma = self._syntax.comma
        head = f" {comma} ".join(required)
        if required:
            return " ".join([head, *(f"({comma} {piece})?" for piece in optional)])
        # Any of them may come first; each rule says what may follow.
        rest, first = '""', ""
        for piece in reversed(optional):
            first = self._builder.add_rule(f"{piece} {rest} | {first}" if first else f"{piece} {rest}")
            rest = self._builder.add_rule(f"({comma} {piece})? {rest}")
        return f"{first}?" if first else '""'

    def write_value(self, schema: Mapping[str, Any], depth: int) -> str:
        """Return a value that fits a schema."""
        if not self._syntax.quote:
            return self._builder.add_json(_with_definitions(schema, self._tool.schema))
        if isinstance(reference := schema.get("$ref"), str):
            return self._write_reference(reference, depth)
        types = types_of(schema, self._tool.schema)
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            return f"({' | '.join(self._write_literal(value) for value in values)})"
        if types == {"string"} and "type" in schema:
            syntax, builder = self._syntax, self._builder
            text = builder.write_text(schema, syntax.quote, without=syntax.without, strict=self._tool.strict)
            return f"{builder.spell(syntax.quote)} {text}"
        if types and types <= {"number", "integer", "boolean", "null"}:
            return self._builder.add_json(_with_definitions(schema, self._tool.schema))
        return self._write_compound(schema, types, depth)

    def _write_compound(self, schema: Mapping[str, Any], types: frozenset[str], depth: int) -> str:
        choices = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(named := schema.get("type"), list):
            choices = [{**schema, "type": name} for name in named]
        if isinstance(choices, list) and depth < DEEPEST:
            return f"({' | '.join(self.write_value(choice, depth + 1) for choice in choices)})"
        if types == {"array"} and depth < DEEPEST:
            return self._write_array(schema, depth)
        if types == {"object"} and depth < DEEPEST:
            tool = msgspec.structs.replace(self._tool, schema=dict(schema))
            return f'"{{" {self.write_members(tool.arguments_schema())} "}}"'
        if self._tool.strict:
            raise ValueError("the model's format has no place for all that its schema says")
        return self._builder.add_json({"type": ["number", "boolean", "null"]})

    def _write_array(self, schema: Mapping[str, Any], depth: int) -> str:
        if self._tool.strict and not {"type", "items", "minItems", "maxItems", "description", "title"}.issuperset(
            schema
        ):
            raise ValueError("the model's format has no place for all that its schema says")
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and int(most) < max(least, 1):
            return '"[" "]"'
        item = self._builder.add_rule(self.write_value(schema.get("items") or {}, depth + 1))
        more = f"{max(least - 1, 0)},{'' if most is None else int(most) - 1}"
        several = f"{item} ({self._syntax.comma} {item}){{{more}}}"
        return f'"[" {several} "]"' if least else f'"[" ({several})? "]"'

    def _write_reference(self, reference: str, depth: int) -> str:
        """Return the rule of a definition; each has its own, so that one may refer to itself."""
        if reference not in self._known:
            name = self._known[reference] = f"def{len(self._known)}"
            found = resolve_schema({"$ref": reference}, self._tool.schema)
            self._builder.lines.append(f"{name}: {self.write_value(found, depth + 1)}")
        return self._known[reference]

    def _write_literal(self, value: Any) -> str:
        match value:
            case str() if not any(mark in value for mark in (self._syntax.quote, *self._syntax.without)):
                spelled = self._builder.spell(self._syntax.quote)
                return " ".join([spelled, quoted(value), spelled]) if value else f"{spelled} {spelled}"
            case None | bool() | int() | float():
                return self._builder.add_json({"const": value})
            case _:
                raise ValueError("one of its values can't be written in the model's format")
