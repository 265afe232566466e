"""Tool calls as grammars: what `worker.text.tool_calls.formats` says of a format, written as rules. Pure.

Where a format has an end marker, it must hold a control token: of a mere text nothing could keep a string free.
"""

import re
from collections.abc import Sequence

from protocol.errors import Code, JobError
from worker.grammar.argument_rules import write_call
from worker.grammar.lark import LarkBuilder, TokenSpelling
from worker.grammar.tools import ToolCase
from worker.text.tool_calls.formats import FORMATS, MISTRAL_LIST, SPACE, JsonSyntax, ToolFormat


def format_of(parser: str, spell: TokenSpelling) -> ToolFormat | None:
    """Return the format behind a parser, by its name; None where calls in it can't be enforced."""
    if parser == "mistral" and spell.spell_token("[ARGS]") is None:
        return MISTRAL_LIST
    return FORMATS.get(parser)


def write_calls(form: ToolFormat, tools: Sequence[ToolCase], builder: LarkBuilder, *, parallel: bool) -> None:
    """Write `calls`, one call or more, and `tail`, what follows a start marker up to its end marker.

    Raises `ValueError` for what this format can't say, `JobError` where that is a schema of a strict tool.
    """
    spell = builder.spell
    # JSON says itself where it ends.
    if form.end and spell.is_plain_text(form.end) and not isinstance(form.syntax, JsonSyntax):
        raise ValueError("the marker that ends a call is no token of this model")
    inside = f"one (({form.between}) one)*" if parallel and form.between is not None else "one"
    several = parallel and form.between is None
    start = spell(form.start)
    builder.lines += [
        f"calls: {start} tail" + (f" ({SPACE} {start} tail)*" if several else ""),
        f"tail: {form.opening} {inside} {form.closing} {spell(form.end)}",
    ]
    write_each_call(form, tools, builder)


def write_each_call(form: ToolFormat, tools: Sequence[ToolCase], builder: LarkBuilder) -> None:
    """Write `one`, a call of one of the tools. Raises what `write_calls` raises."""
    if wrong := [tool.name for tool in tools if not re.fullmatch(form.names, tool.name)]:
        raise ValueError(f"the model can't call a function of the name {wrong[0]!r}")
    calls = [_call(form, tool, builder) for tool in tools]
    builder.lines += [
        f"one: {' | '.join(f'call{number}' for number in range(len(tools)))}",
        *(f"call{number}: {call}" for number, call in enumerate(calls)),
    ]


def _call(form: ToolFormat, tool: ToolCase, builder: LarkBuilder) -> str:
    before = len(builder.lines), len(builder.parts)
    try:
        return write_call(form.syntax, builder, tool)
    except ValueError as error:
        if tool.strict:
            message = f"'{tool.param}' can't be enforced: {error}."
            raise JobError(Code.INVALID_REQUEST, message, tool.param) from None
        del builder.lines[before[0] :], builder.parts[before[1] :]
        return write_call(form.syntax, builder, tool.without_strictness())
