"""How models write tool calls: one entry for each parser. Data and patterns alone.

`calls` and `streaming` read calls by it, `worker.grammar` enforces them.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec


class JsonSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments as a JSON object between two texts.

    In these, `{name}` is the function's name, `{json}` the same as a JSON string, `~` a space or none, `#` a number.
    """

    before: str
    after: str = ""


class TagSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments each within a tag of its own.

    `{}` is the function's name in `before`, the argument's in `opening`, which is `json_opening` before values that are
    no strings, where formats tell them apart. `gap`, in Lark, may stand between tags. No value may hold any of
    `without`; `names` are the arguments that it has a place for. `pattern` is how openings are read where they say
    more. `cdata`: a value may stand within `<![CDATA[` and `]]>`.
    """

    before: str
    after: str
    opening: str
    closing: str
    json_opening: str = ""
    names: str = r"[^\s<>\"']+"
    gap: str = ""
    without: Sequence[str] = ()
    pattern: str = ""
    cdata: bool = False


class LiteralSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments in a list: `name(a=1,b=2)`. Strings stand between `quote`s, or are JSON where there is none.

    `{}` in `before` is the function's name, with other braces doubled. `names` are the arguments that it has a place
    for.
    """

    before: str
    after: str
    assign: str
    comma: str = '","'
    quote: str = ""
    names: str = r"\w+"
    without: Sequence[str] = ()


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How calls look, and what their parser needs to be told.

    - `start`, `end`: the markers around a block (`end` empty: the end of the answer).
    - `json_head`, `head`: what stands before arguments that are JSON, and before others; narrower than what parsers
      take. Some models write either.
    - `syntax`: what a call within the markers is where it is enforced; `names` are the functions that it can name.
    - `tags`: the arguments behind `head` where these are within tags, and `syntax` is something else.
    - `opening`, `closing`, `between`, in Lark: what stands before, behind and between calls of one block (`between`
      None: each call has its own block).
    - `untyped`: arguments carry no types, so that they are read by their schema.
    - `loose`: the parser takes blocks that have no such form.
    - `begins`: what a block may begin with where that is less than `start`, and part of the call.
    - `dropped`: control tokens that stand beside calls and are no text.
    - `messages`: answers are messages, of which each call is one (`worker.text.harmony`).
    """

    start: str
    end: str
    syntax: JsonSyntax | TagSyntax | LiteralSyntax
    tags: TagSyntax | None = None
    json_head: re.Pattern[str] | None = None
    head: re.Pattern[str] | None = None
    opening: str = ""
    closing: str = ""
    between: str | None = None
    names: str = r".*"
    untyped: bool = False
    loose: bool = False
    begins: str = ""
    dropped: Sequence[str] = ()
    messages: bool = False


LONGEST_HEAD = 400
"""What stands before arguments; what is longer is none."""
SPACE = "/[ \\n]{0,2}/"
"""Between markers and calls, in Lark."""
_PYTHON_NAME = r"[^\W\d]\w*"
_OBJECT = JsonSyntax(before='{{~"name":~{json},~"arguments":~', after="~}}")
_OBJECT_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"(?P<name>[\w.:-]{1,128})"\s*,\s*"arguments"\s*:\s*(?=\{)')
_GLM = ToolFormat(
    start="<tool_call>",
    end="</tool_call>",
    head=re.compile(r"\s*(?P<name>[\w.:-]{1,128})\s*(?=<arg_key>|</tool_call>)"),
    syntax=TagSyntax(
        before="{}",
        after="",
        opening="<arg_key>{}</arg_key><arg_value>",
        closing="</arg_value>",
        gap="/\\n?/",
        without=("</tool_call>",),
    ),
    untyped=True,
    loose=True,
)
FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "json_tools": ToolFormat(
            start="<tool_call>",
            end="</tool_call>",
            json_head=_OBJECT_HEAD,
            syntax=_OBJECT,
            opening=SPACE,
            closing=SPACE,
        ),
        "longcat": ToolFormat(
            start="<longcat_tool_call>",
            end="</longcat_tool_call>",
            json_head=_OBJECT_HEAD,
            head=re.compile(r"\s*(?P<name>[\w.:-]{1,128})\s*(?=<longcat_arg_key>|</longcat_tool_call>)"),
            syntax=_OBJECT,
            tags=TagSyntax(
                before="{}",
                after="",
                opening="<longcat_arg_key>{}</longcat_arg_key><longcat_arg_value>",
                closing="</longcat_arg_value>",
            ),
            opening=SPACE,
            closing=SPACE,
            untyped=True,
        ),
        "llama3": ToolFormat(
            start='{"name"',
            end="",
            begins="{",
            dropped=("<|python_tag|>",),
            json_head=re.compile(
                r'\s*(?:<\|python_tag\|>)?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"(?:name|function)"\s*:'
                r'\s*"(?P<name>[\w.:-]{1,128})"\s*,\s*(?:"type"\s*:\s*"function"\s*,\s*)?'
                r'"(?:parameters|arguments)"\s*:\s*(?=\{)'
            ),
            syntax=JsonSyntax(before=':~{json},~"parameters":~', after="~}}"),
            between='";" /[ ]?/ "{\\"name\\""',
        ),
        "mistral": ToolFormat(
            start="[TOOL_CALLS]",
            end="",
            json_head=re.compile(r"\s*(?P<name>[\w-]{1,128})\s*\[ARGS\]\s*(?=\{)"),
            syntax=JsonSyntax(before="{name}[ARGS]~"),
            names=r"[\w-]+",
        ),
        "kimi_k2": ToolFormat(
            start="<|tool_calls_section_begin|>",
            end="<|tool_calls_section_end|>",
            json_head=re.compile(
                r"\s*(?:<\|tool_call_begin\|>)?"
                r"\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]{1,128}):\d+)\s*<\|tool_call_argument_begin\|>\s*(?=\{)"
            ),
            syntax=JsonSyntax(
                before="<|tool_call_begin|>functions.{name}:#<|tool_call_argument_begin|>", after="<|tool_call_end|>"
            ),
            between='""',
        ),
        "kimi_k3": ToolFormat(
            start="<|open|>tools<|sep|>",
            end="<|close|>tools<|sep|>",
            json_head=re.compile(
                r'\s*<\|open\|>call tool="(?P<name>[\w.:-]{1,128})"(?: index="\d+")?<\|sep\|>'
                r'\s*<\|open\|>json(?: type="object")?<\|sep\|>\s*(?=\{)'
            ),
            head=re.compile(
                r'\s*<\|open\|>call tool="(?P<name>[\w.:-]{1,128})"(?: index="\d+")?<\|sep\|>'
                r"(?=\s*<\|(?:open\|>argument|close\|>call))"
            ),
            syntax=JsonSyntax(
                before='<|open|>call tool="{name}" index="#"<|sep|><|open|>json type="object"<|sep|>',
                after="<|close|>json<|sep|><|close|>call<|sep|>",
            ),
            tags=TagSyntax(
                before='<|open|>call tool="{}" index="#"<|sep|>',
                after="<|close|>call<|sep|>",
                opening='<|open|>argument key="{}"<|sep|>',
                closing="<|close|>argument<|sep|>",
                pattern=r'<\|open\|>argument key="(?P<key>[^"]{1,200})"(?: type="(?P<type>\w{1,40})")?<\|sep\|>',
            ),
            between='""',
            names=r"[^\"&]+",
        ),
        "glm47": _GLM,
        "laguna": _GLM,
        "qwen3_coder": ToolFormat(
            start="<tool_call>",
            end="</tool_call>",
            head=re.compile(r"\s*<function=(?P<name>[\w.:-]{1,128})>"),
            syntax=TagSyntax(
                before="\n<function={}>\n",
                after="</function>\n",
                opening="<parameter={}>\n",
                closing="\n</parameter>\n",
                without=("</tool_call>", "</function>"),
            ),
            untyped=True,
        ),
        "minimax_m2": ToolFormat(
            start="<minimax:tool_call>",
            end="</minimax:tool_call>",
            head=re.compile(r'\s*<invoke name="(?P<name>[\w.:-]{1,128})">'),
            syntax=TagSyntax(
                before='<invoke name="{}">\n',
                after="</invoke>\n",
                opening='<parameter name="{}">',
                closing="</parameter>\n",
                without=("</minimax:tool_call>", "</invoke>"),
            ),
            opening='"\\n"',
            between='""',
            untyped=True,
        ),
        "minicpm5": ToolFormat(
            start="<function name=",
            end="</function>",
            head=re.compile(r"\s*[\"']?(?P<name>[\w.:-]{1,128})[\"']?\s*>"),
            syntax=TagSyntax(
                before='"{}">',
                after="",
                opening='<param name="{}">',
                closing="</param>",
                without=("</function>", "<![CDATA["),
                cdata=True,
            ),
            untyped=True,
        ),
        "muse_spark": ToolFormat(
            start="<atem:function_calls>",
            end="</atem:function_calls>",
            head=re.compile(r'\s*<atem:invoke name="(?P<name>[\w.:-]{1,128})">'),
            syntax=TagSyntax(
                before='<atem:invoke name="{}">',
                after="</atem:invoke>",
                opening='<atem:parameter name="{}">',
                closing="</atem:parameter>",
                without=("</atem:function_calls>", "</atem:invoke>"),
            ),
            between='""',
            untyped=True,
        ),
        "pythonic": ToolFormat(
            start="<|tool_call_start|>",
            end="<|tool_call_end|>",
            head=re.compile(r"\s*\[?\s*(?P<name>[^\W\d][\w.]{0,128})(?=\()"),
            syntax=LiteralSyntax(before="{}(", after=")", assign="=", comma='", "', names=_PYTHON_NAME),
            opening='"["',
            closing='"]"',
            between='", "',
            names=rf"{_PYTHON_NAME}(\.{_PYTHON_NAME})*",
        ),
        "gemma4": ToolFormat(
            start="<|tool_call>",
            end="<tool_call|>",
            head=re.compile(r"\s*call:(?P<name>[\w-]{1,128})(?=\{)"),
            syntax=LiteralSyntax(before="call:{}{{", after="}", assign=":", quote='<|"|>'),
            between='""',
            names=r"[\w-]+",
        ),
        "function_gemma": ToolFormat(
            start="<start_function_call>",
            end="<end_function_call>",
            head=re.compile(r"\s*call:(?P<name>\w{1,128})(?=\{)"),
            syntax=LiteralSyntax(before="call:{}{{", after="}", assign=":", quote="<escape>"),
            names=r"\w+",
            untyped=True,
        ),
        "deepseek_v3": ToolFormat(
            start="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            json_head=re.compile(
                r"\s*<｜tool▁call▁begin｜>\s*\w+\s*<｜tool▁sep｜>"
                r"\s*(?P<name>[\w.:-]{1,128})\s*```(?:json)?\s*(?=\{)"
            ),
            syntax=JsonSyntax(
                before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n", after="\n```<｜tool▁call▁end｜>"
            ),
            between='"\\n"?',
        ),
        "deepseek_v31": ToolFormat(
            start="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            json_head=re.compile(r"\s*<｜tool▁call▁begin｜>\s*(?P<name>[\w.:-]{1,128})\s*<｜tool▁sep｜>\s*(?=\{)"),
            syntax=JsonSyntax(before="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>", after="<｜tool▁call▁end｜>"),
            between='""',
        ),
        "deepseek_v32": ToolFormat(
            start="<｜DSML｜function_calls>",
            end="</｜DSML｜function_calls>",
            head=re.compile(r'\s*<｜DSML｜invoke name="(?P<name>[\w.:-]{1,128})">'),
            syntax=TagSyntax(
                before='<｜DSML｜invoke name="{}">\n',
                after="</｜DSML｜invoke>\n",
                opening='<｜DSML｜parameter name="{}" string="true">',
                json_opening='<｜DSML｜parameter name="{}" string="false">',
                closing="</｜DSML｜parameter>",
                gap="/\\n?/",
                names=r'[^"]+',
                pattern=(
                    r'<｜DSML｜parameter name="(?P<key>[^"<>\n]{1,200})"'
                    r'(?:\s{0,40}string="(?:(?P<type>true)|(?P<type>false))")?>'
                ),
                without=("</｜DSML｜function_calls>", "</｜DSML｜invoke>"),
            ),
            opening='"\\n"',
            between='""',
        ),
        "harmony": ToolFormat(
            start="<|channel|>commentary to=functions.",
            end="<|call|>",
            json_head=re.compile(r"(?:functions\.)?(?P<name>[\w.:-]{1,128})<\|message\|>\s*(?=\{)"),
            syntax=JsonSyntax(before="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"),
            names=r"[\w.:-]+",
            loose=True,
            messages=True,
        ),
    }
)
"""By mlx-lm's name of the parser; `deepseek_v3`, `deepseek_v31`, `deepseek_v32`, `harmony` and `llama3` are our own."""
MISTRAL_LIST = ToolFormat(
    start="[TOOL_CALLS]", end="", syntax=_OBJECT, opening='/[ ]?/ "["', closing='"]"', between="/, ?/"
)
"""What models with Mistral's older tokenizers write, which have no token between name and arguments."""


def parser_name(tokenizer: Any) -> str:
    """Return what mlx-lm calls the parser of a tokenizer's model; empty where it has none."""
    return str(getattr(getattr(tokenizer, "tool_parser", None), "__module__", "")).rpartition(".")[2]


def loose_pattern(text: str) -> str:
    """Return an expression for tags as models write them: with other white space and quotes; `{}` is `key`."""
    tags = [tag for tag in re.split(r"\s+|(?<=>)(?=<)", text.strip()) if tag]
    return r"\s{0,40}".join(map(_loose_tag, tags))


def _loose_tag(tag: str) -> str:
    before, placed, behind = tag.replace('"{}"', "{}").partition("{}")
    key = r"\s{0,40}[\"']?(?P<key>[^<>\"'\n]{1,200})[\"']?\s{0,40}" if placed else ""
    return re.escape(before) + key + re.escape(behind)
