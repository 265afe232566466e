"""What must hold for every text and every way to cut it into tokens."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.text.markers import Markers
from worker.text.tool_calls.calls import Call

FRAGMENTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_call>ab</tool_call>", "<tool_call>b\n a"]
FRAGMENTS += ["a", "b", "ab", "abc", " ", "\n", "<", "</t", "é", "€", "😀", "1"]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)
STOPS = st.lists(
    st.sampled_from(["ab", "abc", "bca", "b\n", "\n\n", "€é", "</think>", "aab", "k>", "1<", "<t"]), max_size=3
)
INITIAL = st.sampled_from(["normal", "reasoning"])
REASONS = st.sampled_from(["stop", "length"])
OPTIONS = st.fixed_dictionaries(
    {"stop": STOPS, "initial": INITIAL, "parallel_calls": st.booleans()}, optional={"parse": st.none()}
)


@st.composite
def cuts(draw, size):
    """Borders of pieces of a text of `size` units."""
    inner = draw(st.lists(st.integers(0, size), max_size=size))
    return sorted({0, size, *inner})


def cut(text, borders):
    return [text[start:end] for start, end in pairwise(borders)]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=TEXTS, options=OPTIONS, reason=REASONS)
def test_channels_do_not_depend_on_the_cut(run, data, text, options, reason):
    """Any pieces of a text, of characters or of bytes, give what the whole text gives."""
    whole = run([text], reason=reason, **options)
    raw = text.encode()
    for pieces in (cut(text, data.draw(cuts(len(text)))), cut(raw, data.draw(cuts(len(raw)))), list(text)):
        split = run(pieces, reason=reason, **options)
        assert split.whole == whole.whole
        assert split.choice.stopped == whole.choice.stopped


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=TEXTS, options=OPTIONS, reason=REASONS)
def test_a_replay_gives_exactly_the_missing_text(run, merged, make_choice, data, text, options, reason):
    """Feeding the delivered tokens and dropping the pieces leaves what the client does not have yet."""
    pieces = list(text)
    first = run(pieces, reason=reason, **options)
    delivered = data.draw(st.integers(0, len(pieces)))
    again = make_choice(pieces, **options)
    for token in range(delivered):
        again.feed_token(token)
    again.take_pieces()
    rest = []
    for token in range(delivered, len(pieces)):
        again.feed_token(token)
        rest.append(again.take_pieces())
    assert merged([*first.steps[:delivered], *rest, again.finish_text(reason)]) == first.whole


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab<th ", max_size=30), stop=STOPS)
def test_only_what_may_still_match_is_held_back(make_choice, text, stop):
    """What is missing after each character is the beginning of a stop or marker, or nothing."""
    markers = Markers(transitions={"normal": [("<think>", "reasoning")], "reasoning": []})
    choice = make_choice(list(text), markers=markers, stop=stop)
    shown = ""
    for token in range(len(text)):
        choice.feed_token(token)
        piece = choice.take_pieces()
        shown += piece.text if piece else ""
        if choice.stopped:
            break
        held = text[len(shown) : token + 1]
        assert text.startswith(shown)
        assert not held or any(end.startswith(held) for end in [*stop, "<think>"])


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, stop=STOPS)
def test_shown_text_holds_no_stop_and_ends_before_the_first(run, text, stop):
    """In plain text the answer is what `str.find` says."""
    done = run(list(text), markers=Markers(), stop=stop)
    ends = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    assert done.whole.text == (text[: min(ends)[1]] if ends else text)
    assert done.stopped == ("stop" if ends else None)


@pytest.mark.mlx
@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.sampled_from([one for one in FRAGMENTS if one.strip()]), max_size=25).map("".join),
    initial=INITIAL,
)
def test_channels_agree_with_mlx_lm(run, qwen, text, initial):
    """Where every block is a call, markers mean what mlx-lm's automaton takes them for."""
    from mlx_lm.generate import TextStateMachine

    # Closed, because an open block's end differs: mlx-lm drops or keeps more than half an end marker there.
    text += "</tool_call>."
    machine = TextStateMachine(qwen.transitions)
    state, segments = TextStateMachine.split(machine.make_state(initial), text)
    state, held, name = TextStateMachine.flush(state)
    segments.append((name, held))
    done = run(list(text), initial=initial, parse=lambda block: [Call(name=block or "-", arguments="{}")])
    for channel, shown in (("normal", done.whole.text), ("reasoning", done.whole.reasoning)):
        assert shown == "".join(part for where, part in segments if where == channel)
    blocks = "".join(part for where, part in segments if where == "tool")
    assert "".join(done.names).replace("-", "") == blocks
