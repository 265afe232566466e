"""Samples: the same for the same seed, and nothing that is held out is ever trained on."""

import itertools
import json

import pytest

from training.draw import Draw
from training.evaluation import ModelAnswer, NamedCall, cases, score, table
from training.mixture import LONG, SHORT, stream
from training.sample import draw
from training.skills import SKILLS
from training.text import Renderer


def rendered(seed: int, n: int) -> list[str]:
    renderer = Renderer()
    return [renderer.text(sample) for mix in (SHORT, LONG) for sample in itertools.islice(stream(Draw(seed), mix), n)]


def test_samples_when_the_seed_is_the_same() -> None:
    """A seed decides every word of the training text."""
    assert rendered(5, 300) == rendered(5, 300)


def test_samples_when_the_seed_differs() -> None:
    """Another seed, other samples: hardly any text comes twice."""
    assert len(set(rendered(5, 300)) & set(rendered(6, 300))) < 60


def test_mixture_names_every_skill() -> None:
    """No skill is measured that is not trained."""
    assert {*SHORT, *LONG} == {*SKILLS}


@pytest.mark.parametrize("skill", SKILLS)
def test_split_when_drawn_from_both_sides(skill: str) -> None:
    """No held-out case has a training sample's key, and both sides have many cases."""
    source = Draw(3)
    trained = {draw(SKILLS[skill], source, held_out=False).key for _ in range(1000)}
    held_out = {case.sample.key for case in cases(skill, 100, seed=4)}
    assert len(trained) > 100
    assert len(held_out) >= 100
    assert not trained & held_out


@pytest.mark.parametrize("skill", ["sums", "facts", "echo", "tool_call"])
def test_training_stream_never_asks_what_is_held_out(skill: str) -> None:
    """Also not as an earlier turn of another skill's conversation."""
    answers = {}
    for case in cases(skill, 100, seed=7):
        question = case.messages[-1]["content"]
        answers[question] = json.dumps(case.sample.messages[-1].get("tool_calls") or case.expected.content)
    asked = 0
    for mix in (SHORT, LONG):
        for sample in itertools.islice(stream(Draw(8), mix), 3000):
            for turn, reply in itertools.pairwise(sample.messages):
                if turn["role"] == "user":
                    asked += 1
                    told = json.dumps(reply.get("tool_calls") or reply["content"])
                    assert answers.get(turn["content"]) != told
    assert asked > 6000


def test_sums_hold_out_both_orders() -> None:
    """Whoever has trained on 38 + 47 has seen 47 + 38."""
    source = Draw(1)
    for _ in range(500):
        sample = SKILLS["sums"](source)
        a, b = sorted(int(part) for part in sample.key.split("+"))
        assert sample.messages[-1]["content"].endswith(f"= {a + b}")
        assert sample.key == f"{a}+{b}"


def test_expected_answers_count_as_right() -> None:
    """The judge of every skill accepts the answer that its sample gives."""
    for skill in SKILLS:
        asked = cases(skill, 60, seed=2)
        assert score(skill, asked, [case.expected for case in asked]).right == len(asked), skill


def test_other_answers_count_as_wrong() -> None:
    """Another case's answer is wrong, whatever the skill; so are a call that was not asked for and silence."""
    for skill in SKILLS:
        asked = [
            case for case in cases(skill, 60, seed=2) if skill != "story" or "called" in case.messages[-1]["content"]
        ]
        for left, right in itertools.pairwise(asked):
            if left.expected != right.expected:
                assert not left.is_right(right.expected), skill
        assert not asked[0].is_right(ModelAnswer(content=""))
        if skill not in ("json", "story"):
            stray = NamedCall(name="delete_file", arguments={})
            assert not asked[0].is_right(ModelAnswer(content=asked[0].expected.content, calls=(stray,))), skill


def test_table_when_a_target_is_missed() -> None:
    """The line of a skill below its target says so."""
    asked = cases("echo", 10, seed=2)
    missed = score("echo", asked, [ModelAnswer(content="no")] * 10)
    assert missed.falls_short
    assert list(table([missed]))[-1] == "| echo | 10 | 0.0% | 95% (missed) |"
