"""Calls with marks around their arguments come while they are written, and are those that the whole block gives."""

import importlib
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.parts import joined_calls
from worker.text.markers import Markers
from worker.text.tool_calls import holdback as certainty
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.coercion import _fit
from worker.text.tool_calls.delimiters import MARKS
from worker.text.tool_calls.streaming import written_calls

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "other": {"enum": ["a", "b"]},
        "count": {"type": "integer"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "many": {"type": "array"},
        "any": {},
    },
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "write.file")]
LINES = [
    'import os\n\n\tprint("a\\n")',
    "déjà vu 😀",
    "x < y </",
    "]]",
    "-",
    "#!/bin/sh",
    "nul",
    "none of it",
    "fr",
    "5 of",
]
WORDS = [
    "a",
    " ",
    "\n",
    "\n\n",
    "null",
    "NULL",
    "Nullable",
    "5",
    "true",
    '"q"',
    "'",
    "{",
    "}",
    "[1, 2]",
    "\\",
    ",",
    ":",
    "<",
]
TEXTS = st.lists(st.sampled_from([*LINES, *WORDS]), max_size=5).map("".join)
ATOMS = st.sampled_from([0, -7, 2.5, True, None])
VALUES = st.one_of(TEXTS, TEXTS, ATOMS)
KEYS = st.sampled_from([*SCHEMA["properties"], "unknown"])
CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "write.file", "g"]), st.lists(st.tuples(KEYS, VALUES), max_size=4)),
    min_size=1,
    max_size=3,
)
JUNK = [
    "",
    "\n",
    " junk ",
    "</tool_call>",
    "<tool_call>",
    "</function>",
    "</invoke>",
    "</parameter>",
    "<parameter=text>",
]
JUNK += [
    "<arg_key>text</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<![CDATA[",
    "]]>",
    "</param>",
    '<|"|>',
    ")",
    "]",
    '", ',
    "}",
]
JUNK += [
    '<parameter name="text">',
    '<param name="text">',
    '<invoke name="f">',
    "</atem:invoke>",
    "<|close|>call<|sep|>",
    "[f(",
]


def bare(value):
    return value if isinstance(value, str) else json.dumps(value)


def tags(before, opening, closing, after):
    def write(name, arguments):
        inside = "".join(f"{opening.format(key)}{bare(value)}{closing}" for key, value in arguments)
        return f"{before.format(name)}{inside}{after}"

    return write


def minicpm(name, arguments):
    long = {key: f"<![CDATA[{value}]]>" for key, value in arguments if isinstance(value, str) and len(value) > 2}
    written = (f'<param name="{key}">{long.get(key) or bare(value)}</param>' for key, value in arguments)
    return f'"{name}">{"".join(written)}'


def kimi(name, arguments):
    inside = "".join(
        f'<|open|>argument key="{key}" type="{"string" if isinstance(value, str) else "number"}"<|sep|>{bare(value)}'
        "<|close|>argument<|sep|>"
        for key, value in arguments
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{inside}<|close|>call<|sep|>'


def gemma(name, arguments):
    written = (
        f'{key}:<|"|>{value}<|"|>' if isinstance(value, str) else f"{key}:{bare(value)}" for key, value in arguments
    )
    return f"call:{name}{{{','.join(written)}}}"


def python(name, arguments):
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments)})"


WRITE = {
    "qwen3_coder": tags("\n<function={}>\n", "<parameter={}>\n", "\n</parameter>\n", "</function>\n"),
    "glm47": tags("{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n", ""),
    "laguna": tags("{}", "<arg_key>{}</arg_key><arg_value>", "</arg_value>", ""),
    "longcat": tags("{}", "<longcat_arg_key>{}</longcat_arg_key><longcat_arg_value>", "</longcat_arg_value>", ""),
    "minimax_m2": tags('\n<invoke name="{}">\n', '<parameter name="{}">', "</parameter>\n", "</invoke>\n"),
    "minicpm5": minicpm,
    "muse_spark": tags(
        '<atem:invoke name="{}">\n', '<atem:parameter name="{}">', "</atem:parameter>\n", "</atem:invoke>\n"
    ),
    "kimi_k3": kimi,
    "gemma4": gemma,
    "pythonic": python,
}
SEVERAL = {"minimax_m2", "muse_spark", "kimi_k3", "gemma4", "pythonic"}


