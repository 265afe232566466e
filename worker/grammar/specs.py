"""From what a job asks for to the grammar of its answers. Pure: text in, text out."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from protocol.errors import Code, JobError
from protocol.messages import GenerateJob, Grammar
from protocol.schemas.enforceable import SchemaError, make_enforceable
from worker.grammar.call_rules import write_calls
from worker.grammar.constraint import GrammarSpec
from worker.grammar.lark import LarkBuilder, TokenSpelling, json_part, quoted, slashed
from worker.grammar.message_rules import write_answer, write_call_messages
from worker.grammar.tools import ANY_OBJECT, ToolCase
from worker.text.tool_calls.formats import ToolFormat

LARGEST_BYTES = 1 << 20
"""All schemas of one request together."""


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model's output format matters here. `tools` is None where calls can't be enforced."""

    tools: ToolFormat | None
    spell: TokenSpelling


def make_spec(job: GenerateJob, tools: list[ToolCase], output_format: OutputFormat) -> GrammarSpec | None:
    """Return what the job's answers are held to; None where to nothing. Raises `JobError`."""
    forced = job.tool_choice == "required"
    constrained = forced or bool(job.tool_names) or any(tool.strict for tool in tools)
    answer = job.grammar if not forced else None
    if answer is None and not constrained:
        return None
    builder = LarkBuilder(output_format.spell)
    messages = output_format.tools is not None and output_format.tools.messages
    if tools and (constrained or answer is not None):
        _write_tools(tools, output_format, builder, parallel=job.parallel_tool_calls)
    lines, parts = builder.lines, builder.parts
    if answer is not None:
        parts.append(_answer(answer))
    param = answer.param if answer is not None else "tool_choice" if forced else "tools"
    if messages:
        kind = answer.kind if answer is not None else None
        write_answer(builder, kind, calls=bool(tools), demanded=forced)
        return GrammarSpec(grammar=_text(lines, parts), param=param)
    if forced or answer is not None:
        start = " | ".join([*(["@answer"] if answer is not None else []), *(["calls"] if lines else [])])
        return GrammarSpec(grammar=_text([f"start: {start}", *lines], parts), param=param)
    if output_format.tools is None:
        raise RuntimeError("rules were made for a format that is not known")
    grammar = _text(["start: tail", *(line for line in lines if not line.startswith("calls:"))], parts)
    return GrammarSpec(
        grammar=grammar, param=param, trigger=output_format.tools.start.encode(), end=output_format.tools.end.encode()
    )


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of one schema: to find out which of several is at fault."""
    return _text(["start: @args0"], [json_part("args0", schema)])


def _write_tools(tools: list[ToolCase], output_format: OutputFormat, builder: LarkBuilder, *, parallel: bool) -> None:
    if output_format.tools is None:
        raise JobError(
            Code.UNSUPPORTED,
            "Tool calls can't be enforced in this model's own format: use 'tool_choice' 'auto' without 'strict' tools.",
            "tool_choice",
        )
    write = write_call_messages if output_format.tools.messages else write_calls
    try:
        write(output_format.tools, tools, builder, parallel=parallel)
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


def _answer(grammar: Grammar) -> dict[str, Any]:
    match grammar.kind:
        case "json_object":
            return json_part("answer", ANY_OBJECT)
        case "json_schema":
            return json_part("answer", _enforceable(grammar))
        case "regex":
            return {"name": "answer", "lark_grammar": f"start: /{slashed(grammar.text)}/"}
        case "choice":
            choices = msgspec.json.decode(grammar.text, type=list[str])
            return {"name": "answer", "lark_grammar": "start: " + " | ".join(map(quoted, choices))}
        case "grammar":
            return {"name": "answer", "ebnf": grammar.text}
        case other:
            raise JobError(Code.UNSUPPORTED, f"This worker knows no grammar of kind {other!r}.", grammar.param)


def _enforceable(grammar: Grammar) -> dict[str, Any]:
    try:
        return make_enforceable(msgspec.json.decode(grammar.text, type=dict[str, Any])).schema
    except SchemaError as error:
        raise JobError(Code.INVALID_REQUEST, f"'{grammar.param}' can't be enforced: {error}.", grammar.param) from None
