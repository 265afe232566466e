"""From what a job asks for to the grammar of its answers. Pure: text in, text out."""

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, GenerateJob, Grammar
from worker.grammar.constraint import Plan
from worker.grammar.formats import ToolFormat, quoted, rules

WHITE_SPACE = r"[ ]?|\n[ \t]{0,40}"
"""Between the parts of JSON: what pretty-printers write, and no more. A model at a loss writes spaces for ever."""
ESCAPES = 'bfnrt"\\'
"""Behind a backslash in JSON. Without `u`, as an escaped name of a property would pass for another one."""
ANY_OBJECT: Mapping[str, Any] = MappingProxyType({"type": "object"})
LARGEST_BYTES = 1 << 20
"""All schemas of one request together."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model's output format matters here.

    `tools` is None where calls can't be enforced; `token` gives a control token as Lark writes it, else None.
    """

    tools: ToolFormat | None
    token: Callable[[str], str | None]


class ToolCase(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that may be called; `number` is its place in the request."""

    number: int
    name: str
    schema: dict[str, Any]
    strict: bool

    @property
    def param(self) -> str:
        """Where its schema stands in the request."""
        return f"tools[{self.number}].function.parameters"

    def loosened(self) -> "ToolCase":
        """The same with any object for its arguments."""
        return msgspec.structs.replace(self, schema=dict(ANY_OBJECT))


def wanted(job: GenerateJob) -> bool:
    """Whether a job's answers are held to anything: cheap enough for any thread."""
    tools = job.prompt.tools if isinstance(job.prompt, ChatPrompt) else None
    if job.grammar is not None or job.tool_choice == "required" or job.tool_names:
        return True
    return tools is not None and b'"strict":true' in tools


def callable_tools(job: GenerateJob) -> list[ToolCase]:
    """The tools that the job may call."""
    raw = job.prompt.tools if isinstance(job.prompt, ChatPrompt) else None
    cases = []
    for number, tool in enumerate(msgspec.json.decode(raw) if raw else ()):
        function = tool["function"]
        if job.tool_names and function["name"] not in job.tool_names:
            continue
        schema = {**ANY_OBJECT, **(function.get("parameters") or {})}
        strict = bool(function.get("strict"))
        cases.append(ToolCase(number=number, name=function["name"], schema=schema, strict=strict))
    return cases


def plan(job: GenerateJob, tools: list[ToolCase], dialect: Dialect) -> Plan | None:
    """What the job's answers are held to; None where to nothing. Raises `JobError`."""
    forced = job.tool_choice == "required"
    ruled = forced or bool(job.tool_names) or any(tool.strict for tool in tools)
    answer = job.grammar if not forced else None
    if answer is None and not ruled:
        return None
    parts: list[dict[str, Any]] = []
    lines: list[str] = []
    if tools and (ruled or answer is not None):
        lines = _tool_rules(tools, dialect, parallel=job.parallel_tool_calls)
        parts += [_json(f"args{index}", tool.schema) for index, tool in enumerate(tools)]
    if answer is not None:
        parts.append(_answer(answer))
    param = answer.param if answer is not None else "tool_choice" if forced else "tools"
    if forced or answer is not None:
        start = " | ".join([*(["@answer"] if answer is not None else []), *(["calls"] if lines else [])])
        return Plan(grammar=_text([f"start: {start}", *lines], parts), param=param)
    if dialect.tools is None:
        raise RuntimeError("rules were made for a format that is not known")
    grammar = _text(["start: tail", *(line for line in lines if not line.startswith("calls:"))], parts)
    return Plan(grammar=grammar, param=param, trigger=dialect.tools.start.encode(), end=dialect.tools.end.encode())


def alone(schema: Mapping[str, Any]) -> str:
    """The grammar of one schema: to find out which of several is at fault."""
    return _text(["start: @args0"], [_json("args0", schema)])


def _tool_rules(tools: list[ToolCase], dialect: Dialect, *, parallel: bool) -> list[str]:
    if dialect.tools is None:
        raise JobError(
            Code.UNSUPPORTED,
            "Tool calls can't be enforced in this model's own format: use 'tool_choice' 'auto' without 'strict' tools.",
            "tool_choice",
        )
    try:
        return rules(dialect.tools, [tool.name for tool in tools], dialect.token, parallel=parallel)
    except ValueError as error:
        raise JobError(Code.UNSUPPORTED, f"Tool calls can't be enforced: {error}.", "tool_choice") from None


def _text(lines: list[str], parts: list[dict[str, Any]]) -> str:
    text = json.dumps({"grammars": [{"lark_grammar": "\n".join(lines)}, *parts]}, ensure_ascii=False)
    if len(text) > LARGEST_BYTES:
        raise JobError(
            Code.INVALID_REQUEST,
            f"The schemas of this request are larger than {LARGEST_BYTES} bytes together.",
            "tools",
        )
    return text


def _json(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    # Last, so that a schema can't bring options of its own.
    options = {"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES}
    return {"name": name, "json_schema": {**schema, "x-guidance": options}}


def _answer(grammar: Grammar) -> dict[str, Any]:
    match grammar.kind:
        case "json_object":
            return _json("answer", ANY_OBJECT)
        case "json_schema":
            return _json("answer", msgspec.json.decode(grammar.text, type=dict[str, Any]))
        case "regex":
            return {"name": "answer", "lark_grammar": f"start: /{_slashed(grammar.text)}/"}
        case "choice":
            choices = msgspec.json.decode(grammar.text, type=list[str])
            return {"name": "answer", "lark_grammar": "start: " + " | ".join(map(quoted, choices))}
        case "grammar":
            return {"name": "answer", "ebnf": grammar.text}
        case other:
            raise JobError(Code.UNSUPPORTED, f"This worker knows no grammar of kind {other!r}.", grammar.param)


def _slashed(regex: str) -> str:
    """As Lark writes it between slashes."""
    return re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], regex, flags=re.DOTALL).replace(
        "\n", "\\n"
    )
