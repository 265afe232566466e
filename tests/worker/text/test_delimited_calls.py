"""Calls whose arguments are not JSON: the name comes at once, the arguments as the whole block gives them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import ToolCall
from protocol.parts import joined_calls
from tests.support.tool_parsers import parser_module
from worker.text.markers import Markers
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.formats import FORMATS
from worker.text.tool_calls.streaming import block_readers

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
    '<｜DSML｜invoke name="f">',
    "</｜DSML｜parameter>",
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


def gemma(quote):
    def write(name, arguments):
        written = (
            f"{key}:{quote}{value}{quote}" if isinstance(value, str) else f"{key}:{bare(value)}"
            for key, value in arguments
        )
        return f"call:{name}{{{','.join(written)}}}"

    return write


def dsml(name, arguments):
    written = (
        f'<｜DSML｜parameter name="{key}" string="{"true" if isinstance(value, str) else "false"}">{bare(value)}'
        "</｜DSML｜parameter>\n"
        for key, value in arguments
    )
    return f'\n<｜DSML｜invoke name="{name}">\n{"".join(written)}</｜DSML｜invoke>\n'


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
    "gemma4": gemma('<|"|>'),
    "function_gemma": gemma("<escape>"),
    "pythonic": python,
    "deepseek_v32": dsml,
}
SEVERAL = {"deepseek_v32", "minimax_m2", "muse_spark", "kimi_k3", "gemma4", "pythonic"}


def block(parser, calls):
    if parser not in SEVERAL:
        calls = calls[:1]
    if parser in ("gemma4", "function_gemma"):
        calls = [(name.replace(".", "-"), arguments) for name, arguments in calls]
    if parser == "pythonic":
        calls = [(name, list(dict(arguments).items())) for name, arguments in calls]
    written = [WRITE[parser](name, arguments) for name, arguments in calls]
    return f"[{', '.join(written)}]" if parser == "pythonic" else "".join(written)


def options(parser, *, parallel=True):
    module = parser_module(parser)
    start, end = module.tool_call_start, module.tool_call_end
    parse = calls_from(module.parse_tool_call, TOOLS)
    return {
        "markers": Markers(
            transitions={"normal": [(start, "tool")], "tool": [(end, "normal")]}, tool_start=start, tool_end=end
        ),
        "parse": parse,
        "make_reader": block_readers(TOOLS, parser, parallel=parallel),
        "parallel_calls": parallel,
    }


def cut(text, borders):
    edges = sorted({0, len(text), *(border for border in borders if border < len(text))})
    return [text[a:b] for a, b in pairwise(edges)]


def joined(done):
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
    before = run([text], reason=reason, **{**fields, "make_reader": None})
    return before, [run(pieces, reason=reason, **fields) for pieces in cuts]


BORDERS = st.lists(st.integers(0, 600), max_size=60)
PARSERS = st.sampled_from(sorted(WRITE))


@settings(max_examples=150, deadline=None)
@given(parser=PARSERS, calls=CALLS, borders=BORDERS, parallel=st.booleans())
def test_stream_is_what_the_whole_block_gives(run, parser, calls, borders, parallel):
    """To the letter, whatever the cut."""
    before, runs = both(run, parser, block(parser, calls), borders, parallel=parallel)
    for done in runs:
        assert (done.whole.text, done.whole.finish) == (before.whole.text, before.whole.finish)
        assert joined(done) == joined(before)


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
        assert joined(done) == joined(runs[0])
        assert (done.whole.text, done.whole.finish) == (runs[0].whole.text, runs[0].whole.finish)
    if not joined(runs[0]):
        assert (runs[0].whole.text, joined(before)) == (before.whole.text, [])
    if joined(before):
        for (_, name, arguments), expected in zip(joined(runs[0]), joined(before), strict=False):
            if finished(arguments) is not None:
                assert (name, json.loads(arguments)) == (expected[1], json.loads(expected[2]))


@pytest.mark.parametrize("parser", WRITE)
def test_name_comes_at_once_and_arguments_when_the_block_ends(run, parser):
    """The name with its first argument at the latest; then one piece with all arguments."""
    fields = options(parser)
    inside = block(parser, [("f", [("text", "def f(x):return x<2;"), ("count", 5)])])
    done = run(list(f"{fields['markers'].tool_start}{inside}{fields['markers'].tool_end}"), **fields)
    [named, *rest] = [(at, call) for at, step in enumerate(done.steps) if step for call in step.calls]
    assert (named[1].name, named[1].arguments) == ("f", "")
    assert named[0] < len(fields["markers"].tool_start) + inside.index("def f(x)")
    assert rest == [(len(done.steps) - 1, ToolCall(0, "", "", joined(done)[0][2]))]
    assert json.loads(joined(done)[0][2]) == {"text": "def f(x):return x<2;", "count": 5}


def merged_calls(steps):
    return joined_calls(call for step in steps if step for call in step.calls)


@pytest.mark.parametrize("parser", WRITE)
def test_resumed_call_goes_on_where_it_was_cut(run, make_choice, parser):
    """Wherever an engine dies, the next one sends exactly the rest: no piece twice, none missing."""
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
        assert [(call.index, call.name, call.arguments) for call in whole] == joined(first)


@pytest.mark.parametrize(
    ("parser", "inside"),
    [
        ("qwen3_coder", "<function=f>\n<parameter=text>\nabc"),
        ("qwen3_coder", "<function=f>\n<parameter=count>\n12"),
        ("glm47", "f<arg_key>text</arg_key><arg_value>abc \n"),
        ("gemma4", 'call:f{text:<|"|>abc'),
        ("pythonic", "[f(text='abc\\"),
    ],
)
def test_call_stays_without_arguments_when_its_answer_is_cut(run, parser, inside):
    """As with JSON: half a call and `length`; nothing of it is content."""
    fields = options(parser)
    done = run(list(fields["markers"].tool_start + inside), reason="length", **fields)
    assert (joined(done), done.whole.finish, done.whole.text) == ([(0, "f", "")], "length", "")


@pytest.mark.parametrize("parser", sorted(SEVERAL))
def test_later_calls_of_a_block_come_at_its_end(run, parser):
    """Only the first name comes before; a call of another function waits with its block."""
    fields = options(parser)
    inside = block(parser, [("f", [("count", 1)]), ("f", [("count", 2)])])
    done = run(list(f"{fields['markers'].tool_start}{inside}{fields['markers'].tool_end}"), **fields)
    assert joined(done) == [(0, "f", '{"count": 1}'), (1, "f", '{"count": 2}')]
    assert len([step for step in done.steps if step]) == 2
    other = block(parser, [("g", [("text", "a")]), ("f", [("count", 2)])])
    done = run(list(f"{fields['markers'].tool_start}{other}{fields['markers'].tool_end}"), **fields)
    assert joined(done) == [(0, "g", '{"text": "a"}'), (1, "f", '{"count": 2}')]
    assert len([step for step in done.steps if step]) == 1


@pytest.mark.parametrize(
    ("parser", "inside"),
    [
        ("pythonic", "[f(text='a), g(text=1 b)]"),
        ("qwen3_coder", "<function=f>\n<parameter=text>\nabc\n"),
        ("gemma4", "call:f{text"),
    ],
)
def test_call_is_left_unfinished_when_its_block_turns_out_to_be_none(run, parser, inside):
    """What was sent stays, and nothing of the block is content."""
    fields = options(parser)
    fields["parse"] = no_call
    done = run(list(f"{fields['markers'].tool_start}{inside}{fields['markers'].tool_end} and on"), **fields)
    assert (joined(done), done.whole.text) == ([(0, "f", "")], "and on")


def no_call(block):
    raise ValueError(block)


@pytest.mark.parametrize("line_break", ["\n", "\\n"])
def test_python_that_breaks_within_a_string_is_read_as_before(run, line_break):
    """Small models write strings over several lines."""
    done = run(list(f"<|tool_call_start|>[f(text='a{line_break}b', count=1)]<|tool_call_end|>"), **options("pythonic"))
    assert joined(done) == [(0, "f", '{"text": "a\\nb", "count": 1}')]


def test_every_format_of_other_arguments_is_written_here():
    """A format that is added needs words to write here, too."""
    assert WRITE.keys() == {name for name, form in FORMATS.items() if form.head is not None}
