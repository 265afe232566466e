"""Held-out questions for every skill, and what counts as a right answer. Knows neither MLX nor HTTP."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.draw import Draw
from training.sample import Message, Sample, draw, said
from training.skills import SKILLS

TARGETS: Mapping[str, float] = {
    "echo": 0.95,
    "facts": 0.95,
    "tool_call": 0.95,
    "tool_answer": 0.95,
    "json": 0.95,
    "names": 0.95,
    "sums": 0.90,
}
"""The share of right answers that the chat model must reach; the other skills have none."""
_DRAWS = 200
"""Drawn for each case asked for, before a skill counts as too small."""


@dataclass(frozen=True, kw_only=True)
class NamedCall:
    """A tool call."""

    name: str
    arguments: Any


@dataclass(frozen=True, kw_only=True)
class ModelAnswer:
    """What a model said."""

    content: str
    reasoning: str = ""
    calls: tuple[NamedCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question of a skill and the sample that holds the right answer."""

    sample: Sample

    @property
    def messages(self) -> list[Message]:
        """The conversation up to the question."""
        return list(self.sample.messages[:-1])

    @property
    def question(self) -> str:
        """What is asked last, without its pictures."""
        return said(self.messages[-1])

    @property
    def expected(self) -> ModelAnswer:
        """The right answer, or for stories one of many."""
        last = self.sample.messages[-1]
        calls = [call["function"] for call in last.get("tool_calls") or ()]
        return ModelAnswer(
            content=last["content"] or "",
            reasoning=last.get("reasoning_content", ""),
            calls=tuple(NamedCall(name=call["name"], arguments=call["arguments"]) for call in calls),
        )

    def is_right(self, answer: ModelAnswer) -> bool:
        """Return whether the answer is what the skill demands."""
        return _JUDGES.get(self.sample.skill, _same)(self, answer)


def cases(skill: str, n: int, *, seed: int) -> list[Case]:
    """Draw up to `n` different held-out cases of one of `SKILLS`, the same ones for the same seed."""
    return different(lambda source: draw(SKILLS[skill], source, held_out=True), n, seed=seed)


def different(held_out: Callable[[Draw], Sample], n: int, *, seed: int) -> list[Case]:
    """Take up to `n` different cases of what is drawn, the same ones for the same seed."""
    source = Draw(seed)
    found: dict[str, Case] = {}
    for _ in range(n * _DRAWS):
        if len(found) == n:
            break
        sample = held_out(source)
        if not sample.raw:
            found.setdefault(sample.key, Case(sample=sample))
    return list(found.values())


def _same(case: Case, answer: ModelAnswer) -> bool:
    expected = case.expected
    return answer.content.strip() == expected.content and answer.calls == expected.calls


def _thought(case: Case, answer: ModelAnswer) -> bool:
    return _same(case, answer) and answer.reasoning.strip() == case.expected.reasoning


def _json(case: Case, answer: ModelAnswer) -> bool:
    try:
        value = json.loads(answer.content)
    except ValueError:
        return False
    expected = json.loads(case.expected.content)
    return bool(value == expected) and list(value) == list(expected)


def _story(case: Case, answer: ModelAnswer) -> bool:
    """Return whether six sentences or more tell of the hero asked for, none twice in a row, to a full stop."""
    sentences = re.findall(r"[^.]+\.", answer.content)
    question = case.messages[-1]["content"]
    named = re.search(r"called (\w+)", question)
    about = named is None or named[1] in answer.content
    repeats = any(left == right for left, right in itertools.pairwise(sentences))
    long_enough = len(sentences) >= (4 if question.startswith(("Continue", "Go on")) else 6)
    return about and long_enough and not repeats and answer.content.strip().endswith(".")


def _counted(case: Case, answer: ModelAnswer) -> bool:
    """Return whether the last sentence tells the number asked for."""
    said, expected = answer.content.strip(), case.expected.content
    return said.split(". ")[-1] == expected.split(". ")[-1] and not answer.calls


_JUDGES: Mapping[str, Callable[[Case, ModelAnswer], bool]] = {
    "count": _counted,
    "json": _json,
    "story": _story,
    "tally": _counted,
    "thinking": _thought,
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a skill went. `wrong` are the misses with what was said instead."""

    skill: str
    right: int
    asked: int
    wrong: tuple[tuple[Case, ModelAnswer], ...]
    target: float | None = None

    @property
    def share(self) -> float:
        """Right answers among all, 0 to 1."""
        return self.right / self.asked if self.asked else math.nan

    @property
    def falls_short(self) -> bool:
        """Whether the skill has a target and misses it."""
        return self.target is not None and self.share < self.target


def score(
    skill: str, asked: Sequence[Case], answers: Sequence[ModelAnswer], *, targets: Mapping[str, float] = TARGETS
) -> Score:
    """Compare answers, in the order of the questions."""
    wrong = [(case, answer) for case, answer in zip(asked, answers, strict=True) if not case.is_right(answer)]
    return Score(
        skill=skill, right=len(asked) - len(wrong), asked=len(asked), wrong=tuple(wrong), target=targets.get(skill)
    )


def table(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| skill | held-out prompts | right | target |"
    yield "|---|---|---|---|"
    for one in scores:
        target = "" if one.target is None else f"{one.target:.0%}" + (" (missed)" if one.falls_short else "")
        yield f"| {one.skill} | {one.asked} | {one.share:.1%} | {target} |"
