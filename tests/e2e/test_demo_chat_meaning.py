"""The bundled chat model through the whole pool: answers are checked for what they mean, not only for their form."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from stress.key_traces import CLIENT_KEY
from stress.running_pool import RunningPool

from training.evaluation import Case, ModelAnswer, NamedCall, cases

DEMO = Path(__file__).parents[2] / "demo" / "chat"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def pool() -> Iterator[RunningPool]:
    """A pool that serves demo/chat."""
    running = RunningPool(("--model-path", str(DEMO)))
    running.wait_healthy()
    yield running
    running.stop()
    running.check_logs("")
    running.remove()


def client(pool: RunningPool) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=pool.base_url, api_key=CLIENT_KEY, max_retries=0)


async def ask(api: openai.AsyncOpenAI, case: Case) -> ModelAnswer:
    """One held-out question, streamed, as an application would put it together again."""
    tools: Any = list(case.sample.tools) or openai.NOT_GIVEN
    messages: Any = [as_openai(message) for message in case.messages]
    stream = await api.chat.completions.create(
        model="chat", messages=messages, tools=tools, temperature=0, max_tokens=200, stream=True
    )
    text, calls = "", []
    async for chunk in stream:
        delta = chunk.choices[0].delta
        text += delta.content or ""
        calls += [call.function for call in delta.tool_calls or [] if call.function and call.function.name]
    made = tuple(NamedCall(name=call.name or "", arguments=json.loads(call.arguments or "{}")) for call in calls)
    return ModelAnswer(content=text, calls=made)


def as_openai(message: Any) -> Any:
    """Arguments of earlier calls are text on the wire."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"]),
            },
        }
        for index, call in enumerate(message["tool_calls"])
    ]
    return {**message, "tool_calls": calls}


async def test_each_of_32_questions_gets_its_own_right_answer(pool: RunningPool) -> None:
    """Asked all at once: names told in a conversation, facts and words to be repeated never change places."""
    asked = [*cases("facts", 11, seed=5), *cases("echo", 11, seed=5), *cases("names", 10, seed=5)]
    async with client(pool) as api:
        answers = await asyncio.gather(*(ask(api, case) for case in asked))
    wrong = [(case.messages, answer) for case, answer in zip(asked, answers, strict=True) if not case.is_right(answer)]
    # The model's own share of wrong answers is below five in a hundred; another's answer would be wrong as well.
    assert len(wrong) <= 1, wrong
    assert len({answer.content for answer in answers}) >= 28


async def test_tool_loop_ends_in_the_right_sentence(pool: RunningPool) -> None:
    """Question, call with the right argument, result, sentence that says what the result said."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    async with client(pool) as api:
        first = await api.chat.completions.create(
            model="chat", messages=messages, tools=[WEATHER], temperature=0, max_tokens=80
        )
        assert first.choices[0].finish_reason == "tool_calls"
        (call,) = first.choices[0].message.tool_calls or []
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
        messages += [
            first.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "12 degrees and rain"},
        ]
        second = await api.chat.completions.create(
            model="chat", messages=messages, tools=[WEATHER], temperature=0, max_tokens=80
        )
    said = second.choices[0].message.content or ""
    assert second.choices[0].finish_reason == "stop"
    assert "Oslo" in said
    assert "12 degrees" in said
    assert "rain" in said


async def test_thoughts_are_not_content_when_the_model_thinks(pool: RunningPool) -> None:
    """Reasoning arrives in its own field, the answer without it."""
    async with client(pool) as api:
        answer = await api.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": "Think step by step: What is 12 + 13?"}],
            temperature=0,
            max_tokens=200,
        )
    message = answer.choices[0].message
    assert "25" in (message.content or "")
    assert "think" not in (message.content or "")
    assert message.model_dump()["reasoning_content"]
    details = answer.usage.completion_tokens_details if answer.usage else None
    assert details is not None
    assert details.reasoning_tokens
