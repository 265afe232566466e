"""What comes out of one choice, by example."""

import pytest

from worker.text.markers import Markers
from worker.text.tool_calls.calls import Call


def test_content_goes_through_at_once_when_nothing_may_match(run):
    """A token that can't be part of a marker is emitted with itself."""
    done = run(["Hel", "lo", " world"])
    assert [step.text for step in done.steps] == ["Hel", "lo", " world"]
    assert (done.last.text, done.last.finish, done.stopped) == ("", "stop", None)


def test_take_returns_none_when_nothing_is_certain(make_choice):
    """No empty pieces: they would become empty messages."""
    choice = make_choice(["<thi", "nk>"])
    assert choice.take_pieces() is None
    choice.feed_token(0)
    assert choice.take_pieces() is None
    choice.feed_token(1)
    assert choice.take_pieces() is None


def test_reasoning_is_split_off_and_border_space_dropped(run):
    """What Qwen writes around its thoughts is no part of thoughts or answer."""
    done = run(["<think>", "\n", "Hm", ".\n", "</think>", "\n\n", "Hi", " \n"])
    assert (done.whole.reasoning, done.whole.text) == ("Hm.\n", "Hi \n")


def test_reasoning_when_the_template_opened_it(run):
    """An initial state of reasoning needs no start marker, and its first line break is dropped too."""
    done = run(["\n", "Hm", "</think>", "Hi"], initial="reasoning")
    assert (done.whole.reasoning, done.whole.text) == ("Hm", "Hi")


def test_content_keeps_its_leading_space_when_there_was_no_reasoning(run):
    """Only what follows a think block is trimmed: a plain completion begins with a space."""
    assert run([" Hi"]).whole.text == " Hi"


def test_reasoning_tokens_count_markers_and_thoughts(run):
    """Tokens that enter, continue or leave reasoning are reasoning; content is not."""
    done = run(["a", "<think>", "b", "c", "</think>", "d"])
    assert done.choice.reasoning_tokens == 4


def test_half_a_marker_comes_out_when_it_was_none(run):
    """`<tool` is held back until the next character denies it, then emitted whole."""
    done = run(["a <tool", "_b", "ox>"])
    assert [step and step.text for step in done.steps] == ["a ", "<tool_b", "ox>"]


def test_half_a_marker_comes_out_when_length_ends_it(run):
    """Nothing is lost at the limit: the half marker was text after all."""
    done = run(["a", "</thi"], initial="reasoning", reason="length")
    assert (done.whole.reasoning, done.last.finish) == ("a</thi", "length")


def test_half_a_marker_comes_out_when_the_model_ends(run):
    """A final `<` is an answer's, not a marker's."""
    assert run(["1 ", "<"]).whole.text == "1 <"


@pytest.mark.parametrize(
    "pieces", [["a STOP b"], ["a S", "TOP b"], ["a S", "T", "OP", " b"], ["a ", "S", "T", "O", "P b"]]
)
def test_stop_matches_across_token_borders(run, pieces):
    """A stop string ends the answer however many tokens it took; nothing of it or behind it shows."""
    done = run(pieces, stop=["STOP"])
    assert (done.whole.text, done.whole.finish, done.stopped) == ("a ", "stop", "stop")


def test_stop_does_not_match_when_reasoning(run):
    """A stop is for what is answered: thoughts that hold it go on, and it ends the content behind them."""
    done = run(["<think>", "a\n", "\nb", "</think>", "c", "\n\n", "d"], stop=["\n\n"])
    assert (done.whole.reasoning, done.whole.text, done.stopped) == ("a\n\nb", "c", "stop")


def test_stop_does_not_match_dropped_space(run):
    """The two line breaks that Qwen puts behind its thoughts are not the stop the client meant."""
    done = run(["<think>a</think>", "\n", "\n", "b", "\n\n", "c"], stop=["\n\n"])
    assert (done.whole.text, done.stopped) == ("b", "stop")


def test_stop_does_not_match_inside_a_call(run):
    """A stop that looks like part of a call does not cut it."""
    done = run(["<tool_call>", "a b", "</tool_call>", "c ", "d"], stop=[" "])
    assert (done.names, done.whole.text, done.stopped) == (["a", "b"], "c", "stop")


