"""Calls whose arguments are not JSON: the name comes at once, the arguments when they are certain."""

import json

import pytest

from protocol.messages import ToolCall
from protocol.parts import joined_calls
from tests.support.tool_formats import JSON_WAYS, SEVERAL, WRITERS, reading, tools_of, write_block
from worker.text.tool_calls.formats import FORMATS, LiteralSyntax

SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "maybe": {"type": ["string", "null"]}},
}
TOOLS = tools_of(["f"], SCHEMA)
DELIMITED = sorted(set(WRITERS) - set(JSON_WAYS))
SPOKEN = {"text": "def f(x):return x<2;", "count": 5}


def options(way):
    return reading(WRITERS[way][0], TOOLS)


def joined(done):
    return [(call.index, call.name, call.arguments) for call in joined_calls(done.whole.calls)]


def is_literal(way):
    return isinstance(FORMATS[WRITERS[way][0]].syntax, LiteralSyntax)


@pytest.mark.parametrize("way", DELIMITED)
def test_name_comes_before_the_arguments(run, way):
    """With its first argument at the latest; tags come in one piece, at the end of the call."""
    text = write_block(way, [("f", SPOKEN)])
    done = run(list(text), **options(way))
    [(at, named), *rest] = [
        (at, call) for at, step in enumerate([*done.steps, done.last]) if step for call in step.calls
    ]
    assert (named.name, named.arguments) == ("f", "{" if is_literal(way) and way != "function_gemma" else "")
    assert at < text.index("def f(x)")
    assert json.loads(joined(done)[0][2]) == SPOKEN
    if not is_literal(way):
        assert rest == [(len(done.steps), ToolCall(0, "", "", joined(done)[0][2]))]


@pytest.mark.parametrize("way", ["gemma4", "pythonic"])
def test_literals_come_character_by_character(run, way):
    """They say where they end, as JSON does."""
    pieces = [
        step.calls[0].arguments for step in run(list(write_block(way, [("f", SPOKEN)])), **options(way)).steps if step
    ]
    assert max(map(len, pieces)) < 12
    assert json.loads("".join(pieces)) == SPOKEN


@pytest.mark.parametrize(
    ("way", "inside", "begun"),
    [
        ("qwen3_coder", "<function=f>\n<parameter=text>\nabc", ""),
        ("qwen3_coder", "<function=f>\n<parameter=count>\n12", ""),
        ("glm47", "f<arg_key>text</arg_key><arg_value>abc \n", ""),
        ("gemma4", 'call:f{text:<|"|>abc', '{"text":"abc'),
        ("pythonic", "[f(text='abc\\", '{"text":"abc'),
    ],
)
def test_call_stays_unfinished_when_its_answer_is_cut(run, way, inside, begun):
    """As with JSON: half a call and `length`; nothing of it is content."""
    fields = options(way)
    for reason in ("length", "stop"):
        done = run(list(fields["markers"].tool_start + inside), reason=reason, **fields)
        assert (joined(done), done.whole.finish, done.whole.text) == ([(0, "f", begun)], reason, "")


@pytest.mark.parametrize("way", sorted(SEVERAL - set(JSON_WAYS)))
def test_each_call_of_a_block_comes_by_itself(run, way):
    """A call of another function waits for its own end only."""
    text = write_block(way, [("f", {"count": 1}), ("f", {"count": 2})])
    done = run(list(text), **options(way))
    assert [(name, json.loads(said)) for _, name, said in joined(done)] == [("f", {"count": 1}), ("f", {"count": 2})]
    assert len([step for step in done.steps if step]) >= 2
    done = run(list(write_block(way, [("g", {"text": "a"}), ("f", {"count": 2})])), **options(way))
    assert [(name, json.loads(said)) for _, name, said in joined(done)] == [("g", {"text": "a"}), ("f", {"count": 2})]


@pytest.mark.parametrize(
    ("way", "inside", "begun"),
    [
        ("pythonic", "[f(text='a), g(text=1 b)]", '{"text":"a), g(text=1 b)]<|tool_call_end|> and on'),
        ("pythonic", "[f(text='a' 1)]", '{"text":"a" '),
        ("qwen3_coder", "<function=f>\nabc\n</function>", ""),
        ("gemma4", "call:f{text}", '{"text"'),
    ],
)
def test_answer_ends_where_a_call_turns_out_to_be_none(run, way, inside, begun):
    """What was sent stays, nothing follows, and nobody takes it for a finished call."""
    fields = options(way)
    done = run(list(f"{fields['markers'].tool_start}{inside}{fields['markers'].tool_end} and on"), **fields)
    assert (joined(done), done.whole.text, done.whole.finish) == ([(0, "f", begun)], "", "stop")


