"""Harmony, the format of gpt-oss: messages with headers, sorted into content, reasoning and calls."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.parts import joined_calls
from worker.text.harmony import CONTROL, HarmonyText, Header, begun_answer, open_message, read_header
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.harmony import parse_tool_call
from worker.text.tool_calls.streaming import block_readers

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g.h-1")]
SPLIT = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")


class Written:
    """Token i is the i-th piece; pieces that are names of control tokens are these tokens, unless `plain`."""

    def __init__(self, pieces, plain=()):
        self.pieces = pieces
        self.controls = {at: piece for at, piece in enumerate(pieces) if piece in CONTROL and at not in plain}
        self.last_segment = ""

    def add_token(self, token):
        self.last_segment = self.pieces[token]

    def finalize(self):
        self.last_segment = ""


class Answer:
    """What came of an answer that was written in these pieces."""

    def __init__(self, pieces, *, reason="stop", tools=TOOLS, stop=(), parallel=True, opened=(), plain=(), delivered=0):
        written = Written([*opened, *pieces], {at + len(opened) for at in plain})
        self.text = HarmonyText(
            detokenizer=written,
            controls=written.controls,
            opened=range(len(opened)),
            stop=stop,
            parse_calls=calls_from(parse_tool_call, tools) if tools else None,
            make_reader=block_readers(tools, "harmony", parallel=parallel) if tools else None,
            call_ids=lambda index: f"call_{index}",
            parallel_calls=parallel,
        )
        first = len(opened) + delivered
        for token in range(len(opened), first):
            self.text.feed_token(token)
        self.text.take_pieces()
        self.steps = []
        for token in range(first, len(written.pieces)):
            self.text.feed_token(token)
            self.steps.append(self.text.take_pieces())
        self.steps.append(self.text.finish_text(reason))
        self.tell(self.steps)

    def tell(self, steps):
        """Join what was told step by step."""
        found = [piece for piece in steps if piece is not None]
        self.finish = found[-1].finish
        self.content = "".join(piece.text for piece in found)
        self.reasoning = "".join(piece.reasoning for piece in found)
        self.pieces = [call for piece in found for call in piece.calls]
        self.calls = [(call.name, call.arguments) for call in joined_calls(self.pieces)]

    def __eq__(self, other):
        return self.said == other.said

    @property
    def said(self):
        return (self.content, self.reasoning, self.calls, self.finish)


def read(text, **options):
    """Return what comes of a text whose control tokens are written out, its other characters one by one."""
    return Answer(cut(text), **options)


def cut(text):
    parts = SPLIT.split(text)
    return [piece for part in parts for piece in ([part] if part in CONTROL else part)]


THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>Hello!"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}'


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "calls"),
    [
        (THOUGHT + FINAL, "Hello!", "Let me see.", []),
        (THOUGHT + FINAL + "<|return|>", "Hello!", "Let me see.", []),
        ("<|start|>assistant" + THOUGHT + FINAL, "Hello!", "Let me see.", []),
        (FINAL, "Hello!", "", []),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}", "", []),
        (THOUGHT + CALL, "", "Let me see.", [("f", '{"x": 1}')]),
        (THOUGHT + CALL + "<|call|>", "", "Let me see.", [("f", '{"x": 1}')]),
        (" to=functions.f<|channel|>commentary json<|message|>{}", "", "", [("f", "{}")]),
        ("<|start|>assistant to=functions.f<|channel|>commentary<|message|>{}", "", "", [("f", "{}")]),
        ("<|channel|>commentary to=functions.f code<|message|>{}", "", "", [("f", "{}")]),
        ("<|channel|>commentary<|constrain|>json to=functions.f<|message|>{}", "", "", [("f", "{}")]),
        ("<|channel|>analysis to=functions.f<|message|>{}", "", "", [("f", "{}")]),
        ("<|channel|>commentary to=g.h-1<|message|>{}", "", "", [("g.h-1", "{}")]),
        ("<|channel|>commentary to=functions.f<|message|>", "", "", [("f", "{}")]),
        ("<|channel|>commentary to=functions.f<|message|> \n{}\n", "", "", [("f", "{}")]),
        ("<|channel|>commentary to=functions.unknown<|message|>{}", "", "", [("unknown", "{}")]),
        ("<|channel|>commentary<|message|>First a look.<|end|><|start|>assistant" + CALL, "First a look.", "",
         [("f", '{"x": 1}')]),
        ("<|channel|>commentary<|message|>A<|end|><|start|>assistant" + FINAL, "A\n\nHello!", "", []),
        (THOUGHT + THOUGHT + FINAL, "Hello!", "Let me see.\n\nLet me see.", []),
        (THOUGHT + "<|channel|>summary<|message|>Short.", "Short.", "Let me see.", []),
        ("<|channel|>commentary to=user<|message|>Hi", "Hi", "", []),
        ("<|message|>Hi", "Hi", "", []),
        ("<|channel|>analysis<|message|>A<|channel|>final<|message|>B", "B", "A", []),
        ("<|channel|>analysis<|message|>A<|start|>assistant<|channel|>final<|message|>B", "B", "A", []),
        ("<|channel|>analysis<|message|>A<|end|>assistant<|channel|>final<|message|>B", "B", "A", []),
        ("Hello there", "Hello there", "", []),
        ("assist", "assist", "", []),
        ("to be, or", "to be, or", "", []),
        ("", "", "", []),
        ("<|channel|>python<|message|>x", "x", "", []),
        ("<|channel|>analysis to=python<|message|>print(1)", "", "print(1)", []),
        ("<|channel|>commentary to=functions.f<|message|>no JSON", "no JSON", "", []),
        ("<|channel|>commentary to=functions.f<|message|>[1]", "[1]", "", []),
        (FINAL + "<|end|><|start|>user<|message|>And now?", "Hello!", "", []),
        (FINAL + "<|end|><|start|>functions.f to=assistant<|channel|>commentary<|message|>1", "Hello!", "", []),
    ],
)  # fmt: skip
def test_messages_are_sorted_whatever_their_header(text, content, reasoning, calls):
    """Nothing of a header is ever shown, and no text is lost."""
    answer = read(text)
    assert answer.said == (content, reasoning, calls, "tool_calls" if calls else "stop")


@pytest.mark.parametrize("between", ["<|end|><|start|>assistant", "<|call|><|start|>assistant", "<|call|>", "<|end|>"])
def test_calls_are_several_when_messages_follow_each_other(between):
    """Each has its number and id, and an answer that may call once ends behind the first."""
    text = CALL + between + '<|channel|>commentary to=functions.g.h-1<|message|>{"y": "z"}<|call|>'
    answer = read(text)
    assert answer.calls == [("f", '{"x": 1}'), ("g.h-1", '{"y": "z"}')]
    assert [(call.index, call.id) for call in answer.pieces if call.name] == [(0, "call_0"), (1, "call_1")]
    single = read(text, parallel=False)
    assert (single.calls, single.text.stopped) == ([("f", '{"x": 1}')], "tool_calls")


def test_call_streams_while_it_is_written():
    """Name first, then its arguments as they come."""
    answer = read(CALL)
    assert [(call.name, call.arguments) for call in answer.pieces][:3] == [("f", "{"), ("", '"'), ("", "x")]


NASTY = [
    "<|call|>",
    "<|end|>",
    "<|start|>assistant<|channel|>final<|message|>",
    '"}<|call|>',
    "\\",
    "\n",
    "é😀",
    "</s>",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*NASTY, "a", " ", '"', "{", "}", "\\u0041"]), max_size=12).map("".join), st.booleans())
def test_markers_survive_within_a_string(value, escaped):
    """As control tokens or as ordinary ones."""
    arguments = json.dumps({"text": value}, ensure_ascii=escaped)
    pieces = cut(f"{THOUGHT}<|channel|>commentary to=functions.f<|message|>")
    inside = cut(arguments)
    after = cut("<|end|><|start|>assistant" + CALL)
    for pieces_of_text in (inside, list(arguments), [arguments]):
        answer = Answer([*pieces, *pieces_of_text, *after])
        assert answer.calls == [("f", arguments), ("f", '{"x": 1}')]
        assert (answer.content, answer.finish) == ("", "tool_calls")


def test_names_of_control_tokens_are_text_when_they_are_spelled_out():
    """An answer may tell how the format looks."""
    pieces = [
        "<|channel|>",
        "final",
        "<|message|>",
        "A message ends with ",
        "<|end|>",
        ", as ",
        "<|start|>",
        " begins one.",
    ]
    answer = Answer(pieces, plain=(4, 6))
    assert answer.content == "A message ends with <|end|>, as <|start|> begins one."
    answer = Answer(["<|channel|>", "final", "<|message|>", "x"], plain=(0, 2))
    assert answer.content == "<|channel|>final<|message|>x"


@pytest.mark.parametrize("arguments", ['{"x": 1 2}', '{"x": NaN}', '{"x": "', "{x 1}"])
def test_answer_ends_without_calls_when_one_is_broken(arguments):
    """What was sent of it stays; no client takes it for a call."""
    answer = read(CALL + "<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>" + arguments)
    assert answer.finish == "stop"
    assert [name for name, _ in answer.calls] == ["f", "f"]
    assert answer.content == ""


@pytest.mark.parametrize("arguments", ['{"x": 1', '{"x": 1,}', '{"x": 1} and more', "{x: 1}", '{"x": +1}'])
def test_call_is_put_right_where_its_meaning_is_certain(arguments):
    """As in any other format."""
    answer = read(f"{THOUGHT}<|channel|>commentary to=functions.f<|message|>{arguments}<|call|>")
    assert [json.loads(said) for _, said in answer.calls] == [{"x": 1}]
    assert (answer.content, answer.finish) == ("", "tool_calls")


@pytest.mark.parametrize(
    "text", [THOUGHT + FINAL, THOUGHT + CALL + "<|call|>", "<|start|>assistant to=functions.f" + FINAL]
)
def test_no_markup_is_shown_when_an_answer_is_cut(text):
    """Wherever it is cut."""
    pieces = cut(text)
    whole = read(text)
    for size in range(len(pieces)):
        answer = Answer(pieces[:size], reason="length")
        assert answer.finish == "length"
        assert whole.content.startswith(answer.content)
        assert whole.reasoning.startswith(answer.reasoning)
        assert len(answer.calls) <= len(whole.calls)


def test_message_is_text_when_no_calls_were_asked_for():
    """Of the channel that it names; its header is not shown."""
    assert read(THOUGHT + CALL, tools=None).said == ('{"x": 1}', "Let me see.", [], "stop")


@pytest.mark.parametrize(
    ("text", "stop", "content", "reasoning"),
    [
        (THOUGHT + FINAL, "lo", "Hel", "Let me see."),
        (THOUGHT + FINAL, "me", "Hello!", "Let me see."),
        (THOUGHT + FINAL, "!", "Hello", "Let me see."),
        (THOUGHT + FINAL, "see.Hello", "Hello!", "Let me see."),
        (THOUGHT + FINAL, "final", "Hello!", "Let me see."),
        (THOUGHT + FINAL, "o!?", "Hello!", "Let me see."),
    ],
)
def test_stop_text_ends_an_answer_within_a_message(text, stop, content, reasoning):
    """Not in thoughts or headers, and not across two messages."""
    assert read(text, stop=[stop]).said == (content, reasoning, [], "stop")


def test_stop_text_does_not_end_a_call():
    """No client sees the text of a call."""
    assert read(CALL, stop=["x"]).calls == [("f", '{"x": 1}')]


def test_reasoning_tokens_are_those_of_thoughts():
    """With the token that begins and the one that ends them."""
    pieces = ["<|channel|>", "analysis", "<|message|>", "Let", " me", "<|end|>", "<|start|>", "assistant", *cut(FINAL)]
    assert Answer(pieces).text.reasoning_tokens == 4


@pytest.mark.parametrize(
    ("opened", "text", "content", "reasoning"),
    [
        ("assistant", FINAL, "Hello!", ""),
        ("assistant", " to=user" + FINAL, "Hello!", ""),
        ("assistant<|channel|>final<|message|>", "Hello!", "Hello!", ""),
        ("assistant<|channel|>final<|message|>Well, ", "hello!", "hello!", ""),
        ("assistant<|channel|>analysis<|message|>", "Hm.<|end|><|start|>assistant" + FINAL, "Hello!", "Hm."),
        ("user<|message|>Who", " are you?", " are you?", ""),
    ],
)
def test_answer_begins_where_the_prompt_leaves_a_message_open(opened, text, content, reasoning):
    """The template may have written a header, or the beginning of a message that is to be continued."""
    answer = read(text, opened=cut(opened))
    assert (answer.content, answer.reasoning) == (content, reasoning)


def test_open_message_is_the_last_one_of_a_prompt():
    """None, where it is closed."""
    controls = dict(enumerate(CONTROL))
    ids = {name: token for token, name in controls.items()}
    prompt = [ids["<|start|>"], 50, ids["<|message|>"], 51, ids["<|end|>"]]
    assert open_message(controls, prompt) == []
    assert open_message(controls, [51]) == []
    assert open_message(controls, [*prompt, ids["<|start|>"], 60]) == [60]
    assert begun_answer(controls, [*prompt, ids["<|start|>"], 60]) == []
    begun = [ids["<|channel|>"], 61, ids["<|message|>"], 62]
    assert begun_answer(controls, [*prompt, ids["<|start|>"], 60, *begun]) == begun


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("assistant<|channel|>final", Header(role="assistant", channel="final")),
        ("<|channel|> commentary to=functions.a.b <|constrain|>json",
         Header(channel="commentary", recipient="functions.a.b")),
        ("assistant to=functions.f<|channel|>commentary json",
         Header(role="assistant", channel="commentary", recipient="functions.f")),
        ("", Header()),
        ("<|channel|>to=functions.f", Header(recipient="functions.f")),
    ],
)  # fmt: skip
def test_header_is_read_in_either_order(text, header):
    """Recipients stand with the speaker or with the channel."""
    assert read_header(text) == header


PARTS = [THOUGHT, FINAL, CALL, "<|end|>", "<|call|>", "<|start|>", "assistant", "<|channel|>commentary<|message|>"]
PARTS += [
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    " to=functions.g.h-1",
    "{",
    "}",
    '"',
    "\\",
    "a",
    " ",
    "é\n",
    "to",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)
OPTIONS = st.fixed_dictionaries(
    {"reason": st.sampled_from(["stop", "length"]), "parallel": st.booleans()},
    optional={"tools": st.none(), "stop": st.lists(st.sampled_from(["a", "lo", "é", 'x": ', "see.H"]), max_size=2)},
)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, options=OPTIONS, data=st.data())
def test_answer_does_not_depend_on_the_cut(text, options, data):
    """Nor on where it is resumed: what was told before is not told again, and nothing is missing."""
    single = cut(text)
    whole = Answer([piece for piece in SPLIT.split(text) if piece], **options)
    answer = Answer(single, **options)
    assert answer == whole
    border = data.draw(st.integers(0, len(single)))
    resumed = Answer(single, delivered=border, **options)
    resumed.tell([*answer.steps[:border], *resumed.steps])
    assert resumed == whole


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_finish_says_calls_only_when_all_of_them_load(text):
    """Whatever the model writes."""
    answer = read(text)
    if answer.finish == "tool_calls":
        assert answer.calls
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in answer.calls)