def test_stop_matches_text_of_a_block_that_is_no_call(run):
    """Text is text, also when it becomes so late."""
    done = run(["<tool_call>", "1 STOP 2", "</tool_call>", "c"], stop=["STOP"])
    assert (done.whole.text, done.stopped) == ("<tool_call>1 ", "stop")


def test_the_shorter_stop_wins_when_it_completes_first(run):
    """Of overlapping stops the first to complete counts, whatever the cut."""
    for pieces in (["xabc"], ["xa", "bc"], ["x", "a", "b", "c"]):
        assert run(pieces, stop=["abc", "ab"]).whole.text == "x"
    assert run(["xabcd"], stop=["abcd", "bc"]).whole.text == "xa"


def test_the_longer_stop_wins_when_both_complete_together(run):
    """Otherwise the beginning of the longer one would show."""
    assert run(["xabc"], stop=["bc", "abc"]).whole.text == "x"


def test_stop_wins_when_it_is_a_marker(run):
    """Who asks to stop at the tool marker gets no tool call."""
    done = run(["a", "<tool_call>", "b", "</tool_call>"], stop=["<tool_call>"])
    assert (done.whole.text, done.names, done.stopped) == ("a", [], "stop")


def test_repeated_first_characters_are_held_no_longer_than_they_may_match(run):
    """`aab` in `aaab`: the first a is certain as soon as the third arrives."""
    done = run(["a", "a", "a", "b"], stop=["aab"])
    assert [step and step.text for step in done.steps] == [None, None, "a", None]
    assert done.stopped == "stop"


def test_empty_stops_are_ignored(run):
    """An empty string would match everywhere."""
    assert run(["ab"], stop=[""]).whole.text == "ab"


def test_nothing_follows_when_stopped(run):
    """Tokens of the step that was already under way change nothing."""
    done = run(["aX", "b", "<think>c"], stop=["X"], reason="length")
    assert (done.whole.text, done.whole.reasoning, done.whole.finish) == ("a", "", "stop")
    assert done.choice.reasoning_tokens == 0


def test_characters_are_never_split(run):
    """Half a character is held by the detokenizer; at the end it is a replacement character, not lost."""
    euro = "€".encode()
    assert run([b"1 ", euro[:1], euro[1:], b"!"]).whole.text == "1 €!"
    assert run([b"1 ", euro[:2]], reason="length").whole.text == "1 \ufffd"


def test_stop_matches_when_only_the_end_reveals_it(run):
    """A detokenizer may hold back the character that completes a stop until it is finalised."""
    done = run([b"ab", "€".encode()[:2]], stop=["b\ufffd"], reason="length")
    assert (done.whole.text, done.last.finish, done.choice.stopped) == ("a", "stop", "stop")


def test_two_calls_get_consecutive_indices(run):
    """Each block is a call as soon as it closes; the line break between them is no content."""
    done = run(["I call", "<tool_call>", "\na\n", "</tool_call>", "\n", "<tool_call>", "b", "</tool_call>"])
    assert [(call.index, call.id, call.name) for call in done.whole.calls] == [(0, "call_0", "a"), (1, "call_1", "b")]
    assert (done.whole.text, done.whole.finish, done.stopped) == ("I call", "tool_calls", None)
    assert done.steps[3].calls[0].name == "a"


def test_one_call_ends_the_answer_when_calls_are_not_parallel(run):
    """The second call is neither generated nor shown."""
    done = run(["<tool_call>a b", "</tool_call>", "<tool_call>", "c", "</tool_call>"], parallel_calls=False)
    assert (done.names, done.stopped, done.last.finish) == (["a"], "tool_calls", "tool_calls")


def test_calls_during_reasoning_end_it(run):
    """As in mlx-lm, what follows a call is content."""
    done = run(["a<tool_call>b</tool_call>", "c"], initial="reasoning")
    assert (done.whole.reasoning, done.names, done.whole.text) == ("a", ["b"], "c")


def test_a_malformed_call_is_content_with_its_markers(run):
    """Nothing that the model wrote is lost, and nothing claims to be a call."""
    done = run(["a ", "<tool_call>", "{1", "}", "</tool", "_call>", "\n", "b"])
    assert (done.whole.text, done.whole.calls, done.whole.finish) == ("a <tool_call>{1}</tool_call>\nb", [], "stop")