@pytest.mark.parametrize("line_break", ["\n", "\\n"])
def test_python_that_breaks_within_a_string_is_read(run, line_break):
    """Small models write strings over several lines."""
    done = run(list(f"<|tool_call_start|>[f(text='a{line_break}b', count=1)]<|tool_call_end|>"), **options("pythonic"))
    assert joined(done) == [(0, "f", '{"text":"a\\nb", "count":1}')]


@pytest.mark.parametrize(
    ("way", "inside", "arguments"),
    [
        ("qwen3_coder", "<function=f>\n<parameter=text>\nUse </parameter> here\n</parameter>\n</function>\n",
         {"text": "Use </parameter> here"}),
        ("qwen3_coder", "<function=f>\n<parameter=text>\n</function>\n</tool_call>\n</parameter>\n</function>\n",
         {"text": "</function>\n</tool_call>"}),
        ("qwen3_coder", "<function=f>\n<parameter=text>\n</parameter>\n</function>\n</tool_call>\n</parameter>\n"
         "</function>\n", {"text": "</parameter>\n</function>\n</tool_call>"}),
        ("qwen3_coder", "<function=f>\n<parameter=text>\n\n x \n\n</parameter>\n</function>\n", {"text": "\n x \n"}),
        ("qwen3_coder", "<function=f>\n</function>\n", {}),
        ("qwen3_coder", "<function=f>\n<parameter=text>\na\n</parameter>\n", {"text": "a"}),
        ("qwen3_coder", "<function=f><parameter=count>1</parameter></function>", {"count": 1}),
        ("glm47", "f<arg_key>text</arg_key>\n<arg_value>x</arg_value> y</arg_value>\n", {"text": "x</arg_value> y"}),
        ("glm47", "f", {}),
        ("minimax_m2", '<invoke name="f"><parameter name="text"> a </parameter></invoke>', {"text": " a "}),
        ("minicpm5", '"f"><param name="text"><![CDATA[</param></function>]]></param>', {"text": "</param></function>"}),
        ("minicpm5", "'f'><param name='count'>7</param>", {"count": 7}),
        ("gemma4", 'call:f{text:<|"|>He said <|"|>hi<|"|>!<|"|>,count:1}', {"text": 'He said <|"|>hi<|"|>!', "count": 1}),  # noqa: E501
        ("gemma4", "call:f{text:New York,count:1}", {"text": "New York", "count": 1}),
        ("gemma4", "call:f{count:1", {"count": 1}),
        ("function_gemma", "call:f{text:<escape>a}b<escape>,count:<escape>5<escape>}", {"text": "a}b", "count": 5}),
        ("pythonic", '[f(text="it\'s", count=1_000)]', {"text": "it's", "count": 1000}),
        ("pythonic", '[f(text="""a "b"\n""", maybe=None)]', {"text": 'a "b"\n', "maybe": None}),
        ("pythonic", "[f(text='\\x41\\t\\101\\'')]", {"text": "A\tA'"}),
        ("pythonic", "[f(maybe=null, count=1,)]", {"maybe": None, "count": 1}),
        ("pythonic", "f(count=1)", {"count": 1}),
    ],
)  # fmt: skip
def test_value_is_read_as_it_was_meant(run, way, inside, arguments):
    """Closing tags and quotes within values, white space that counts, and what models leave out."""
    fields = options(way)
    text = f"{fields['markers'].tool_start}{inside}{fields['markers'].tool_end}"
    for pieces in (list(text), [text], list(text)[: -len(fields["markers"].tool_end)]):
        done = run(pieces, **fields)
        [(_, name, said)] = joined(done)
        assert (name, json.loads(said), done.whole.text) == ("f", arguments, "")
        assert done.whole.finish == "tool_calls"


def test_text_behind_a_block_is_content_once_that_is_certain(run):
    """Words behind a closed block may belong to a value that holds what closes it; a next block, or length, tells."""
    block = write_block("qwen3_coder", [("f", {"count": 1})])
    done = run(list(f"{block}\nDone. {block}"), **options("qwen3_coder"))
    assert ([said for _, _, said in joined(done)], done.whole.text) == (['{"count": 1}'] * 2, "Done. ")
    done = run([block, "\n", *["word "] * 300], **options("qwen3_coder"))
    assert done.whole.text == "word " * 300
    assert len([step for step in done.steps if step]) > 90


def test_every_format_is_written_here():
    """A format that is added needs words to write here, too."""
    ours = {parser for parser, _ in WRITERS.values()}
    assert ours >= {name for name, form in FORMATS.items() if form.head is not None}
