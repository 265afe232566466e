"""How models write tool calls: one entry for each parser. Data and patterns alone.

`calls` and `streaming` read calls by it, `worker.grammar` enforces them.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
    `without`; `names` are the arguments that it has a place for.
    """

    before: str
    after: str
    opening: str
    closing: str
    json_opening: str = ""
    names: str = r"[^\s<>\"']+"
    gap: str = ""
    without: Sequence[str] = ()


class LiteralSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments in a list: `name(a=1,b=2)`. Strings stand between `quote`s, or are JSON where there is none.

    `{}` in `before` is the function's name, with other braces doubled. No string may hold any of `without`. `flat`:
    neither lists nor objects. `names` are the arguments that it has a place for.
    """

    before: str
    after: str
    assign: str
    comma: str = '","'
    quote: str = ""
    names: str = r"\w+"
    without: Sequence[str] = ()
    flat: bool = False


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How calls look, and what their parser needs to be told.

    - `start`, `end`: the markers around a block (`end` empty: the end of the answer).
    - `json_head`, `head`: what stands before arguments that are JSON, and before others; narrower than what parsers
      take. Some models write either.
    - `syntax`: what a call within the markers is where it is enforced; `names` are the functions that it can name.
    - `opening`, `closing`, `between`, in Lark: what stands before, behind and between calls of one block (`between`
      None: each call has its own block).
    - `untyped`: arguments carry no types, so that they are read by their schema.
    - `searched`: the parser looks for the end of a call from every place where one may begin.
    - `messages`: answers are messages, of which each call is one (`worker.text.harmony`).
    """

    start: str
    end: str
    syntax: JsonSyntax | TagSyntax | LiteralSyntax
    json_head: re.Pattern[str] | None = None
    head: re.Pattern[str] | None = None
    opening: str = ""
    closing: str = ""
    between: str | None = None
    names: str = r".*"
    untyped: bool = False
    searched: bool = False
    messages: bool = False