def block(parser, calls):
    if parser not in SEVERAL:
        calls = calls[:1]
    if parser == "gemma4":
        calls = [(name.replace(".", "-"), arguments) for name, arguments in calls]
    if parser == "pythonic":
        calls = [(name, list(dict(arguments).items())) for name, arguments in calls]
    written = [WRITE[parser](name, arguments) for name, arguments in calls]
    return f"[{', '.join(written)}]" if parser == "pythonic" else "".join(written)


def options(parser, *, parallel=True):
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    start, end = module.tool_call_start, module.tool_call_end
    parse = calls_from(module.parse_tool_call, TOOLS)
    return {
        "markers": Markers(
            transitions={"normal": [(start, "tool")], "tool": [(end, "normal")]}, tool_start=start, tool_end=end
        ),
        "parse": parse,
        "writing": written_calls(TOOLS, parser, parse, parallel=parallel),
        "parallel_calls": parallel,
    }


def cut(text, borders):
    edges = sorted({0, len(text), *(border for border in borders if border < len(text))})
    return [text[a:b] for a, b in pairwise(edges)]


def told(done):
    return [(call.index, call.name, call.arguments) for call in joined_calls(done.whole.calls)]


def finished(arguments):
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return None


def both(run, parser, inside, borders, *, parallel=True, reason="stop"):
    """What comes of a block as a whole, and while it is written in given pieces, in characters, and at once."""
    fields = options(parser, parallel=parallel)
    text = f"{fields['markers'].tool_start}{inside}{fields['markers'].tool_end}"
    edges = sorted({0, len(text), *(border for border in borders if border < len(text))})
    cuts = ([text[a:b] for a, b in pairwise(edges)], list(text), [text])
    before = run([text], reason=reason, **{**fields, "writing": None})
    return before, [run(pieces, reason=reason, **fields) for pieces in cuts]


BORDERS = st.lists(st.integers(0, 600), max_size=60)
PARSERS = st.sampled_from(sorted(WRITE))


@settings(max_examples=150, deadline=None)
@given(parser=PARSERS, calls=CALLS, borders=BORDERS, parallel=st.booleans())
def test_what_is_told_is_what_the_whole_call_gives(run, parser, calls, borders, parallel):
    """To the letter; an argument that comes twice is told twice, and the last counts."""
    before, runs = both(run, parser, block(parser, calls), borders, parallel=parallel)
    twice = any(len(dict(arguments)) < len(arguments) for _, arguments in calls)
    for done in runs:
        assert (done.whole.text, done.whole.finish) == (before.whole.text, before.whole.finish)
        assert [one[:2] for one in told(done)] == [one[:2] for one in told(before)]
        for (_, _, arguments), (_, _, expected) in zip(told(done), told(before), strict=True):
            assert json.loads(arguments) == json.loads(expected) if twice else arguments == expected


@settings(max_examples=150, deadline=None)
@given(parser=PARSERS, calls=CALLS, junk=st.lists(st.tuples(st.integers(0, 300), st.sampled_from(JUNK)), max_size=3),
       borders=BORDERS, reason=st.sampled_from(["stop", "length"]))  # fmt: skip