def test_thoughts_that_mention_the_marker_stay_thoughts(run):
    """A block that is no call is read again where it began, so the call behind it is found."""
    done = run(["I use <tool_call>.", "</think>\n", "<tool_call>", "a", "</tool_call>"], initial="reasoning")
    assert (done.whole.reasoning, done.whole.text, done.names) == ("I use <tool_call>.", "", ["a"])


def test_markers_are_text_when_too_many_blocks_were_malformed(run):
    """Reading again is bounded: past the limit, blocks stream as text."""
    bad = "<tool_call>1</tool_call>"
    done = run([bad] * 20 + ["<tool_call>", "a"])
    assert done.whole.text == bad * 20 + "<tool_call>a"
    assert done.steps[-2].text == "<tool_call>"


def test_an_unclosed_call_counts_when_the_model_ends(run):
    """The end of the sequence closes a block; half an end marker is no part of it."""
    done = run(["<tool_call>", "a", "</tool"])
    assert (done.names, done.whole.text, done.last.finish) == (["a"], "", "tool_calls")


def test_an_unclosed_call_is_content_when_length_cut_it(run):
    """A parser may take a truncated call for one with fewer arguments: the client must not run that."""
    done = run(["<tool_call>", "a", "</tool"], reason="length")
    assert (done.names, done.whole.text, done.last.finish) == ([], "<tool_call>a</tool", "length")


def test_an_unclosed_malformed_call_is_content_when_the_model_ends(run):
    """Every nested start is tried, then the text stands."""
    done = run(["<tool_call>1<tool_call>2", "<tool_call>a"])
    assert (done.whole.text, done.names, done.last.finish) == ("<tool_call>1<tool_call>2", ["a"], "tool_calls")


OPEN = Markers(transitions={"normal": [("[CALLS]", "tool")], "tool": []}, tool_start="[CALLS]", tool_end="")


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_block_without_end_marker_runs_to_the_end(run, reason):
    """Mistral closes a block with the sequence; complete calls count even at the limit."""
    done = run(["x", "[CAL", "LS]", "a", " b"], markers=OPEN, reason=reason)
    assert (done.whole.text, done.names) == ("x", ["a", "b"])
    assert done.last.finish == ("tool_calls" if reason == "stop" else "length")


def test_tool_markers_are_text_when_no_calls_were_asked_for(run):
    """Without tools there is no call to make, and nothing is held until a block closes."""
    done = run(["<tool_call>", "a", "</tool_call>"], parse=None)
    assert [step.text for step in done.steps] == ["<tool_call>", "a", "</tool_call>"]


MUSE = Markers(
    transitions={
        "header": [("to=self|", "reasoning"), ("to=user|", "normal"), ("<calls>", "tool")],
        "reasoning": [("<eom>", "header"), ("<calls>", "tool")],
        "normal": [("<eom>", "header"), ("<eot>", "normal")],
        "tool": [("</calls>", "normal")],
    },
    initial="header",
)


def test_headers_are_hidden_and_structural_markers_dropped(run):
    """Text in states of a response format's own is never shown, and holds no stop."""
    done = run(
        ["to=self|Hm", "<eom>", "START x", "to=us", "er|", "Hi", "<eot>"], markers=MUSE, initial="header", stop=["x"]
    )
    assert (done.whole.reasoning, done.whole.text, done.stopped) == ("Hm", "Hi", None)


def test_a_malformed_call_behind_a_header_is_content(run):
    """A hidden state would swallow it."""
    done = run(["to=f|", "<calls>", "1", "</calls>", "2"], markers=MUSE, initial="header")
    assert done.whole.text == "<calls>1</calls>2"
    assert run(["to=f|", "<calls>", "1"], markers=MUSE, initial="header", parse=None).whole.text == "1"


def test_the_model_id_of_a_call_is_kept(run):
    """Ids that a model gives (Kimi's `functions.f:0`) are the ones it expects back."""
    done = run(["<tool_call>x</tool_call>"], parse=lambda block: [Call(name=block, arguments="{}", id="functions.x:0")])
    assert done.whole.calls[0].id == "functions.x:0"
