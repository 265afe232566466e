"""Calls come while they are written: who is called first, then the arguments as far as they are there."""

import importlib
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.parts import joined_calls
from tests.support.tool_formats import reading, tools_of
from worker.text.markers import Markers
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.formats import LONGEST_HEAD
from worker.text.tool_calls.streaming import block_readers

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f",)]
ARGUMENTS = '{"a": "x}\\"{\\\\", "b": [1, {"c": "]"}], "é": null}'
WRITTEN = {
    "json_tools": ["<tool_call>\n", '{"name": "f", "arguments": ', ARGUMENTS, "}\n</tool_call>"],
    "longcat": ["<longcat_tool_call>", '{"name":"f","arguments":', ARGUMENTS, "}</longcat_tool_call>"],
    "mistral": ["[TOOL_CALLS]", "f[ARGS]", ARGUMENTS, ""],
    "kimi_k2": [
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>",
        ARGUMENTS,
        "<|tool_call_end|><|tool_calls_section_end|>",
    ],
    "kimi_k3": [
        "<|open|>tools<|sep|>",
        '<|open|>call tool="f" index="1"<|sep|><|open|>json type="object"<|sep|>',
        ARGUMENTS,
        "<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
    ],
}


def options(parser, *, parallel=True):
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    start, end = module.tool_call_start, module.tool_call_end
    parse = calls_from(module.parse_tool_call, TOOLS)
    return {
        "markers": Markers(
            transitions={"normal": [(start, "tool")], "tool": [(end, "normal")] if end else []},
            tool_start=start,
            tool_end=end,
        ),
        "parse": parse,
        "make_reader": block_readers(TOOLS, parser, parallel=parallel),
        "parallel_calls": parallel,
    }


def joined(done):
    return [(call.index, call.id, call.name, call.arguments) for call in joined_calls(done.whole.calls)]


@pytest.mark.parametrize("parser", WRITTEN)
def test_arguments_come_character_by_character(run, parser):
    """Each character comes with the token that brought it; backslashes, commas and words with the next one."""
    opening, head, arguments, closing = WRITTEN[parser]
    done = run([*opening, head, *arguments, *closing], **options(parser))
    steps = done.steps[len(opening) :]
    assert steps[0] is None
    pieces = [piece.calls[0].arguments if piece else "" for piece in steps[1 : len(arguments) + 1]]
    assert "".join(pieces) == arguments
    assert pieces.count("") <= arguments.count("\\") + arguments.count(",") + len("1null") + 2
    own = "functions.f:0" if parser == "kimi_k2" else "call_0"
    assert joined(done) == [(0, own, "f", arguments)]
    assert (done.whole.text, done.whole.finish) == ("", "tool_calls")


@settings(max_examples=200, deadline=None)
@given(
    parser=st.sampled_from(sorted(WRITTEN)),
    parts=st.lists(st.sampled_from(["whole", "head", "arguments", "closing", "{", '"', "\\", "}", "x", " " * 500])),
    borders=st.lists(st.integers(0, 2000), max_size=40),
    parallel=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
)
def test_calls_do_not_depend_on_the_cut(run, parser, parts, borders, parallel, reason):
    """Whatever stands in and around blocks, pieces of any size give the same text and calls."""
    opening, head, arguments, closing = WRITTEN[parser]
    known = {"whole": opening + head + arguments + closing, "head": opening + head, "arguments": arguments}
    text = "".join({**known, "closing": closing}.get(part, part) for part in parts)
    whole = run([text], reason=reason, **options(parser, parallel=parallel))
    edges = sorted({0, len(text), *(border for border in borders if border < len(text))})
    split = run([text[a:b] for a, b in pairwise(edges)], reason=reason, **options(parser, parallel=parallel))
    assert joined(split) == joined(whole)
    assert (split.whole.text, split.whole.finish, split.stopped) == (
        whole.whole.text,
        whole.whole.finish,
        whole.stopped,
    )


