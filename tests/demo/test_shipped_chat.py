"""The shipped chat model: small enough, as its record says, and right on questions that it was never trained on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from demo.answering import InProcess
from demo.course import FULL, learn_tokenizer
from demo.evaluation import TARGETS, Case, cases, score
from demo.sample import Sample, assistant, user
from demo.skills import SKILLS
from demo.text import TEMPLATE

FOLDER = Path(__file__).parents[2] / "demo" / "chat"
LARGEST_BYTES = 12_000_000
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def said(model: InProcess, *messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> Any:
    (answer,) = model.answers(
        [Case(sample=Sample(skill="talk", key="", messages=(*messages, assistant("")), tools=tools))]
    )
    return answer


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "training.json").read_text())
    return content


@pytest.fixture(scope="module")
def model() -> InProcess:
    return InProcess(FOLDER)


def test_weights_are_small_and_half_precision() -> None:
    """The repository carries them: at most 12 MB, two bytes a number."""
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size <= LARGEST_BYTES
    assert {value.dtype for value in mx.load(str(weights)).values()} == {mx.float16}


def test_record_is_of_these_weights(record: dict[str, Any]) -> None:
    """Weights, seed, steps and loss curve belong together."""
    assert record["weights_sha256"] == hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert record["plan"]["seed"] == FULL.plan.seed
    steps = [step for step, _ in record["loss"]]
    assert steps == sorted(steps)
    assert steps[-1] == record["steps_done"] == record["plan"]["steps"]
    assert record["loss"][-1][1] < 0.1 * record["loss"][0][1]
    assert {"mlx", "mlx-lm", "numpy", "tokenizers"} <= set(record["versions"])


def test_tokenizer_and_template_are_the_script_s() -> None:
    """Whoever trains again gets the very files that are shipped."""
    assert json.loads((FOLDER / "tokenizer.json").read_text()) == json.loads(learn_tokenizer(FULL).to_str())
    assert (FOLDER / "chat_template.jinja").read_text() == TEMPLATE.read_text()


@pytest.mark.mlx
@pytest.mark.parametrize("skill", SKILLS)
def test_held_out_questions(model: InProcess, skill: str) -> None:
    """A dozen questions that were never trained on; nearly all right where the skill has a target, most elsewhere."""
    asked = cases(skill, 12, seed=77)
    result = score(skill, asked, model.answers(asked))
    assert result.right >= (11 if TARGETS.get(skill, 0) >= 0.95 else 10 if skill in TARGETS else 6), result.wrong


@pytest.mark.mlx
def test_tool_loop(model: InProcess) -> None:
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
def test_thinking_only_where_it_is_asked_for(model: InProcess) -> None:
    """The same sum with a thought and without."""
    assert said(model, user("What is 21 + 34?")).reasoning == ""
    thought = said(model, user("Think step by step: What is 21 + 34?"))
    assert thought.reasoning
    assert thought.content == "21 + 34 = 55"
