"""The shipped chat model is right on questions that it was never trained on."""

from pathlib import Path
from typing import Any

import pytest

from training.answering import LocalModel
from training.evaluation import TARGETS, Case, cases, score
from training.sample import Sample, assistant, user
from training.skills import SKILLS

FOLDER = Path(__file__).parents[2] / "demo" / "chat"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def said(model: LocalModel, *messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> Any:
    (answer,) = model.answer_cases(
        [Case(sample=Sample(skill="talk", key="", messages=(*messages, assistant("")), tools=tools))]
    )
    return answer


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel(FOLDER)


@pytest.mark.mlx
@pytest.mark.parametrize("skill", SKILLS)
def test_held_out_questions(model: LocalModel, skill: str) -> None:
    """A dozen questions that were never trained on; nearly all right where the skill has a target, most elsewhere."""
    asked = cases(skill, 12, seed=77)
    result = score(skill, asked, model.answer_cases(asked))
    assert result.right >= (11 if TARGETS.get(skill, 0) >= 0.95 else 10 if skill in TARGETS else 6), result.wrong


@pytest.mark.mlx
def test_tool_loop(model: LocalModel) -> None:
    """Question, call, result, sentence: each step the one that the step before asks for."""
    question = user("What is the weather in Oslo?")
    called = said(model, question, tools=(WEATHER,))
    assert [(call.name, call.arguments) for call in called.calls] == [("get_weather", {"city": "Oslo"})]
    calls = [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
    history = (
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "12 degrees and rain"},
    )
    told = said(model, question, *history, tools=(WEATHER,))
    assert told.content == "The weather in Oslo: 12 degrees and rain."


@pytest.mark.mlx
def test_thinking_only_where_it_is_asked_for(model: LocalModel) -> None:
    """The same sum with a thought and without."""
    assert said(model, user("What is 21 + 34?")).reasoning == ""
    thought = said(model, user("Think step by step: What is 21 + 34?"))
    assert thought.reasoning
    assert thought.content == "21 + 34 = 55"
