"""Whatever stands in the arguments of a call, in every format and every cut: what the model meant, or no call."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.parts import joined_calls
from tests.support.tool_formats import JSON_WAYS, MARKS, SEVERAL, WRITERS, reading, tools_of, write_block
from worker.text.tool_calls.formats import FORMATS, LiteralSyntax
from worker.text.tool_calls.tags import tag_patterns

TEXT = {"type": "string"}
SCHEMA = {"type": "object", "properties": {"text": TEXT, "note": TEXT, "data": {"type": ["object", "array"]}}}
TOOLS = tools_of(["f", "write_file"], SCHEMA)
TAGS = [
    "<function=f>", "</function>", "<parameter=text>", "</parameter>", "<arg_key>text</arg_key>", "<arg_value>",
    "</arg_value>", "</invoke>", '<invoke name="f">', '<parameter name="text">', '<param name="text">', "</param>",
    "<![CDATA[", "]]", '<|"|>', "<escape>", "[ARGS]", "<|tool_call_end|>", "<|close|>call<|sep|>", "<think>",
    "</think>", "<|python_tag|>", "<|im_end|>", '{"name": "f", "arguments": {}}', "call:f{", "f(text=1)", "[f(",
]  # fmt: skip
SIGNS = ["\n", "\n\n", " ", "\t", "\\", '"', "'", '"""', "{", "}", "[", "]", "(", ")", ",", ":", "=", ";", "`", "\\n"]
SIGNS += ["\\ud800", "\\u", "\\x41", "é", "😀", "\u2028", "\x7f", "\x01", "\x00", "true", "None", "null", "1", "<", ">"]
TEXTS = st.lists(st.sampled_from([*MARKS, *TAGS, *SIGNS, "a word"]), max_size=6).map("".join)
PLAIN = st.sampled_from([0, -7, 2.5, 1e300, 10**30, True, False, None])
DATA = st.recursive(
    st.one_of(TEXTS, PLAIN),
    lambda inside: st.one_of(st.lists(inside, max_size=3), st.dictionaries(st.sampled_from("abc"), inside, max_size=3)),
    max_leaves=6,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXTS,
        "note": TEXTS,
        "data": st.one_of(st.lists(DATA, max_size=2), st.dictionaries(st.sampled_from("ab"), DATA, max_size=2)),
    },
)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "write_file", "other"]), ARGUMENTS), min_size=1, max_size=3)
WAYS = st.sampled_from(sorted(WRITERS))
BORDERS = st.lists(st.integers(0, 900), max_size=60)


def cuts(text, borders):
    edges = sorted({0, len(text), *(border for border in borders if border < len(text))})
    return ([text[a:b] for a, b in pairwise(edges)], list(text), [text])


def message(done):
    calls = [(call.index, call.id, call.name, call.arguments) for call in joined_calls(done.whole.calls)]
    return done.whole.text, done.whole.reasoning, calls, done.whole.finish, done.stopped


def said(done):
    """Name and arguments of each call; raises for what is no JSON object."""
    found = [(call.name, json.loads(call.arguments)) for call in joined_calls(done.whole.calls)]
    assert all(isinstance(arguments, dict) for _, arguments in found)
    return found


def texts_in(value):
    match value:
        case str():
            return [value]
        case dict():
            return [text for part in value.values() for text in texts_in(part)]
        case list():
            return [text for part in value for text in texts_in(part)]
        case _:
            return []


def expressible(way, arguments):
    """Whether the format can say it: what closes a value or a call, with all that has to follow, can't be in one."""
    form = FORMATS[WRITERS[way][0]]
    if way in JSON_WAYS or way == "pythonic":
        return True
    if isinstance(form.syntax, LiteralSyntax):
        closed = re.compile(rf"{re.escape(form.syntax.quote)}\s*([,}}\])]|{re.escape(form.end)})")
        return not any(closed.search(text) for text in texts_in(arguments))
    patterns = tag_patterns(form)
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in arguments.values()]
    return not any(patterns.border.search(text) or "]]>" in text for text in texts)


@settings(max_examples=600, deadline=None)
@given(way=WAYS, calls=CALLS, borders=BORDERS, parallel=st.booleans())
def test_arguments_are_what_went_in_whatever_they_hold(run, way, calls, borders, parallel):
    """Markers, quotes, backslashes, line breaks: the same calls, streamed and whole, and nothing beside them."""
    calls = calls if way in SEVERAL else calls[:1]
    if way == "llama3":
        calls = [(name.replace("other", "f"), arguments) for name, arguments in calls]
    text = write_block(way, calls)
    for pieces in cuts(text, borders):
        done = run(pieces, **reading(WRITERS[way][0], TOOLS, parallel=parallel))
        if all(expressible(way, arguments) for _, arguments in calls):
            assert (said(done), done.whole.text) == (calls if parallel else calls[:1], "")
            assert done.whole.finish == "tool_calls"
        elif done.whole.finish == "tool_calls":
            assert said(done)


