"""How models write tool calls, as grammars: one entry for each parser whose format can be enforced.

Where a format has an end marker, it must end in a control token: of a mere text nothing could keep a string free.
"""

import json
import re
from collections.abc import Callable, Sequence
from types import MappingProxyType

import msgspec

from protocol.errors import Code, JobError
from worker.grammar.argument_rules import Literals, Tags
from worker.grammar.lark import SPACE, LarkBuilder, TokenSpelling, quoted
from worker.grammar.tools import ToolCase

ToolCall = Callable[[LarkBuilder, ToolCase], str]
"""What one call of a tool looks like, in Lark; it writes what that needs to the sheet."""


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How calls look.

    `start` and `end` are the markers (`end` empty: the end of the answer), `call` what one tool's call is within
    them, `between` what parts several calls within one pair of markers (None: each has its own).
    """

    start: str
    end: str
    call: ToolCall
    opening: str = ""
    closing: str = ""
    between: str | None = None
    names: str = r".*"


def _object(arguments: str) -> ToolCall:
    def call(sheet: LarkBuilder, tool: ToolCase) -> str:
        head = quoted('"name"') + f' ":" /[ ]?/ {quoted(json.dumps(tool.name))} "," /[ ]?/ ' + quoted(f'"{arguments}"')
        return f'"{{" /[ ]?/ {head} ":" /[ ]?/ {sheet.add_json(tool.schema)} /[ ]?/ "}}"'

    return call


def _llama(sheet: LarkBuilder, tool: ToolCase) -> str:
    head = f'":" /[ ]?/ {quoted(json.dumps(tool.name))} "," /[ ]?/ ' + quoted('"parameters"')
    return f'{head} ":" /[ ]?/ {sheet.add_json(tool.schema)} /[ ]?/ "}}"'


def _headed(sheet: LarkBuilder, tool: ToolCase) -> str:
    return f"{quoted(tool.name)} {sheet.spell('[ARGS]')} /[ ]?/ {sheet.add_json(tool.schema)}"


def _numbered(sheet: LarkBuilder, tool: ToolCase) -> str:
    begin, argument = sheet.spell("<|tool_call_begin|>"), sheet.spell("<|tool_call_argument_begin|>")
    name, end = quoted(f"functions.{tool.name}:"), sheet.spell("<|tool_call_end|>")
    return f"{begin} {name} /[0-9]{{1,2}}/ {argument} {sheet.add_json(tool.schema)} {end}"


def _opened(sheet: LarkBuilder, tool: ToolCase) -> str:
    opening = f'<|open|>call tool="{tool.name}" index="'
    rest = ('"<|sep|><|open|>json type="object"<|sep|>', "<|close|>json<|sep|><|close|>call<|sep|>")
    head, tail = (sheet.spell(text) for text in rest)
    return f"{sheet.spell(opening)} /[0-9]{{1,2}}/ {head} {sheet.add_json(tool.schema)} {tail}"


_PYTHON = r"[^\W\d]\w*"
_GLM = ToolFormat(
    start="<tool_call>",
    end="</tool_call>",
    call=Tags(
        before="{}",
        after="",
        opening="<arg_key>{}</arg_key><arg_value>",
        closing="</arg_value>",
        gap="/\\n?/",
        without=("</tool_call>",),
    ).write_call,
)
FORMATS = MappingProxyType(
    {
        "json_tools": ToolFormat(
            start="<tool_call>", end="</tool_call>", call=_object("arguments"), opening=SPACE, closing=SPACE
        ),
        "longcat": ToolFormat(
            start="<longcat_tool_call>",
            end="</longcat_tool_call>",
            call=_object("arguments"),
            opening=SPACE,
            closing=SPACE,
        ),
        "llama3": ToolFormat(start='{"name"', end="", call=_llama, between='";" /[ ]?/ "{\\"name\\""'),
        "kimi_k2": ToolFormat(
            start="<|tool_calls_section_begin|>", end="<|tool_calls_section_end|>", call=_numbered, between='""'
        ),
        "kimi_k3": ToolFormat(
            start="<|open|>tools<|sep|>", end="<|close|>tools<|sep|>", call=_opened, between='""', names=r"[^\"&]+"
        ),
        "glm47": _GLM,
        "laguna": _GLM,
        "qwen3_coder": ToolFormat(
            start="<tool_call>",
            end="</tool_call>",
            call=Tags(
                before="\n<function={}>\n",
                after="</function>\n",
                opening="<parameter={}>\n",
                closing="\n</parameter>\n",
                without=("</tool_call>", "</function>"),
            ).write_call,
        ),
        "minimax_m2": ToolFormat(
            start="<minimax:tool_call>",
            end="</minimax:tool_call>",
            call=Tags(
                before='<invoke name="{}">\n',
                after="</invoke>\n",
                opening='<parameter name="{}">',
                closing="</parameter>\n",
                without=("</minimax:tool_call>", "</invoke>"),
            ).write_call,
            opening='"\\n"',
            between='""',
        ),
        "minicpm5": ToolFormat(
            start="<function name=",
            end="</function>",
            call=Tags(
                before='"{}">',
                after="",
                opening='<param name="{}">',
                closing="</param>",
                without=("</function>", "<![CDATA["),
            ).write_call,
        ),
        "muse_spark": ToolFormat(
            start="<atem:function_calls>",
            end="</atem:function_calls>",
            call=Tags(
                before='<atem:invoke name="{}">',
                after="</atem:invoke>",
                opening='<atem:parameter name="{}">',
                closing="</atem:parameter>",
                without=("</atem:function_calls>", "</atem:invoke>"),
            ).write_call,
            between='""',
        ),
        "pythonic": ToolFormat(
            start="<|tool_call_start|>",
            end="<|tool_call_end|>",
            call=Literals(before="{}(", after=")", assign="=", comma='", "', names=_PYTHON).write_call,
            opening='"["',
            closing='"]"',
            between='", "',
            names=rf"{_PYTHON}(\.{_PYTHON})*",
        ),
        "gemma4": ToolFormat(
            start="<|tool_call>",
            end="<tool_call|>",
            call=Literals(before="call:{}{{", after="}}", assign=":", quote='<|"|>').write_call,
            between='""',
            names=r"[\w-]+",
        ),
        "function_gemma": ToolFormat(
            start="<start_function_call>",
            end="<end_function_call>",
            # Its parser ends a call at the first brace.
            call=Literals(
                before="call:{}{{", after="}}", assign=":", quote="<escape>", without=("}",), flat=True
            ).write_call,
            names=r"\w+",
        ),
    }
)
_MISTRAL = MappingProxyType(
    {
        True: ToolFormat(start="[TOOL_CALLS]", end="", call=_headed, names=r"[\w-]+"),
        False: ToolFormat(
            start="[TOOL_CALLS]",
            end="",
            call=_object("arguments"),
            opening='/[ ]?/ "["',
            closing='"]"',
            between="/, ?/",
        ),
    }
)
"""By whether the tokenizer has a token between name and arguments, as newer ones do."""


def format_of(parser: str, spell: TokenSpelling) -> ToolFormat | None:
    """The format behind a parser, by its name; None where calls in it can't be enforced."""
    return _MISTRAL[spell.spell_token("[ARGS]") is not None] if parser == "mistral" else FORMATS.get(parser)