def test_several_calls_of_one_block_come_one_after_the_other(run):
    """Each with an index of its own; only the first where one is wanted."""
    text = '[TOOL_CALLS]f[ARGS]{"a": 1}f[ARGS]{}f[ARGS]{"b": {}}'
    done = run(list(text), **options("mistral"))
    expected = [(0, "call_0", "f", '{"a": 1}'), (1, "call_1", "f", "{}"), (2, "call_2", "f", '{"b": {}}')]
    assert joined(done) == expected
    alone = run(list(text), **options("mistral", parallel=False))
    assert joined(alone) == expected[:1]
    assert alone.whole.finish == "tool_calls"


def test_call_that_was_begun_stays_when_its_answer_is_cut(run):
    """As OpenAI does it: half a call and `length`."""
    done = run(list('<tool_call>{"name": "f", "arguments": {"a": "b'), reason="length", **options("json_tools"))
    assert joined(done) == [(0, "call_0", "f", '{"a": "b')]
    assert done.whole.finish == "length"


@pytest.mark.parametrize("block", ['{"name": "unknown", "arguments": {"a', '{"name": "f"', "words", " " * LONGEST_HEAD])
def test_nothing_is_sent_of_what_is_no_call_yet(run, block):
    """Other functions, and what may still be text, wait for the end of their block."""
    done = run(list(f"<tool_call>{block}"), **options("json_tools"))
    assert done.whole.calls == []
    assert done.whole.text == f"<tool_call>{block}"


USE = "Use </tool_call> to close."


@pytest.mark.parametrize(
    ("block", "arguments"),
    [
        ('{"name": "f", "arguments": {"path": "a.md", "content": "Use </tool_call> to close."}}',
         {"path": "a.md", "content": USE}),
        ('{"name": "f", "arguments": {"a": "one\ntwo\tthree"}}', {"a": "one\ntwo\tthree"}),
        ('{"name": "f", "arguments": {"a": [1, 2,], "b": 3,},}', {"a": [1, 2], "b": 3}),
        ('{"name": "f", "arguments": {"a": [1}}', {"a": [1]}),
        ('{"name": "f", "arguments": {"a": {"b": 1}}', {"a": {"b": 1}}),
        ('{"name": "f", "arguments": {"a": {"b": [1, {"c": null', {"a": {"b": [1, {"c": None}]}}),
        ('{"name": "f", "arguments": {"a": True, "b": None, "c": False}}', {"a": True, "b": None, "c": False}),
        ("{'name': 'f', 'arguments': {'a': 'say \"hi\"', b: .5}}", {"a": 'say "hi"', "b": 0.5}),
        ('{"name": "f", "arguments": {"a": "C:\\dir \\u12 \\\'"}}', {"a": "C:\\dir \\u12 '"}),
        ('{"name": "f", "arguments": {"a": "\\ud83d\\ude00 \\ud800"}}', {"a": "😀 \ud800"}),
        ('{"name": "f", "arguments": {"a": 1}}}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": 1}, "id": "x"}', {"a": 1}),
        ('{"name": "f", "arguments": {}} I wait.', {}),
        ('{"arguments": {"a": "</tool_call>"}, "name": "f"}', {"a": "</tool_call>"}),
        ('[{"name": "f", "parameters": {"a": 1}}]', {"a": 1}),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1,}"}}', {"a": 1}),
        ('{"name": "f", "arguments": ""}', {}),
        ('{"name": "f"}', {}),
    ],
)  # fmt: skip
def test_json_is_read_as_it_was_meant(run, block, arguments):
    """Markers within strings, line breaks, commas and brackets too many or too few: JSON, and nothing beside it."""
    text = f"<tool_call>\n{block}\n</tool_call>"
    for pieces in (list(text), [text], [*text[:40], text[40:]]):
        done = run(pieces, **options("json_tools"))
        [(_, _, name, said)] = joined(done)
        assert (name, json.loads(said)) == ("f", arguments)
        assert (done.whole.text, done.whole.finish) == ("", "tool_calls")


