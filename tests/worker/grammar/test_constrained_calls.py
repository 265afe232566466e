"""Calls that are demanded come, and parse; arguments of strict functions fit."""

import contextlib
import json
from typing import Any

import jsonschema
import msgspec
import pytest

from protocol.errors import Code, JobError
from protocol.messages import GenerateJob, Grammar, ToolCall
from protocol.parts import joined_calls
from tests.support.engine_runs import Outcome, chat, job, run
from worker.engines.chat.engine import ChatEngine
from worker.grammar import grammars
from worker.grammar.call_rules import write_calls
from worker.grammar.lark import LarkBuilder, TokenSpelling
from worker.grammar.tools import ToolCase
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.formats import FORMATS, JsonSyntax

pytestmark = pytest.mark.mlx

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "unit": {"$ref": "#/$defs/unit"}},
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["C", "F"]}},
}
NOTE = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 20},
        "stars": {"type": "number", "minimum": 0, "maximum": 5},
    },
    "required": ["text", "stars"],
    "additionalProperties": False,
}


def tool(name: str, parameters: dict[str, Any] | None, *, strict: bool | None = None) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters, **({"strict": True} if strict else {})}
    return {"type": "function", "function": function}


TOOLS = [tool("get_weather", WEATHER), tool("take.note-1", NOTE)]


def ask(number: int, tools: list[dict[str, Any]] = TOOLS, **fields: Any) -> GenerateJob:
    sampling = {"temperature": 1.0, **fields.pop("sampling", {})}
    prompt = chat(f"hello {number}", tools=tools, enable_thinking=fields.pop("think", False))
    return job(number, prompt, sampling=sampling, **{"max_tokens": 300, "tool_choice": "required", **fields})


def calls(outcome: Outcome) -> list[ToolCall]:
    """Those that are complete: an answer that was cut may end within one."""
    found = joined_calls(call for delta in outcome.deltas for call in delta.calls)
    if found and outcome.finish[0] == "length":
        with contextlib.suppress(json.JSONDecodeError):
            json.loads(found[-1].arguments)
            return found
        found.pop()
    return found


def check(found: list[ToolCall]) -> None:
    schemas = {"get_weather": WEATHER, "take.note-1": NOTE}
    for call in found:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


def test_call_parses_when_one_is_demanded(engine: ChatEngine) -> None:
    """One call or more and nothing else; an answer that was cut has lost its last call only."""
    outcomes = run(engine, [ask(number, parallel_tool_calls=False) for number in range(16)])
    for outcome in outcomes.values():
        [call] = calls(outcome)
        check([call])
        assert (outcome.finish, outcome.text) == ({0: "tool_calls"}, {0: ""})
    several = run(engine, [ask(number, max_tokens=150) for number in range(6)])
    for outcome in several.values():
        check(calls(outcome))
        assert outcome.finish[0] in ("tool_calls", "length")
        if outcome.finish[0] == "tool_calls":
            assert outcome.text == {0: ""}
    assert max(len(calls(outcome)) for outcome in several.values()) > 1


def test_only_the_named_function_is_called_when_one_is_named(engine: ChatEngine) -> None:
    """Names limit what may be called, also where calling is left to the model."""
    outcomes = run(engine, [ask(number, tool_names=["take.note-1"], parallel_tool_calls=False) for number in range(6)])
    for outcome in outcomes.values():
        assert [call.name for call in calls(outcome)] == ["take.note-1"]


def test_call_follows_reasoning_when_the_model_thinks(engine: ChatEngine, tokenizer: Any) -> None:
    """Thoughts come first, and can't hold a call back nor end the answer."""
    vocabulary = tokenizer.get_vocab()
    bias = dict.fromkeys((vocabulary[text] for text in ("<think>", "</think>", "<tool_call>")), 30.0)
    sampling = {"logit_bias": bias}
    outcomes = run(engine, [ask(i, think=True, parallel_tool_calls=False, sampling=sampling) for i in range(4)])
    for outcome in outcomes.values():
        assert outcome.finish == {0: "tool_calls"}
        check(calls(outcome))
    assert any(outcome.reasoning[0] for outcome in outcomes.values())


