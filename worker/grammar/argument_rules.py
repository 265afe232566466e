"""Notations of arguments other than JSON: tags around each of them, and literals with quotes of a model's own. Pure.

Whatever a grammar made here lets through is what mlx-lm's parser of that format, or ours, reads as a call.
"""

import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from worker.grammar.lark import LarkBuilder, quoted
from worker.grammar.tools import ToolCase
from worker.text.tool_calls.schemas import DEEPEST, resolved, types_of

_DEFINITIONS = ("$defs", "definitions")


class Tags(msgspec.Struct, frozen=True, kw_only=True):
    """A format of one tag per argument. Texts with `{}` where the name goes; `gap` may stand between tags."""

    before: str
    after: str
    opening: str
    closing: str
    names: str = r"[^\s<>\"']+"
    gap: str = ""
    without: Sequence[str] = ()

    def write_call(self, sheet: LarkBuilder, tool: ToolCase) -> str:
        """What one call of a tool is. Raises `ValueError` where its strict schema can't be kept."""
        pieces = [sheet.spell(self.before.format(tool.name)), self.gap]
        for name, schema, required in tool.arguments_schema():
            if not re.fullmatch(self.names, name):
                if required and tool.strict:
                    raise ValueError(f"the model's format has no place for an argument {name!r}")
                continue
            value = self._value(sheet, tool, schema)
            piece = sheet.add_rule(f"{sheet.spell(self.opening.format(name))} {value} {self.gap}")
            pieces.append(piece if required else f"{piece}?")
        return " ".join([*pieces, sheet.spell(self.after)])

    def _value(self, sheet: LarkBuilder, tool: ToolCase, schema: Mapping[str, Any]) -> str:
        text = _text_of(schema, tool.schema)
        if text is None:
            return f"{sheet.add_json(_within(schema, tool.schema))} {sheet.spell(self.closing)}"
        return sheet.write_text(text, self.closing, without=self.without, strict=tool.strict)


def _text_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is said of a value that is written as it is: a string, or anything at all. None: it is written as JSON."""
    types = types_of(schema, root)
    if not types or types == {"string"}:
        return resolved(schema, root)
    return None


def _within(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a schema by itself, with the definitions that it may refer to."""
    return {**schema, **{name: root[name] for name in _DEFINITIONS if name in root}}


class Literals(msgspec.Struct, frozen=True, kw_only=True):
    """A format that lists arguments: `name(a=1,b=2)`. Strings stand between `quote`s, or are JSON where there is none.

    No string may hold any of `without`. `flat`: neither lists nor objects.
    """

    before: str
    after: str
    assign: str
    comma: str = '","'
    quote: str = ""
    names: str = r"\w+"
    without: Sequence[str] = ()
    flat: bool = False

    def write_call(self, sheet: LarkBuilder, tool: ToolCase) -> str:
        """What one call of a tool is. Raises `ValueError` where its strict schema can't be kept."""
        written = _Writer(self, sheet, tool)
        inside = written.members(tool.arguments_schema())
        return " ".join([sheet.spell(self.before.format(tool.name)), inside, sheet.spell(self.after)])


class _Writer:
    """Turns schemas of one tool into rules."""

    def __init__(self, form: Literals, sheet: LarkBuilder, tool: ToolCase) -> None:
        self._form = form
        self._sheet = sheet
        self._tool = tool
        self._known: dict[str, str] = {}

    def members(self, arguments: Iterator[tuple[str, dict[str, Any], bool]]) -> str:
        """Required ones first: their order means nothing, and commas are simple then."""
        required: list[str] = []
        optional: list[str] = []
        for name, schema, needed in arguments:
            if not re.fullmatch(self._form.names, name) or keyword.iskeyword(name):
                if needed and self._tool.strict:
                    raise ValueError(f"the model's format has no place for an argument {name!r}")
                continue
            value = f"{self._sheet.spell(name + self._form.assign)} {self.value(schema, 0)}"
            (required if needed else optional).append(self._sheet.add_rule(value))
        comma = self._form.comma
        head = f" {comma} ".join(required)
        if required:
            return " ".join([head, *(f"({comma} {piece})?" for piece in optional)])
        # Any of them may come first; each rule says what may follow.
        rest, first = '""', ""
        for piece in reversed(optional):
            first = self._sheet.add_rule(f"{piece} {rest} | {first}" if first else f"{piece} {rest}")
            rest = self._sheet.add_rule(f"({comma} {piece})? {rest}")
        return f"{first}?" if first else '""'

    def value(self, schema: Mapping[str, Any], depth: int) -> str:
        """A value that fits a schema."""
        if not self._form.quote:
            return self._sheet.add_json(_within(schema, self._tool.schema))
        if isinstance(reference := schema.get("$ref"), str):
            return self._referred(reference, depth)
        types = types_of(schema, self._tool.schema)
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            return f"({' | '.join(self._literal(value) for value in values)})"
        if types == {"string"} and "type" in schema:
            form, sheet = self._form, self._sheet
            text = sheet.write_text(schema, form.quote, without=form.without, strict=self._tool.strict)
            return f"{sheet.spell(form.quote)} {text}"
        if types and types <= {"number", "integer", "boolean", "null"}:
            return self._sheet.add_json(_within(schema, self._tool.schema))
        return self._compound(schema, types, depth)

    def _compound(self, schema: Mapping[str, Any], types: frozenset[str], depth: int) -> str:
        choices = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(named := schema.get("type"), list):
            choices = [{**schema, "type": name} for name in named]
        if isinstance(choices, list) and depth < DEEPEST:
            return f"({' | '.join(self.value(choice, depth + 1) for choice in choices)})"
        if types == {"array"} and not self._form.flat and depth < DEEPEST:
            return self._array(schema, depth)
        if types == {"object"} and not self._form.flat and depth < DEEPEST:
            tool = msgspec.structs.replace(self._tool, schema=dict(schema))
            return f'"{{" {self.members(tool.arguments_schema())} "}}"'
        if self._tool.strict:
            raise ValueError("the model's format has no place for all that its schema says")
        return self._sheet.add_json({"type": ["number", "boolean", "null"]})

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        if self._tool.strict and not {"type", "items", "minItems", "maxItems", "description", "title"}.issuperset(
            schema
        ):
            raise ValueError("the model's format has no place for all that its schema says")
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and int(most) < max(least, 1):
            return '"[" "]"'
        item = self._sheet.add_rule(self.value(schema.get("items") or {}, depth + 1))
        more = f"{max(least - 1, 0)},{'' if most is None else int(most) - 1}"
        several = f"{item} ({self._form.comma} {item}){{{more}}}"
        return f'"[" {several} "]"' if least else f'"[" ({several})? "]"'

    def _referred(self, reference: str, depth: int) -> str:
        """A rule for each definition, so that one may refer to itself."""
        if reference not in self._known:
            name = self._known[reference] = f"def{len(self._known)}"
            found = resolved({"$ref": reference}, self._tool.schema)
            self._sheet.lines.append(f"{name}: {self.value(found, depth + 1)}")
        return self._known[reference]

    def _literal(self, value: Any) -> str:
        match value:
            case str() if not any(mark in value for mark in (self._form.quote, *self._form.without)):
                spelled = self._sheet.spell(self._form.quote)
                return " ".join([spelled, quoted(value), spelled]) if value else f"{spelled} {spelled}"
            case None | bool() | int() | float():
                return self._sheet.add_json({"const": value})
            case _:
                raise ValueError("one of its values can't be written in the model's format")
