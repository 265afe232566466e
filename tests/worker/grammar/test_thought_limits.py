"""Thoughts that are bounded: a model that would think for ever answers all the same."""

import json
from typing import Any

import pytest

from protocol.messages import Grammar
from tests.support.engine_runs import Outcome, chat, job, run
from worker.engines.chat.engine import ChatEngine
from worker.grammar.thoughts import ThoughtLimit
from worker.text.markers import NORMAL, REASONING, TOOL, Markers

pytestmark = pytest.mark.mlx

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"], "additionalProperties": False}
JSON = Grammar("json_schema", json.dumps(SCHEMA), "response_format.json_schema.schema")
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]


def marker(engine: ChatEngine, name: str) -> int:
    return int(engine.loaded.tokenizer.get_vocab()[name])


def thinking(engine: ChatEngine) -> dict[str, Any]:
    """Sampling of a model that begins to think and never ends it by itself."""
    ends = {marker(engine, "</think>"): -100.0}
    return {"temperature": 1.0, "ignore_eos": False, "logit_bias": {**ends, marker(engine, "<think>"): 20.0}}


def only(engine: ChatEngine, **fields: Any) -> Outcome:
    prompt = chat("hello", tools=fields.pop("tools", None), enable_thinking=True)
    return run(engine, [job(1, prompt, **fields)])[1]


@pytest.mark.parametrize("seed", range(4))
def test_answer_fits_its_schema_when_the_model_would_think_for_ever(engine: ChatEngine, seed: int) -> None:
    """Half of the tokens are for the answer; the thought is closed by the model's own marker."""
    outcome = only(engine, max_tokens=80, grammar=JSON, sampling={**thinking(engine), "seed": seed})
    assert json.loads(outcome.text[0])["a"] in ("b", "c")
    assert outcome.finish == {0: "stop"}
    assert outcome.reasoning[0]
    # The marker that opens the thought is no part of it, the one that closes it is counted with it.
    assert outcome.tokens[0].index(marker(engine, "</think>")) == 41


@pytest.mark.parametrize(("budget", "thought"), [(0, 0), (1, 1), (10, 10), (1000, 60)])
def test_budget_is_the_requests_when_it_names_one(engine: ChatEngine, budget: int, thought: int) -> None:
    """As many tokens as it says, and never so many that there is no room for what is demanded."""
    outcome = only(engine, max_tokens=80, grammar=JSON, thinking_budget=budget, sampling=thinking(engine))
    assert outcome.tokens[0].index(marker(engine, "</think>")) == thought + 1
    assert json.loads(outcome.text[0])["a"] in ("b", "c")


def test_call_is_made_when_the_model_would_think_for_ever(engine: ChatEngine) -> None:
    """A demanded call comes, whole."""
    outcome = only(
        engine, max_tokens=160, tools=TOOLS, tool_choice="required", tool_names=["look"], sampling=thinking(engine)
    )
    [call] = [call for delta in outcome.deltas for call in delta.calls if call.name]
    assert call.name == "look"
    assert outcome.finish == {0: "tool_calls"}


@pytest.mark.parametrize("budget", [0, 3, 17])
def test_free_answer_stops_thinking_when_its_budget_is_spent(engine: ChatEngine, budget: int) -> None:
    """Without any grammar, too: behind the budget comes the marker."""
    sampling = {**thinking(engine), "ignore_eos": True}
    outcome = only(engine, max_tokens=60, thinking_budget=budget, sampling=sampling)
    tokens = outcome.tokens[0]
    assert (tokens.index(marker(engine, "<think>")), tokens.index(marker(engine, "</think>"))) == (0, budget + 1)
    assert len(tokens) == 60
    assert bool(outcome.reasoning[0]) == (budget > 0)


def test_free_answer_thinks_on_when_no_budget_is_given(engine: ChatEngine) -> None:
    """Nothing closes a thought where nothing was asked for and nothing is demanded."""
    outcome = only(engine, max_tokens=60, sampling={**thinking(engine), "ignore_eos": True})
    assert marker(engine, "</think>") not in outcome.tokens[0]