@settings(max_examples=600, deadline=None)
@given(way=WAYS, calls=CALLS, borders=BORDERS, reason=st.sampled_from(["stop", "length"]),
       junk=st.lists(st.tuples(st.integers(0, 400), st.sampled_from([*MARKS, *TAGS, *SIGNS])), max_size=3),
       parallel=st.booleans(), end=st.integers(0, 800))  # fmt: skip
def test_message_does_not_depend_on_the_cut_whatever_is_written(run, way, calls, borders, reason, junk, parallel, end):
    """Blocks that are broken, cut off, joined or mixed: one message, and JSON wherever it says that it has calls."""
    text = "".join(write_block(way, [call]) for call in calls) + " and on"
    for at, mark in junk:
        text = text[:at] + mark + text[at + len(mark) // 2 :]
    text = text[: end if end < 700 else None]
    found = []
    for pieces in cuts(text, borders):
        done = run(pieces, reason=reason, **reading(WRITERS[way][0], TOOLS, parallel=parallel))
        found.append(message(done))
        if done.whole.finish == "tool_calls":
            assert said(done)
    assert found[0] == found[1] == found[2]


@settings(max_examples=200, deadline=None)
@given(way=WAYS, calls=CALLS, delivered=st.integers(0, 400))
def test_resumed_message_is_the_same_wherever_it_is_cut(run, merged, make_choice, way, calls, delivered):
    """What a client has is not sent again, and none of the rest is missing."""
    text = "".join(write_block(way, [call]) for call in calls)
    pieces = list(text)
    options = reading(WRITERS[way][0], TOOLS)
    first = run(pieces, **options)
    delivered = min(delivered, len(pieces))
    again = make_choice(pieces, **options)
    for token in range(delivered):
        again.feed_token(token)
    again.take_pieces()
    rest = []
    for token in range(delivered, len(pieces)):
        again.feed_token(token)
        rest.append(again.take_pieces())
    whole = merged([*first.steps[:delivered], *rest, again.finish_text("stop")])
    assert joined_calls(whole.calls) == joined_calls(first.whole.calls)
    assert (whole.text, whole.finish) == (first.whole.text, first.whole.finish)


@pytest.mark.parametrize("way", WRITERS)
def test_every_marker_survives_within_a_string(run, way):
    """Each by itself, as one token or many, in each format."""
    for mark in [*MARKS, *TAGS]:
        arguments = {"text": f"Use {mark} to close.", "note": mark}
        if not expressible(way, arguments):
            continue
        text = write_block(way, [("f", arguments)])
        options = reading(WRITERS[way][0], TOOLS)
        before, behind = text.split(mark, 1) if mark in text else (text, "")
        for pieces in ([before, mark, behind] if behind else [text], list(text)):
            done = run(pieces, **options)
            assert (said(done), done.whole.text, done.whole.finish) == ([("f", arguments)], "", "tool_calls")


@pytest.mark.parametrize("way", WRITERS)
@pytest.mark.parametrize("depth", [50, 300])
def test_deep_values_are_read_in_every_format(run, way, depth):
    """Nesting that clients can read."""
    value: list = []
    for _ in range(depth):
        value = [value]
    done = run([write_block(way, [("f", {"data": value})])], **reading(WRITERS[way][0], TOOLS))
    assert said(done) == [("f", {"data": value})]


@pytest.mark.parametrize("way", WRITERS)
def test_what_no_client_could_read_is_not_handed_out_as_a_call(run, way):
    """Python's `json` reads neither a thousand lists within each other nor an integer of 5000 digits."""
    for data in ["[" * 1500 + "]" * 1500, "[" + "1" * 5000 + "]"]:
        text = write_block(way, [("f", {"data": ["-"]})]).replace('["-"]', data).replace("['-']", data)
        text = text.replace('[<|"|>-<|"|>]', data).replace("[<escape>-<escape>]", data)
        assert data in text
        done = run([text], **reading(WRITERS[way][0], TOOLS))
        if done.whole.finish == "tool_calls":
            assert said(done) == [("f", {"data": data})]
        else:
            assert done.whole.finish == "stop"


def test_every_format_has_a_writer():
    """So that what is tested here of each way of writing is tested of each format; Harmony's messages apart."""
    assert {parser for parser, *_ in WRITERS.values()} == {name for name, form in FORMATS.items() if not form.messages}


@pytest.mark.parametrize(
    "way",
    [way for way in WRITERS if way not in JSON_WAYS and tag_patterns(FORMATS[WRITERS[way][0]]) is not None],
)
def test_whole_call_within_a_value_is_a_part_of_it(run, way):
    """Whoever writes about a format writes calls in it. JSON says itself where it ends."""
    example = write_block(way, [("f", {"text": "x"})])
    arguments = {"text": f"So it goes:\n{example}\nSee?", "note": "n"}
    if "CDATA" in example:
        arguments["text"] = arguments["text"].replace("<![CDATA[", "").replace("]]>", "")
    text = write_block(way, [("write_file", arguments)]) + "\n" + write_block(way, [("f", {"text": "2"})])
    done = run(list(text), **reading(WRITERS[way][0], TOOLS))
    assert said(done) == [("write_file", arguments), ("f", {"text": "2"})]
    assert done.whole.text == ""
