"""gpt-oss in a pool, as OpenAI's client meets it: its real tokenizer, random weights."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field
from stress.key_traces import CLIENT_KEY
from stress.running_pool import RunningPool

from tests.support.harmony_template import HARMONY_TEMPLATE
from tests.support.real_tokenizers import fetch_tokenizer, make_tiny_model

pytestmark = pytest.mark.mlx

END, RETURN = 200007, 200002


class Trip(BaseModel):
    """Somewhere."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=9)


TOOL: dict[str, Any] = openai.pydantic_function_tool(Trip, name="plan_trip")
ASKED: dict[str, Any] = {
    "model": "gpt-oss",
    "messages": [{"role": "user", "content": "Where to?"}],
    "temperature": 1.0,
    "max_tokens": 400,
    # Left to chance, random weights would think for ever.
    "logit_bias": {str(END): 11, str(RETURN): 14},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Talks to a pool of its own; never retries."""
    folder = tmp_path_factory.mktemp("gpt-oss") / "model"
    make_tiny_model(fetch_tokenizer("gpt-oss"), folder, template=HARMONY_TEMPLATE)
    pool = RunningPool(("--model-path", str(folder), "--served-name", "gpt-oss"))
    try:
        pool.wait_healthy()
        with OpenAI(base_url=pool.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
            yield client
    finally:
        pool.stop()
        pool.remove()


def test_answer_with_calls_can_be_sent_back(client: OpenAI) -> None:
    """Demanded calls, their results, the next answer: in OpenAI's own forms."""
    messages: list[Any] = list(ASKED["messages"])
    prompt_tokens = 0
    for seed in range(3):
        answer = client.chat.completions.create(
            **{**ASKED, "messages": messages}, seed=seed, tools=[TOOL], tool_choice="required"
        )
        [choice] = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls
        assert answer.usage
        assert answer.usage.prompt_tokens > prompt_tokens
        prompt_tokens = answer.usage.prompt_tokens
        messages.append(choice.message.model_dump())
        for call in choice.message.tool_calls:
            assert call.type == "function"
            Trip.model_validate_json(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "planned"})
    final = client.chat.completions.create(**{**ASKED, "messages": messages}, tools=[TOOL], tool_choice="none", seed=1)
    assert final.choices[0].finish_reason in ("stop", "length")


def test_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    """Reasoning, content, calls: piece by piece the same."""
    for options in ({"tools": [TOOL], "tool_choice": "required"}, {"response_format": Trip}, {"tools": [TOOL]}):
        for seed in range(3):
            asked = {**ASKED, **options, "seed": seed}
            whole = client.chat.completions.parse(**asked).choices[0]
            with client.chat.completions.stream(**asked) as stream:
                streamed = stream.get_final_completion().choices[0]
            for name in ("content", "reasoning_content"):
                assert (getattr(streamed.message, name, None) or "") == (getattr(whole.message, name, None) or "")
            assert _calls(streamed) == _calls(whole)
            assert streamed.finish_reason == whole.finish_reason
            assert "<|" not in (whole.message.content or "")


def _calls(choice: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]


def test_parsed_answer_is_the_model_that_was_asked_for(client: OpenAI) -> None:
    """Whatever was thought before."""
    answers = [client.chat.completions.parse(**ASKED, response_format=Trip, seed=seed) for seed in range(4)]
    assert all(isinstance(answer.choices[0].message.parsed, Trip) for answer in answers)
    assert any(getattr(answer.choices[0].message, "reasoning_content", None) for answer in answers)


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh"])
def test_effort_is_taken_whatever_it_is_called(client: OpenAI, effort: Any) -> None:
    """The template gets one of its three."""
    answer = client.chat.completions.create(**{**ASKED, "max_tokens": 8}, reasoning_effort=effort)
    assert answer.usage
    assert answer.usage.completion_tokens > 0
