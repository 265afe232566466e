"""A grammar while it is written: its rules, the schemas they refer to, and how a model's tokens spell a text. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

WHITE_SPACE = r"[ ]?|\n[ \t]{0,40}"
"""Between the parts of JSON: what pretty-printers write, and no more. A model at a loss writes spaces for ever."""
ESCAPES = 'bfnrt"\\'
"""Behind a backslash in JSON. Without `u`, as an escaped name of a property would pass for another one."""
_TEXTUAL = frozenset(
    {"type", "title", "description", "default", "examples", "minLength", "maxLength", "enum", "const", "deprecated"}
)


def quoted(text: str) -> str:
    """Return a Lark string."""
    return json.dumps(text, ensure_ascii=False)


def slashed(regex: str) -> str:
    """Return an expression as Lark writes it between slashes."""
    regex = re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], regex, flags=re.DOTALL)
    return regex.replace("\n", "\\n")


def json_part(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON that fits a schema, for rules to refer to as `@name`."""
    # Last, so that a schema can't bring options of its own.
    options = {"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES}
    return {"name": name, "json_schema": {**schema, "x-guidance": options}}


class TokenSpelling:
    """How a model's tokens write a text: control tokens by number, the rest as text."""

    def __init__(self, control: Mapping[str, int]) -> None:
        """`control` is what grammars know as control tokens."""
        self._control = control
        names = sorted(control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def __call__(self, text: str) -> str:
        """Return the text as Lark writes it."""
        return " ".join(piece if control else quoted(piece) for piece, control in self._pieces(text)) or '""'

    def is_plain_text(self, text: str) -> bool:
        """Return whether there is no control token in it."""
        return all(not control for _, control in self._pieces(text))

    def ends_in_text(self, text: str) -> bool:
        """Return whether its last token is no control token."""
        return not self._pieces(text)[-1][1]

    def leading_text(self, text: str) -> str:
        """Return what stands before the first control token."""
        first, control = self._pieces(text)[0]
        return "" if control else first

    def guarded_part(self, text: str) -> str:
        """Return the text up to its last control token: nothing but that can spell it. Empty where it has none."""
        pieces = self._pieces(text)
        while pieces and not pieces[-1][1]:
            text = text.removesuffix(pieces.pop()[0])
        return text

    def spell_token(self, text: str) -> str | None:
        """Return all of a text as one control token, or None."""
        return f"<[{self._control[text]}]>" if text in self._control else None

    def _pieces(self, text: str) -> list[tuple[str, bool]]:
        pieces = []
        at = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            if found.start() > at:
                pieces.append((text[at : found.start()], False))
            pieces.append((f"<[{self._control[found[0]]}]>", True))
            at = found.end()
        if at < len(text):
            pieces.append((text[at:], False))
        return pieces


class LarkBuilder:
    """Lark rules and named schemas, as they are needed."""

    def __init__(self, spelling: TokenSpelling) -> None:
        self.spell = spelling
        self.lines: list[str] = []
        self.parts: list[dict[str, Any]] = []

    def add_json(self, schema: Mapping[str, Any]) -> str:
        """Add JSON that fits a schema; return what refers to it."""
        name = f"json{len(self.parts)}"
        self.parts.append(json_part(name, schema))
        return f"@{name}"

    def add_rule(self, body: str, *, name: str = "rule", attributes: str = "") -> str:
        """Add a rule of its own, to be repeated or left out; return its name."""
        name = f"{name}{len(self.lines)}"
        self.lines.append(f"{name}{attributes}: {body}")
        return name

    def write_text(self, schema: Mapping[str, Any], closing: str, *, without: Sequence[str], strict: bool) -> str:
        """Return a string as it is, up to and with `closing`, in which none of `without` stands.

        Raises `ValueError` where a strict schema says more of the string than can be said here.
        """
        if "enum" in schema or "const" in schema:
            values = [value if isinstance(value, str) else json.dumps(value) for value in _values(schema)]
            if any(mark in value for value in values for mark in (closing, *without)):
                raise ValueError("one of its values would end the call")
            return f"({' | '.join(map(quoted, values))}) {self.spell(closing)}"
        if strict and not _TEXTUAL.issuperset(schema):
            raise ValueError(f"the model's format can't hold text to {sorted(set(schema) - _TEXTUAL)[0]!r}")
        plain = self.spell.is_plain_text(closing)
        avoided = [*without, *([] if plain else [closing.strip()])]
        # A control token ends the text before it: whatever text belongs to the closing is matched with it.
        before = "" if plain else self.spell.leading_text(closing.lstrip())
        body = f"/{_length(schema)}{slashed(re.escape(before))}/"
        if avoided:
            body += f" & ~/(?s:.*)({'|'.join(slashed(re.escape(mark)) for mark in avoided)})(?s:.*)/"
        self.lines.append(f"TEXT{len(self.lines)}: {body}")
        name = f"TEXT{len(self.lines) - 1}"
        if plain:
            return self.add_rule(name, name="text", attributes=f"[suffix={quoted(closing)}]")
        # Line breaks before a control token are the text's: nothing could tell them apart.
        return f"{name} {self.spell(closing.lstrip().removeprefix(before))}"


def _values(schema: Mapping[str, Any]) -> list[Any]:
    found = schema.get("enum", [schema.get("const")])
    return found if isinstance(found, list) else []


def _length(schema: Mapping[str, Any]) -> str:
    """Return an expression for texts of the right length. White space at the ends does not count: parsers strip it."""
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if not isinstance(least, int) or (most is not None and not isinstance(most, int)) or (most or least) < least:
        raise ValueError("its lengths are no lengths")
    if least == 0:
        return "(?s:.*)" if most is None else f"(?s:.{{0,{most}}})"
    if least == 1:
        within = "" if most is None else max(most - 2, 0)
        return r"\S" if most == 1 else rf"\S((?s:.{{0,{within}}})\S)?"
    return rf"\S(?s:.{{{least - 2},{'' if most is None else most - 2}}})\S"