def test_malformed_call_is_read_as_its_block_or_left_unfinished(run, parser, calls, junk, borders, reason):
    """Whatever stands in a block: no cut matters, and no finished call says what its parser does not read."""
    inside = block(parser, calls)
    for at, text in junk:
        inside = inside[:at] + text + inside[at + len(text) // 2 :]
    before, runs = both(run, parser, inside, borders, reason=reason)
    for done in runs:
        assert told(done) == told(runs[0])
        assert (done.whole.text, done.whole.finish) == (runs[0].whole.text, runs[0].whole.finish)
    if not told(runs[0]):
        assert (runs[0].whole.text, told(before)) == (before.whole.text, [])
    # Where it can't be Python, mlx-lm makes one call of all that looks like an argument.
    if told(before) and parser != "pythonic":
        for (_, name, arguments), expected in zip(told(runs[0]), told(before), strict=False):
            if finished(arguments) is not None:
                assert (name, json.loads(arguments)) == (expected[1], json.loads(expected[2]))


@pytest.mark.parametrize("parser", WRITE)
def test_text_comes_character_by_character(run, parser):
    """The name with the mark behind it, then every character of a text with the token that brought it."""
    content = "def f(x):return x<2;"
    fields = options(parser)
    text = f"{fields['markers'].tool_start}{block(parser, [('f', [('text', content), ('count', 5)])])}"
    begin = text.index(content)
    done = run(list(text), reason="length", **fields)
    assert merged_calls(done.steps[: begin + 1])[0].name == "f"
    shown = [merged_calls(done.steps[: begin + at + 1])[0].arguments for at in range(len(content))]
    start = '{"text": "'
    for at, arguments in enumerate(shown, 1):
        # White space may end it, and a bracket begin its end.
        assert arguments in (start + content[:at], start + content[: at - 1])
    assert told(done)[0][2].startswith(start + content)


def merged_calls(steps):
    return joined_calls(call for step in steps if step for call in step.calls)


@pytest.mark.parametrize("parser", WRITE)
def test_resumed_call_goes_on_where_it_was_cut(run, make_choice, parser):
    """Wherever an engine dies, the next one tells exactly the rest: no piece twice, none missing."""
    fields = options(parser)
    inside = block(parser, [("f", [("text", 'a\n"b" é\n'), ("maybe", "None of"), ("count", 5)])])
    pieces = list(f"{fields['markers'].tool_start}{inside}{fields['markers'].tool_end}")
    first = run(pieces, **fields)
    for delivered in range(1, len(pieces), 6):
        again = make_choice(pieces, **fields)
        for token in range(delivered):
            again.feed_token(token)
        again.take_pieces()
        rest = []
        for token in range(delivered, len(pieces)):
            again.feed_token(token)
            rest.append(again.take_pieces())
        whole = merged_calls([*first.steps[:delivered], *rest, again.finish_text("stop")])
        assert [(call.index, call.name, call.arguments) for call in whole] == told(first)


@pytest.mark.parametrize(
    ("parser", "inside", "arguments"),
    [
        ("qwen3_coder", "<function=f>\n<parameter=text>\nabc", '{"text": "abc'),
        ("qwen3_coder", "<function=f>\n<parameter=count>\n12", ""),
        ("glm47", "f<arg_key>text</arg_key><arg_value>abc \n", '{"text": "abc'),
        ("gemma4", 'call:f{text:<|"|>abc', '{"text": "abc'),
        ("pythonic", "[f(text='abc\\", '{"text": "abc'),
    ],
)
def test_call_that_was_begun_stays_when_its_answer_is_cut(run, parser, inside, arguments):
    """As with JSON: half a call and `length`, or `stop` where the model ends in it."""
    fields = options(parser)
    done = run(list(fields["markers"].tool_start + inside), reason="length", **fields)
    assert (told(done), done.whole.finish, done.whole.text) == ([(0, "f", arguments)], "length", "")


@pytest.mark.parametrize("line_break", ["\n", "\\n"])
def test_python_that_breaks_within_a_string_is_read_as_before(run, line_break):
    """Small models write strings over several lines."""
    done = run(list(f"<|tool_call_start|>[f(text='a{line_break}b', count=1)]<|tool_call_end|>"), **options("pythonic"))
    assert told(done) == [(0, "f", '{"text": "a\\nb", "count": 1}')]


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(TEXTS, st.text("nulNoe rbf'\"5.-{[(1,", max_size=8)).map(str.strip).filter(bool))
def test_text_without_doubt_is_none_but_text(text):
    """What is told as a text is not read as anything else, and stays without doubt whatever follows."""
    for doubt, types in ((certainty.literal, {"string", "null"}), (certainty.literal, set())):
        doubts = [doubt(text[:size]) for size in range(1, len(text) + 1)]
        assert doubts == sorted(doubts, reverse=True)
        assert doubts[-1] or _fit(text, frozenset(types)) == text
    if not certainty.json(text):
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


def test_known_parsers_have_marks():
    """A name that mlx-lm drops is noticed, and one without words to write here, too."""
    assert WRITE.keys() == MARKS.keys()