@pytest.mark.parametrize(
    "arguments",
    ['{"a": "b" c}', '{"a": }', '{"a": NaN}', '{"a": 007}', '{"a": "no end}', "{" + '"a": [' * 2000],
)
def test_answer_ends_without_a_call_when_what_was_begun_is_no_json(run, arguments):
    """What was sent can't be taken back: no finish reason says that there is a call."""
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call> and on'
    for pieces in (list(text), [text]):
        done = run(pieces, **options("json_tools"))
        [(_, _, name, said)] = joined(done)
        assert (name, done.whole.text, done.whole.finish) == ("f", "", "stop")
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|delimiter"):
            json.loads(said)


@pytest.mark.parametrize("parser", WRITTEN)
def test_no_markup_is_content_when_length_cuts_a_call(run, parser):
    """Wherever the cut falls, whole and streamed: half a call or none, and no marker."""
    opening, head, arguments, closing = WRITTEN[parser]
    text = f"{opening}{head}{arguments}{closing}"
    for end in range(len(opening), len(text) + 1):
        done = run(["Let me see. ", text[:end]], reason="length", **options(parser))
        assert (done.whole.text, done.whole.finish) == ("Let me see. ", "length")
        assert (
            "".join(said for *_, said in joined(done)) == arguments[: len("".join(said for *_, said in joined(done)))]
        )


def test_thoughts_about_a_marker_come_at_once(run):
    """Words behind a marker are seen to be no call with the first of them."""
    done = run(["I use <tool_call>", ".", " More."], **options("json_tools"))
    assert [step and step.text for step in done.steps] == ["I use ", "<tool_call>.", " More."]


LLAMA = tools_of(["f", "get_weather"], {"type": "object"})
WEATHER = {"city": "Oslo"}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo"}}',
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo"}}',
        '{\n  "type": "function",\n  "function": {"name": "get_weather", "parameters": {"city": "Oslo"}}\n}',
        '{"function": "get_weather", "arguments": {"city": "Oslo"}}',
        '{ "name" : "get_weather" , "parameters" : {"city": "Oslo",}',
    ],
)
def test_llama_calls_are_found_however_they_begin(run, text):
    """With the python tag, with a type, pretty-printed: a call, and no content."""
    for pieces in (list(text), [text]):
        done = run(pieces, **reading("llama3", LLAMA))
        [(_, _, name, said)] = joined(done)
        assert (name, json.loads(said)) == ("get_weather", WEATHER)
        assert (done.whole.text, done.whole.finish) == ("", "tool_calls")


def test_llama_calls_follow_one_another(run):
    """Parted by semicolons, line breaks or the tag; a marker within a string is text."""
    one = '{"name": "f", "parameters": {"a": "<|python_tag|>;{"}}'
    for between in ("; ", "\n", "<|python_tag|>", ";<|python_tag|>"):
        done = run(list(f"<|python_tag|>{one}{between}{one}"), **reading("llama3", LLAMA))
        assert [json.loads(said) for *_, said in joined(done)] == [{"a": "<|python_tag|>;{"}] * 2
        assert done.whole.text == ""


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "parameters": {}} is who',
        '{"type": "object", "name": "f"}',
        '{"type": "function", "name": "unknown", "parameters": {}}',
        '{"a": {"b": {"c": {}}}}' * 20,
        "function f() { return {}; }",
        '{"name": "f"}',
    ],
)
def test_llama_answers_that_hold_objects_stay_answers(run, text):
    """An object is a call only where it is one of a function that was offered."""
    for pieces in (list(text), [text]):
        done = run(pieces, **reading("llama3", LLAMA))
        assert (done.whole.text, done.whole.calls, done.whole.finish) == (text, [], "stop")