def test_budget_is_spent_once_when_a_model_thinks_again(engine: ChatEngine) -> None:
    """All thoughts of an answer share it: one that begins behind its end is closed at once."""
    sampling = {**thinking(engine), "ignore_eos": True}
    sampling["logit_bias"][marker(engine, "<think>")] = 100.0
    tokens = only(engine, max_tokens=30, thinking_budget=4, sampling=sampling).tokens[0]
    start, end = marker(engine, "<think>"), marker(engine, "</think>")
    assert tokens[:7] == [start] * 5 + [end, start]
    assert tokens[7] == end


def test_rows_are_limited_on_their_own_when_they_share_a_batch(engine: ChatEngine) -> None:
    """Several choices and several jobs, with budgets of their own and without."""
    sampling = {**thinking(engine), "ignore_eos": True}
    prompt = chat("hello", enable_thinking=True)
    budgets = {1: 2, 2: None, 3: 9, 4: 0}
    jobs = [
        job(number, prompt, max_tokens=24, n=2, thinking_budget=budget, sampling={**sampling, "seed": number})
        for number, budget in budgets.items()
    ]
    for number, outcome in run(engine, jobs).items():
        for tokens in outcome.tokens.values():
            found = tokens.index(marker(engine, "</think>")) if marker(engine, "</think>") in tokens else None
            budget = budgets[number]
            assert found == (None if budget is None else budget + 1)


@pytest.mark.parametrize("delivered", [1, 5, 12, 14])
def test_resumed_answer_is_the_same_when_its_thought_is_limited(engine: ChatEngine, delivered: int) -> None:
    """What was thought before counts, with a grammar and without."""
    for more in ({"grammar": JSON}, {}):
        fields = {"max_tokens": 40, "thinking_budget": 11, "sampling": {**thinking(engine), "seed": 3}, **more}
        whole = only(engine, **fields).tokens[0]
        assert whole[:delivered] + only(engine, **fields, delivered=[whole[:delivered]]).tokens[0] == whole


MARKERS = Markers(
    transitions={
        NORMAL: [("<think>", REASONING), ("<call>", TOOL)],
        REASONING: [("</think>", NORMAL), ("<call>", TOOL)],
        TOOL: [("</call>", NORMAL)],
    }
)
PIECES = ["<think>", "</think>", "<call>", "</call>", "<thi", "nk>", "</thi", "a", "b<think>", "é"]


def limit(budget: int, state: str = NORMAL, closing: tuple[int, ...] = (1,)) -> ThoughtLimit:
    raws = [piece.encode() for piece in PIECES]
    return ThoughtLimit(budget, markers=MARKERS, state=state, closing=closing, raws=raws)


@pytest.mark.parametrize(
    ("tokens", "forced"),
    [
        ([], None),
        ([0], None),
        ([0, 7, 7], 1),
        ([0, 7, 7, 1], None),
        ([0, 7, 7, 1, 7, 0], 1),
        ([4, 5, 7, 7], 1),
        ([8, 7, 7], 1),
        ([2, 0, 7, 7, 7], None),
        ([2, 0, 7, 3, 0, 7, 7], 1),
        ([0, 7, 2, 7, 7, 7], None),
        ([0, 7, 6, 5, 7], None),
    ],
)
def test_thought_is_closed_when_its_tokens_are_spent(tokens: list[int], forced: int | None) -> None:
    """Markers count as the text knows them: in pieces, and not where they stand inside a call."""
    thoughts = limit(2)
    for token in tokens:
        thoughts.take_token(token)
    assert thoughts.forced == forced


def test_every_token_is_forced_when_a_marker_has_several() -> None:
    """One after the other, until the marker is there; then anything may come."""
    thoughts = limit(1, REASONING, closing=(6, 5))
    thoughts.take_token(7)
    assert thoughts.forced == 6
    thoughts.take_token(6)
    assert thoughts.forced == 5
    thoughts.take_token(5)
    assert thoughts.forced is None


def test_nothing_is_forced_when_the_marker_never_shows() -> None:
    """Tokens that should close a thought and do not are not repeated for ever."""
    thoughts = limit(0, REASONING, closing=(7,))
    thoughts.take_token(7)
    assert thoughts.forced is None