SPACE = "/[ \\n]{0,2}/"
"""Between markers and calls, in Lark."""
_PYTHON_NAME = r"[^\W\d]\w*"
_OBJECT = JsonSyntax(before='{{~"name":~{json},~"arguments":~', after="~}}")
_OBJECT_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"(?P<name>[\w.:-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_GLM = ToolFormat(
    start="<tool_call>",
    end="</tool_call>",
    head=re.compile(r"\s*(?P<name>[\w.:-]+)\s*(?=<arg_key>)"),
    syntax=TagSyntax(
        before="{}",
        after="",
        opening="<arg_key>{}</arg_key><arg_value>",
        closing="</arg_value>",
        gap="/\\n?/",
        without=("</tool_call>",),
    ),
    untyped=True,
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
            head=re.compile(r"\s*(?P<name>[\w.:-]+)\s*(?=<longcat_arg_key>)"),
            syntax=_OBJECT,
            opening=SPACE,
            closing=SPACE,
            untyped=True,
        ),
        "llama3": ToolFormat(
            start='{"name"',
            end="",
            json_head=re.compile(
                r'(?:\s*\}\s*;\s*\{\s*"name")?\s*:\s*"(?P<name>[\w.:-]+)"\s*,\s*"parameters"\s*:\s*(?=\{)'
            ),
            syntax=JsonSyntax(before=':~{json},~"parameters":~', after="~}}"),
            between='";" /[ ]?/ "{\\"name\\""',
        ),
        "mistral": ToolFormat(
            start="[TOOL_CALLS]",
            end="",
            json_head=re.compile(r"\s*(?P<name>[\w-]+)\s*\[ARGS\]\s*(?=\{)"),
            syntax=JsonSyntax(before="{name}[ARGS]~"),
            names=r"[\w-]+",
        ),
        "kimi_k2": ToolFormat(
            start="<|tool_calls_section_begin|>",
            end="<|tool_calls_section_end|>",
            json_head=re.compile(
                r"\s*(?:<\|tool_call_end\|>)?\s*(?:<\|tool_call_begin\|>)?"
                r"\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]+):\d+)\s*<\|tool_call_argument_begin\|>\s*(?=\{)"
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
                r"\s*(?:<\|close\|>json<\|sep\|>\s*<\|close\|>call<\|sep\|>)?\s*"
                r'<\|open\|>call tool="(?P<name>[\w.:-]+)"(?: index="\d+")?<\|sep\|>'
                r'\s*<\|open\|>json(?: type="object")?<\|sep\|>\s*(?=\{)'
            ),
            head=re.compile(
                r'\s*<\|open\|>call tool="(?P<name>[\w.:-]+)"(?: index="\d+")?<\|sep\|>'
                r"(?=\s*<\|(?:open\|>argument|close\|>call))"
            ),
            syntax=JsonSyntax(
                before='<|open|>call tool="{name}" index="#"<|sep|><|open|>json type="object"<|sep|>',
                after="<|close|>json<|sep|><|close|>call<|sep|>",
            ),
            between='""',
            names=r"[^\"&]+",
        ),
        "glm47": _GLM,
        "laguna": _GLM,
        "qwen3_coder": ToolFormat(
            start="<tool_call>",
            end="</tool_call>",
            head=re.compile(r"\s*<function=(?P<name>[\w.:-]+)>"),
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
            head=re.compile(r'\s*<invoke name="(?P<name>[\w.:-]+)">'),
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
            head=re.compile(r"\s*([\"']?)(?P<name>[\w.:-]+)\1\s*>"),
            syntax=TagSyntax(
                before='"{}">',
                after="",
                opening='<param name="{}">',
                closing="</param>",
                without=("</function>", "<![CDATA["),
            ),
            untyped=True,
        ),
        "muse_spark": ToolFormat(
            start="<atem:function_calls>",
            end="</atem:function_calls>",
            head=re.compile(r'\s*<atem:invoke name="(?P<name>[\w.:-]+)">'),
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
            head=re.compile(r"\s*\[\s*(?P<name>[^\W\d][\w.]*)(?=\()"),
            syntax=LiteralSyntax(before="{}(", after=")", assign="=", comma='", "', names=_PYTHON_NAME),
            opening='"["',
            closing='"]"',
            between='", "',
            names=rf"{_PYTHON_NAME}(\.{_PYTHON_NAME})*",
        ),
        "gemma4": ToolFormat(
            start="<|tool_call>",
            end="<tool_call|>",
            head=re.compile(r"\s*call:(?P<name>[\w-]+)(?=\{)"),
            syntax=LiteralSyntax(before="call:{}{{", after="}", assign=":", quote='<|"|>'),
            between='""',
            names=r"[\w-]+",
            searched=True,
        ),
        "function_gemma": ToolFormat(
            start="<start_function_call>",
            end="<end_function_call>",
            head=re.compile(r"\s*call:(?P<name>\w+)(?=\{)"),
            # Its parser ends a call at the first brace.
            syntax=LiteralSyntax(
                before="call:{}{{", after="}", assign=":", quote="<escape>", without=("}",), flat=True
            ),
            names=r"\w+",
            untyped=True,
            searched=True,
        ),
        "deepseek_v3": ToolFormat(
            start="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            json_head=re.compile(
                r"\s*(?:```\s*<｜tool▁call▁end｜>)?\s*<｜tool▁call▁begin｜>\s*\w+\s*<｜tool▁sep｜>"
                r"\s*(?P<name>[\w.:-]+)\s*```(?:json)?\s*(?=\{)"
            ),
            syntax=JsonSyntax(
                before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n", after="\n```<｜tool▁call▁end｜>"
            ),
            between='"\\n"?',
        ),
        "deepseek_v31": ToolFormat(
            start="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            json_head=re.compile(
                r"\s*(?:<｜tool▁call▁end｜>)?\s*<｜tool▁call▁begin｜>\s*(?P<name>[\w.:-]+)\s*<｜tool▁sep｜>\s*(?=\{)"
            ),
            syntax=JsonSyntax(before="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>", after="<｜tool▁call▁end｜>"),
            between='""',
        ),
        "deepseek_v32": ToolFormat(
            start="<｜DSML｜function_calls>",
            end="</｜DSML｜function_calls>",
            head=re.compile(r'\s*<｜DSML｜invoke name="(?P<name>[\w.:-]+)">'),
            syntax=TagSyntax(
                before='<｜DSML｜invoke name="{}">\n',
                after="</｜DSML｜invoke>\n",
                opening='<｜DSML｜parameter name="{}" string="true">',
                json_opening='<｜DSML｜parameter name="{}" string="false">',
                closing="</｜DSML｜parameter>",
                gap="/\\n?/",
                names=r'[^"]+',
                without=("</｜DSML｜function_calls>", "</｜DSML｜invoke>"),
            ),
            opening='"\\n"',
            between='""',
        ),
        "harmony": ToolFormat(
            start="<|channel|>commentary to=functions.",
            end="<|call|>",
            json_head=re.compile(r"(?:functions\.)?(?P<name>[\w.:-]+)<\|message\|>\s*(?=\{)"),
            syntax=JsonSyntax(before="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"),
            names=r"[\w.:-]+",
            messages=True,
        ),
    }
)
"""By mlx-lm's name of the parser; `deepseek_v3`, `deepseek_v31`, `deepseek_v32`, `harmony` and `llama3` are our own."""
MISTRAL_LIST = ToolFormat(
    start="[TOOL_CALLS]", end="", syntax=_OBJECT, opening='/[ ]?/ "["', closing='"]"', between="/, ?/"
)
"""What models with Mistral's older tokenizers write, which have no token between name and arguments."""
