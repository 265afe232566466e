"""Calls come while they are written: who is called first, then the arguments as far as they are there."""

import importlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.parts import joined_calls
from worker.text.markers import Markers
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.streaming import LONGEST_HEAD, block_readers

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
    """Each character of the arguments comes with the token that brought it, a backslash with the one it escapes."""
    opening, head, arguments, closing = WRITTEN[parser]
    done = run([*opening, head, *arguments, *closing], **options(parser))
    steps = done.steps[len(opening) :]
    assert steps[0] is None
    pieces = [piece.calls[0].arguments if piece else "" for piece in steps[1 : len(arguments) + 1]]
    assert "".join(pieces) == arguments
    assert pieces.count("") <= arguments.count("\\")
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


@pytest.mark.parametrize("block", ['{"name": "unknown", "arguments": {}', '{"name": "f"', "words", " " * LONGEST_HEAD])
def test_nothing_is_sent_of_what_is_no_call_yet(run, block):
    """Other functions, and what may still be text, wait for the end of their block."""
    done = run(list(f"<tool_call>{block}"), **options("json_tools"))
    assert done.whole.calls == []
    assert done.whole.text == f"<tool_call>{block}"
