"""The OpenAI SDK itself, against the routes."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from protocol.messages import ToolCall

USER: Any = {"role": "user", "content": "hi"}


@pytest.fixture
async def sdk(client: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="x", max_retries=2) as connected:
        yield connected


async def test_stream_helper_builds_the_whole_answer_when_streaming(sdk: AsyncOpenAI, pool: Any) -> None:
    """The SDK's own accumulator makes of our frames what the model said, tool calls and usage included."""

    async def call(play: Any) -> None:
        await play.accept()
        await play.say("Let me ")
        await play.say("see", calls=[ToolCall(index=0, id="c1", name="f", arguments='{"a":1}')])
        await play.say(finish="tool_calls")
        await play.done()

    pool.script = call
    async with sdk.chat.completions.stream(
        model="small", messages=[USER], stream_options={"include_usage": True}
    ) as stream:
        answer = await stream.get_final_completion()
    message = answer.choices[0].message
    assert message.content == "Let me see"
    assert message.tool_calls is not None
    assert (message.tool_calls[0].id, message.tool_calls[0].function.arguments) == ("c1", '{"a":1}')
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5


async def test_answer_can_be_sent_back_when_a_conversation_goes_on(sdk: AsyncOpenAI, pool: Any) -> None:
    """A message object of an earlier answer is a legal part of the next request."""

    async def think(play: Any) -> None:
        await play.accept()
        await play.say("yes", reasoning="hm", finish="stop")
        await play.done()

    pool.script = think
    first = await sdk.chat.completions.create(model="small", messages=[USER])
    history: list[Any] = [USER, first.choices[0].message, USER]
    assert (await sdk.chat.completions.create(model="small", messages=history)).choices[0].message.content == "yes"
    assert b'"reasoning_content":"hm"' in pool.played[1].job.prompt.messages


async def test_error_frame_is_an_exception_when_a_stream_fails(sdk: AsyncOpenAI, pool: Any) -> None:
    """The SDK raises our message."""

    async def die(play: Any) -> None:
        await play.accept()
        await play.say("Hel")
        await play.fail("worker_lost", "The model stopped.")

    pool.script = die
    heard = []
    with pytest.raises(openai.APIError, match=r"The model stopped\.") as raised:
        async for chunk in await sdk.chat.completions.create(model="small", messages=[USER], stream=True):
            heard.append(chunk.choices[0].delta.content)  # noqa: PERF401 (what was heard before the error counts)
    assert heard == ["", "Hel"]
    assert raised.value.code == "worker_lost"


@pytest.mark.parametrize(("code", "attempts"), [("out_of_memory", 1), ("queue_timeout", 1), ("worker_lost", 3)])
async def test_retry_follows_the_headers_when_a_job_fails(
    sdk: AsyncOpenAI, pool: Any, code: str, attempts: int
) -> None:
    """What can't get better is tried once, what can is tried again."""

    async def fail(play: Any) -> None:
        await play.fail(code, "words", retry_after_s=0.01)

    pool.script = fail
    with pytest.raises(openai.APIStatusError) as raised:
        await sdk.chat.completions.create(model="small", messages=[USER])
    assert raised.value.code == code
    assert len(pool.played) == attempts


async def test_model_is_found_when_its_id_has_a_slash(sdk: AsyncOpenAI) -> None:
    """The SDK encodes the slash."""
    assert (await sdk.models.retrieve("org/small-4bit")).id == "small"
    assert [model.id async for model in sdk.models.list()] == ["small"]
