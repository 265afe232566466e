"""Calls as models write them, one writer for each format, and what reads a block of each."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.support.tool_parsers import parser_module
from worker.text.markers import Markers
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.formats import FORMATS
from worker.text.tool_calls.streaming import block_readers

Arguments = Mapping[str, Any]
Writer = Callable[[Sequence[tuple[str, Arguments]]], str]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _each(before: str, after: str, between: str = "") -> Writer:
    """Return a writer of JSON within `before` (`{}` is the name) and `after`."""

    def write(calls: Sequence[tuple[str, Arguments]]) -> str:
        return between.join(f"{before.replace('{}', name)}{_json(arguments)}{after}" for name, arguments in calls)

    return write


def _tags(before: str, opening: str, closing: str, after: str) -> Writer:
    def write(calls: Sequence[tuple[str, Arguments]]) -> str:
        return "".join(
            before.format(name)
            + "".join(f"{opening.format(key)}{_bare(value)}{closing}" for key, value in arguments.items())
            + after
            for name, arguments in calls
        )

    return write


def _minicpm(calls: Sequence[tuple[str, Arguments]]) -> str:
    [(name, arguments)] = calls
    written = (
        f'<param name="{key}">{f"<![CDATA[{value}]]>" if isinstance(value, str) else _json(value)}</param>'
        for key, value in arguments.items()
    )
    return f'"{name}">{"".join(written)}'


def _kimi(calls: Sequence[tuple[str, Arguments]]) -> str:
    def argument(key: str, value: Any) -> str:
        kind = {str: "string", list: "array", dict: "object"}.get(type(value), "number")
        return f'<|open|>argument key="{key}" type="{kind}"<|sep|>{_bare(value)}<|close|>argument<|sep|>'

    return "".join(
        f'<|open|>call tool="{name}" index="1"<|sep|>'
        f"{''.join(argument(key, value) for key, value in arguments.items())}<|close|>call<|sep|>"
        for name, arguments in calls
    )


def _dsml(calls: Sequence[tuple[str, Arguments]]) -> str:
    def argument(key: str, value: Any) -> str:
        text = "true" if isinstance(value, str) else "false"
        return f'<｜DSML｜parameter name="{key}" string="{text}">{_bare(value)}</｜DSML｜parameter>\n'

    return "\n" + "".join(
        f'<｜DSML｜invoke name="{name}">\n{"".join(argument(key, value) for key, value in arguments.items())}'
        "</｜DSML｜invoke>\n"
        for name, arguments in calls
    )


def _gemma(quote: str) -> Writer:
    def value(found: Any) -> str:
        match found:
            case str():
                return f"{quote}{found}{quote}"
            case dict():
                return f"{{{','.join(f'{key}:{value(part)}' for key, part in found.items())}}}"
            case list():
                return f"[{','.join(map(value, found))}]"
            case _:
                return _json(found)

    return lambda calls: "".join(f"call:{name}{value(dict(arguments))}" for name, arguments in calls)


def _python(calls: Sequence[tuple[str, Arguments]]) -> str:
    written = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in calls
    )
    return f"[{', '.join(written)}]"


_OBJECT_HEAD = '{"name": "{}", "arguments": '
_OBJECT = _each('{"name": "{}", "arguments": ', "}", "\n")
WRITERS: Mapping[str, tuple[str, Writer]] = {
    "json_tools": ("json_tools", lambda calls: f"\n{_OBJECT(calls)}\n"),
    "longcat json": ("longcat", _OBJECT),
    "llama3": (
        "llama3",
        lambda calls: _each('{"name": "{}", "parameters": ', "}", "; ")(calls).removeprefix('{"name"'),
    ),
    "mistral": ("mistral", _each("{}[ARGS]", "")),
    "mistral list": ("mistral", lambda calls: f"[{_each(_OBJECT_HEAD, '}', ', ')(calls)}]"),
    "kimi_k2": (
        "kimi_k2",
        _each("<|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    ),
    "kimi_k3 json": (
        "kimi_k3",
        _each(
            '<|open|>call tool="{}" index="1"<|sep|><|open|>json type="object"<|sep|>',
            "<|close|>json<|sep|><|close|>call<|sep|>",
        ),
    ),
    "kimi_k3": ("kimi_k3", _kimi),
    "deepseek_v3": (
        "deepseek_v3",
        _each("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n", "\n```<｜tool▁call▁end｜>", "\n"),
    ),
    "deepseek_v31": ("deepseek_v31", _each("<｜tool▁call▁begin｜>{}<｜tool▁sep｜>", "<｜tool▁call▁end｜>")),
    "deepseek_v32": ("deepseek_v32", _dsml),
    "qwen3_coder": (
        "qwen3_coder",
        _tags("\n<function={}>\n", "<parameter={}>\n", "\n</parameter>\n", "</function>\n"),
    ),
    "glm47": ("glm47", _tags("{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n", "")),
    "laguna": ("laguna", _tags("{}", "<arg_key>{}</arg_key><arg_value>", "</arg_value>", "")),
    "longcat": (
        "longcat",
        _tags("{}", "<longcat_arg_key>{}</longcat_arg_key><longcat_arg_value>", "</longcat_arg_value>", ""),
    ),
    "minimax_m2": (
        "minimax_m2",
        _tags('\n<invoke name="{}">\n', '<parameter name="{}">', "</parameter>\n", "</invoke>\n"),
    ),
    "minicpm5": ("minicpm5", _minicpm),
    "muse_spark": (
        "muse_spark",
        _tags('<atem:invoke name="{}">\n', '<atem:parameter name="{}">', "</atem:parameter>\n", "</atem:invoke>\n"),
    ),
    "gemma4": ("gemma4", _gemma('<|"|>')),
    "function_gemma": ("function_gemma", _gemma("<escape>")),
    "pythonic": ("pythonic", _python),
}
"""Parser and writer, by the name of the way of writing."""
SEVERAL = frozenset(
    {"llama3", "mistral", "mistral list", "kimi_k2", "kimi_k3", "kimi_k3 json", "minimax_m2", "muse_spark", "gemma4"}
) | {"pythonic", "deepseek_v3", "deepseek_v31", "deepseek_v32"}
"""Ways in which one block holds several calls."""
JSON_WAYS = (
    "deepseek_v3",
    "deepseek_v31",
    "json_tools",
    "longcat json",
    "llama3",
    "mistral",
    "mistral list",
    "kimi_k2",
    "kimi_k3 json",
)
MARKS = sorted({mark for form in FORMATS.values() for mark in (form.start, form.end) if mark})


def tools_of(names: Sequence[str], schema: Arguments) -> list[dict[str, Any]]:
    """Return functions that all take the same."""
    return [{"type": "function", "function": {"name": name, "parameters": schema}} for name in names]


def reading(parser: str, tools: list[dict[str, Any]] | None, *, parallel: bool = True) -> dict[str, Any]:
    """Return the options of a choice (see `conftest.run`) whose model writes calls as that parser reads them."""
    module = parser_module(parser)
    form = FORMATS[parser]
    starts = [(form.begins or form.start, "tool")]
    starts += [(mark, "normal") for mark in form.dropped]
    return {
        "markers": Markers(
            transitions={"normal": starts, "tool": [(form.end, "normal")] if form.end else []},
            tool_start=form.start,
            tool_end=form.end,
            kept_start=bool(form.begins),
        ),
        "parse": calls_from(module.parse_tool_call, tools),
        "make_reader": block_readers(tools or [], parser, parallel=parallel),
        "parallel_calls": parallel,
    }


def write_block(way: str, calls: Sequence[tuple[str, Arguments]]) -> str:
    """Return an answer of one block, markers and all."""
    parser, write = WRITERS[way]
    form = FORMATS[parser]
    return f"{form.start}{write(calls)}{form.end}"
