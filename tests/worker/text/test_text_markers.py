"""What is read from a tokenizer, and where generation starts."""

import importlib
from types import SimpleNamespace

import pytest

from worker.text.markers import Markers, initial_state, markers_of


def tokenizer(**changes):
    """The attributes of mlx-lm's wrapper, of a model with no format at all."""
    plain = {
        "has_thinking": False,
        "think_start": None,
        "think_end": None,
        "has_tool_calling": False,
        "tool_call_start": None,
        "tool_call_end": None,
        "structural_markers": (),
        "response_transitions": {},
        "response_initial_state": None,
    }
    return SimpleNamespace(**(plain | changes))


THINKING = {"has_thinking": True, "think_start": "<think>", "think_end": "</think>"}
CALLING = {"has_tool_calling": True, "tool_call_start": "<call>", "tool_call_end": "</call>"}
MUSE = {
    "response_initial_state": "header",
    "response_transitions": {
        "header": [("to=self|", "reasoning"), ("to=user|", "normal"), ("<call>", "tool")],
        "reasoning": [("<eom>", "header")],
        "normal": [("<eom>", "header")],
    },
}


def test_markers_are_empty_when_the_model_has_no_format():
    """Plain text needs no special case."""
    assert markers_of(tokenizer()) == Markers()


def test_markers_lead_through_thinking_and_calls():
    """Both kinds of block, and calls out of thoughts."""
    markers = markers_of(tokenizer(**THINKING, **CALLING))
    assert markers.transitions == {
        "normal": [("<think>", "reasoning"), ("<call>", "tool")],
        "reasoning": [("</think>", "normal"), ("<call>", "tool")],
        "tool": [("</call>", "normal")],
    }
    assert (markers.initial, markers.think_start, markers.tool_end) == ("normal", "<think>", "</call>")


def test_markers_leave_a_block_open_when_it_has_no_end():
    """An empty end marker would match everywhere."""
    markers = markers_of(tokenizer(has_tool_calling=True, tool_call_start="[CALLS]", tool_call_end=""))
    assert markers.transitions == {"normal": [("[CALLS]", "tool")], "tool": []}
    assert markers.tool_end == ""


@pytest.mark.mlx
@pytest.mark.parametrize(
    "changes",
    [
        THINKING,
        CALLING,
        {**CALLING, "tool_call_end": ""},
        {**THINKING, **CALLING},
        {**THINKING, **CALLING, "structural_markers": ("<open>", "<close>")},
        {**CALLING, **MUSE},
        {**THINKING, **CALLING, **MUSE},
        MUSE,
    ],
)
def test_markers_are_those_of_mlx_lm(monkeypatch, changes):
    """The table is the one that mlx-lm builds its automaton from."""
    theirs = importlib.import_module("mlx_lm.generate")
    seen = {}
    monkeypatch.setattr(theirs, "TextStateMachine", lambda transitions: seen.update(transitions or {}))
    theirs.make_text_state_machine(tokenizer(**changes))
    assert markers_of(tokenizer(**changes)).transitions == seen


START, END, EOS = 1, 2, 9


class Prompted:
    """Single-token markers 1 and 2; 9 ends a turn."""

    think_start_tokens = (START,)
    eos_token_ids = frozenset({EOS})

    def rfind_think_start(self, tokens, start=None):
        return self._rfind(tokens, START, start or 0)

    def rfind_think_end(self, tokens, start=None):
        return self._rfind(tokens, END, start or 0)

    def _rfind(self, tokens, token, start):
        return max((at for at in range(start, len(tokens)) if tokens[at] == token), default=-1)


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ([5, 6, 7], "normal"),
        ([5, START, 6], "reasoning"),
        ([5, START, 6, END, 7], "normal"),
        ([START, 6, END, 7, EOS, 8, START], "reasoning"),
        ([START, 6, EOS, 8], "normal"),
        ([END, START], "reasoning"),
        ([], "normal"),
    ],
    ids=["no marker", "open", "closed", "a closed one before", "a user's mention", "end before start", "empty"],
)
def test_generation_starts_reasoning_when_the_template_left_a_block_open(prompt, state):
    """An open block counts only if no turn ended behind it."""
    assert initial_state(Markers(), Prompted(), prompt) == state


def test_generation_starts_where_the_response_format_says():
    """A format with headers starts in one, whatever the prompt."""
    assert initial_state(Markers(initial="header"), Prompted(), [START]) == "header"
    no_thinking = SimpleNamespace(think_start_tokens=None, eos_token_ids=frozenset())
    assert initial_state(Markers(), no_thinking, [START]) == "normal"
