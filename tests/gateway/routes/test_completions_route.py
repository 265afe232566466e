"""`POST /v1/completions` over a real server and a scripted pool."""

import asyncio
from typing import Any

import msgspec
import orjson
import pytest
from openai.types import Completion

from gateway.routes.completions import SIDE_BY_SIDE
from gateway.schema.parts.answers import Completion as OurCompletion
from protocol.messages import TextPrompt, TokenLogprob, TokenPrompt

PATH = "/v1/completions"
WORDS = [TokenLogprob(token="Hel", raw=b"Hel", logprob=-0.5, top=[("Hel", b"Hel", -0.5), ("Yo", b"Yo", -1.0)]),
         TokenLogprob(token="lo", raw=b"lo", logprob=-0.25, top=[("xx", b"xx", float("-inf"))])]  # fmt: skip


async def whole(client: Any, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"prompt": "x"} | fields)
    body = await response.read()
    assert response.status == 200, body
    Completion.model_validate(orjson.loads(body), strict=True)
    msgspec.json.decode(body, type=OurCompletion)
    return orjson.loads(body)


async def stream(client: Any, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post(PATH, json={"prompt": "x", "stream": True} | fields)
    assert response.status == 200, await response.text()
    events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    frames = [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]
    for frame in frames:
        msgspec.json.decode(orjson.dumps(frame), type=OurCompletion)
        for choice in frame["choices"]:
            # The SDK's type is strict about the reason of a whole answer; frames before the last have none.
            checked = frame | {"choices": [choice | {"finish_reason": choice["finish_reason"] or "stop"}]}
            Completion.model_validate(checked, strict=True)
    return frames


async def test_answer_is_whole_when_not_streamed(client: Any) -> None:
    """One prompt, one choice, one usage."""
    answer = await whole(client)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"index": 0, "text": "Hello world", "logprobs": None, "finish_reason": "stop"}]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]) == (3, 5)


async def test_choices_are_numbered_by_prompt_when_there_are_several(client: Any, pool: Any) -> None:
    """Choice `index % n` of prompt `index // n`; usage is the sum, whatever order the jobs end in."""
    first_may_end = asyncio.Event()

    async def backwards(play: Any) -> None:
        await play.accept()
        if play.job.prompt == TextPrompt(text="a"):
            await first_may_end.wait()
        for choice in range(play.job.n):
            await play.say(f"{play.job.prompt.text}{choice}", choice=choice, finish="length")
        await play.done()
        if play.job.prompt == TextPrompt(text="b"):
            first_may_end.set()

    pool.script = backwards
    expected = [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    answer = await whole(client, prompt=["a", "b"], n=2)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == expected
    assert answer["usage"]["total_tokens"] == 10
    first_may_end.clear()
    frames = await stream(client, prompt=["a", "b"], n=2, stream_options={"include_usage": True})
    assert sorted((c["index"], c["text"]) for frame in frames for c in frame["choices"]) == expected
    assert [frame["usage"] for frame in frames[:-1]] == [None] * 4
    assert (frames[-1]["choices"], frames[-1]["usage"]["total_tokens"]) == ([], 10)


@pytest.mark.parametrize("streamed", [True, False])
async def test_largest_request_runs_a_few_jobs_at_a_time_when_it_has_many_prompts(
    client: Any, pool: Any, streamed: bool
) -> None:
    """128 prompts all run, side by side but never so many that they would overflow an idle pool's queue."""
    prompts = [[number] for number in range(128)]
    if streamed:
        frames = await stream(client, prompt=prompts)
        done = [choice["index"] for frame in frames for choice in frame["choices"] if choice["finish_reason"]]
        assert sorted(done) == list(range(128))
    else:
        assert len((await whole(client, prompt=prompts))["choices"]) == 128
    assert [play.job.prompt for play in pool.played] == [TokenPrompt(tokens=tokens) for tokens in prompts]
    assert pool.most_at_once == SIDE_BY_SIDE


async def test_logprobs_are_four_lists_when_asked_for(client: Any, pool: Any) -> None:
    """Legacy shape; offsets go on across frames, the chosen token is always among the alternatives."""

    async def likely(play: Any) -> None:
        await play.accept()
        await play.say("Hel", logprobs=WORDS[:1])
        await play.say("lo", logprobs=WORDS[1:], finish="stop")
        await play.done()

    pool.script = likely
    expected = {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"Hel": -0.5, "Yo": -1.0}, {"xx": -9999.0, "lo": -0.25}],
        "text_offset": [0, 3],
    }
    assert (await whole(client, logprobs=2))["choices"][0]["logprobs"] == expected
    frames = await stream(client, logprobs=2)
    joined = {name: [item for frame in frames for item in frame["choices"][0]["logprobs"][name]] for name in expected}
    assert joined == expected
    assert (await whole(client, logprobs=0))["choices"][0]["logprobs"] == expected | {"top_logprobs": None}
    assert (await whole(client))["choices"][0]["logprobs"] is None


async def test_nothing_is_lost_when_a_worker_sets_reasoning_apart(client: Any, pool: Any) -> None:
    """This endpoint has one channel: all text is text, and a tool call's end is a stop."""

    async def think(play: Any) -> None:
        await play.accept()
        await play.say("b", reasoning="a")
        await play.say(finish="tool_calls")
        await play.done()

    pool.script = think
    choice = (await whole(client))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert "".join(frame["choices"][0]["text"] for frame in await stream(client)) == "ab"


async def test_all_jobs_end_when_one_fails(client: Any, pool: Any) -> None:
    """The first failure is the answer, and no other job of the request goes on."""

    async def third_fails(play: Any) -> None:
        if len(pool.played) < 3:
            await play.accept()
            await asyncio.Event().wait()
        await play.fail("out_of_memory", "too large")

    pool.script = third_fails
    response = await client.post(PATH, json={"prompt": ["a", "b", "c"]})
    assert response.status == 507
    assert (await response.json())["error"]["message"] == "too large"
    assert response.headers["x-should-retry"] == "false"
    assert all(play.left.is_set() for play in pool.played)


async def test_headers_go_out_when_a_stream_is_accepted(client: Any, pool: Any) -> None:
    """The status is there before the first text is."""
    go_on = asyncio.Event()

    async def slow(play: Any) -> None:
        await play.accept()
        await go_on.wait()
        await play.say("x", finish="stop")
        await play.done()

    pool.script = slow
    response = await asyncio.wait_for(client.post(PATH, json={"prompt": "x", "stream": True}), 5)
    assert response.status == 200
    go_on.set()
    assert "[DONE]" in await response.text()