@pytest.mark.parametrize("parallel", [True, False])
def test_arguments_fit_when_a_strict_function_is_called_freely(
    engine: ChatEngine, tokenizer: Any, parallel: bool
) -> None:
    """With `auto`, text is free until the model begins a call of its own accord; from there on it is constrained."""
    tools = [tool("get_weather", WEATHER, strict=True), tool("take.note-1", NOTE)]
    begin = tokenizer.get_vocab()["<tool_call>"]
    jobs = [
        ask(
            number,
            tools,
            tool_choice="auto",
            sampling={"logit_bias": {begin: 9.0}},
            parallel_tool_calls=parallel,
            max_tokens=120,
        )
        for number in range(6)
    ]
    outcomes = run(engine, jobs)
    found = [calls(outcome) for outcome in outcomes.values()]
    for each in found:
        check(each)
    assert any(found)
    assert any(outcome.text[0].replace("<tool_call>", "").strip() for outcome in outcomes.values())
    if not parallel:
        assert max(map(len, found)) == 1
    again = run(engine, [jobs[0]])[0]
    tokens = again.tokens[0]
    middle = len(tokens) // 2
    resumed = msgspec.structs.replace(jobs[0], delivered=[tokens[:middle]])
    assert tokens[:middle] + run(engine, [resumed])[0].tokens[0] == tokens


def test_call_or_format_when_both_are_asked_for(engine: ChatEngine, tokenizer: Any) -> None:
    """With a format and tools the answer is one of the two, whole."""
    grammar = Grammar("choice", '["plain"]', "response_format")
    begin = tokenizer.get_vocab()["<tool_call>"]
    kinds = set()
    for bias in (-100.0, 100.0):
        sampling = {"logit_bias": {begin: bias}}
        outcome = run(
            engine, [ask(1, tool_choice="auto", grammar=grammar, parallel_tool_calls=False, sampling=sampling)]
        )[1]
        kinds.add((outcome.finish[0], outcome.text[0]))
        check(calls(outcome))
    assert kinds == {("stop", "plain"), ("tool_calls", "")}


def test_large_numbers_are_still_a_call_when_json_allows_them(tokenizer: Any) -> None:
    """`1e999` is JSON, but no double; the call comes with the largest one."""
    parse = calls_from(tokenizer.tool_parser, TOOLS)
    [call] = parse('{"name": "f", "arguments": {"x": [1e999, -1e999]}}')
    assert json.loads(call.arguments) == {"x": [1.7976931348623157e308, -1.7976931348623157e308]}


def test_strict_schema_is_refused_by_name_when_it_can_not_be_enforced(engine: ChatEngine) -> None:
    """The tool at fault is named; the same schema without `strict` still gives calls that parse."""
    bad = {"type": "object", "properties": {"x": {"type": "integer"}}, "if": {"minProperties": 1}, "then": False}
    with pytest.raises(JobError) as refused:
        engine.prepare(ask(1, [TOOLS[0], tool("f", bad, strict=True)]))
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "tools[1].function.parameters")
    outcome = run(engine, [ask(1, [tool("f", bad)], parallel_tool_calls=False)])[1]
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls(outcome))


def test_demand_is_refused_when_the_format_is_not_json(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where calls are spelled in a notation of the model's own, a demand that can't be kept is refused."""
    monkeypatch.setattr(grammars, "parser_name", lambda _: "unheard_of")
    with pytest.raises(JobError) as refused:
        engine.prepare(ask(1, [tool("unheard_of", None)]))
    assert (refused.value.code, refused.value.param) == (Code.UNSUPPORTED, "tool_choice")


def test_demand_is_refused_when_markers_are_mere_text() -> None:
    """Without a token for the end of a call nothing keeps its strings free of it, but JSON; a start may be text."""
    case = ToolCase(number=0, name="f", schema={"type": "object"}, strict=False)
    plain, control = TokenSpelling({}), TokenSpelling({form.end: 7 for form in FORMATS.values() if form.end})
    for form in FORMATS.values():
        if form.messages:
            # Their calls are ended by the answer's end.
            continue
        if form.end and not isinstance(form.syntax, JsonSyntax):
            with pytest.raises(ValueError, match="marker"):
                write_calls(form, [case], LarkBuilder(plain), parallel=True)
        builder = LarkBuilder(control)
        write_calls(form, [case], builder, parallel=True)
        assert [line for line in builder.lines if line.startswith("calls:")]


@pytest.mark.parametrize("parser", ["gemma4", "function_gemma"])
def test_call_ends_with_one_brace_when_its_format_has_braces(parser: str) -> None:
    """More than one would pass the parser, but no model was taught it."""
    case = ToolCase(number=0, name="f", schema={"type": "object"}, strict=False)
    builder = LarkBuilder(TokenSpelling({FORMATS[parser].end: 7}))
    write_calls(FORMATS[parser], [case], builder, parallel=False)
    assert builder.lines[-1] == 'call0: "call:f{" "" "}"'
