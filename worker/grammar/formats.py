"""How models write tool calls, as grammars: one entry for each of mlx-lm's parsers whose format is JSON inside markers.

Formats that spell arguments in a notation of their own are not here: calls in them can't be enforced.
"""

import json
import re
from collections.abc import Callable, Sequence

import msgspec

SPACE = "/[ \\n]{0,2}/"


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How calls look. Rules are Lark, `{i}` is the number of a tool whose arguments are `@args{i}`.

    `start` and `end` are the markers (`end` empty: the end of the answer), `call` what one tool's call is within
    them, `between` what parts several calls within one pair of markers (None: each has its own).
    """

    start: str
    end: str
    call: Callable[[str, int], str]
    opening: str = ""
    closing: str = ""
    between: str | None = None
    names: str = r".*"


def quoted(text: str) -> str:
    """A Lark string."""
    return json.dumps(text, ensure_ascii=False)


def _object(name: str, number: int) -> str:
    head = quoted('"name"') + f' ":" /[ ]?/ {quoted(json.dumps(name))} "," /[ ]?/ ' + quoted('"arguments"')
    return f'"{{" /[ ]?/ {head} ":" /[ ]?/ @args{number} /[ ]?/ "}}"'


def format_of(parser: str, token: Callable[[str], str | None]) -> ToolFormat | None:
    """The format behind one of mlx-lm's parsers, by its name; None where calls in it can't be enforced.

    `token` gives a control token as Lark writes it, or None where the text is none.
    """
    match parser:
        case "json_tools":
            return ToolFormat(start="<tool_call>", end="</tool_call>", call=_object, opening=SPACE, closing=SPACE)
        case "longcat":
            return ToolFormat(
                start="<longcat_tool_call>", end="</longcat_tool_call>", call=_object, opening=SPACE, closing=SPACE
            )
        case "mistral" if (arguments := token("[ARGS]")) is not None:
            return ToolFormat(
                start="[TOOL_CALLS]",
                end="",
                call=lambda name, number: f"{quoted(name)} {arguments} /[ ]?/ @args{number}",
                names=r"[\w-]+",
            )
        case "mistral":
            return ToolFormat(
                start="[TOOL_CALLS]", end="", call=_object, opening='/[ ]?/ "["', closing='"]"', between="/, ?/"
            )
        case "kimi_k2":
            begin, argument = token("<|tool_call_begin|>"), token("<|tool_call_argument_begin|>")
            end = token("<|tool_call_end|>")
            if None in (begin, argument, end):
                return None
            return ToolFormat(
                start="<|tool_calls_section_begin|>",
                end="<|tool_calls_section_end|>",
                call=lambda name, number: (
                    f"{begin} {quoted(f'functions.{name}:')} /[0-9]{{1,2}}/ {argument} @args{number} {end}"
                ),
                between='""',
            )
    return None


def rules(form: ToolFormat, names: Sequence[str], token: Callable[[str], str | None], *, parallel: bool) -> list[str]:
    """Lark rules: `calls` is one call or more, `tail` what follows a start marker up to its end marker.

    Raises `ValueError` for what this format can't say.
    """
    start, end = token(form.start), token(form.end) if form.end else '""'
    if start is None or end is None:
        raise ValueError("the markers of calls are no tokens of this model")
    if wrong := [name for name in names if not re.fullmatch(form.names, name)]:
        raise ValueError(f"the model can't call a function of the name {wrong[0]!r}")
    one = " | ".join(f"call{number}" for number in range(len(names)))
    inside = f"one (({form.between}) one)*" if parallel and form.between is not None else "one"
    several = parallel and form.between is None
    return [
        f"calls: {start} tail" + (f" ({SPACE} {start} tail)*" if several else ""),
        f"tail: {form.opening} {inside} {form.closing} {end}",
        f"one: {one}",
        *(f"call{number}: {form.call(name, number)}" for number, name in enumerate(names)),
    ]