def rules(form: ToolFormat, tools: Sequence[ToolCase], sheet: LarkBuilder, *, parallel: bool) -> None:
    """Write `calls`, one call or more, and `tail`, what follows a start marker up to its end marker.

    Raises `ValueError` for what this format can't say, `JobError` where that is a schema of a strict tool.
    """
    spell = sheet.spell
    if form.end and spell.ends_in_text(form.end):
        raise ValueError("the marker that ends a call is no token of this model")
    if wrong := [tool.name for tool in tools if not re.fullmatch(form.names, tool.name)]:
        raise ValueError(f"the model can't call a function of the name {wrong[0]!r}")
    calls = [_call(form, tool, sheet) for tool in tools]
    inside = f"one (({form.between}) one)*" if parallel and form.between is not None else "one"
    several = parallel and form.between is None
    start = spell(form.start)
    sheet.lines += [
        f"calls: {start} tail" + (f" ({SPACE} {start} tail)*" if several else ""),
        f"tail: {form.opening} {inside} {form.closing} {spell(form.end)}",
        f"one: {' | '.join(f'call{number}' for number in range(len(tools)))}",
        *(f"call{number}: {call}" for number, call in enumerate(calls)),
    ]


def _call(form: ToolFormat, tool: ToolCase, sheet: LarkBuilder) -> str:
    before = len(sheet.lines), len(sheet.parts)
    try:
        return form.call(sheet, tool)
    except ValueError as error:
        if tool.strict:
            message = f"'{tool.param}' can't be enforced: {error}."
            raise JobError(Code.INVALID_REQUEST, message, tool.param) from None
        del sheet.lines[before[0] :], sheet.parts[before[1] :]
        return form.call(sheet, tool.without_strictness())
