"""What a request may have told besides its answer, or left out of it: running usage, token ids, no reasoning."""

from typing import Any

import msgspec
import orjson
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BASE: dict[str, dict[str, Any]] = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, TEXT: {"prompt": "x"}}


async def whole(client: Any, path: str, **fields: Any) -> Any:
    response = await client.post(path, json=BASE[path] | fields)
    assert response.status == 200, await response.text()
    return await response.json()


async def stream(client: Any, path: str, **fields: Any) -> list[Any]:
    response = await client.post(path, json=BASE[path] | {"stream": True} | fields)
    assert response.status == 200, await response.text()
    events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def thinks(play: Any) -> None:
    await play.accept()
    await play.say(reasoning="Hm", tokens=[1, 2])
    await play.say("Yes", tokens=[3])
    await play.say("!", tokens=[4, 5])
    await play.say(tokens=[6], finish="stop")
    await play.done(completion_tokens=6, reasoning_tokens=2)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("closing", [True, False])
async def test_every_frame_tells_usage_when_it_is_asked_for(client: Any, pool: Any, path: str, closing: bool) -> None:
    """It grows with the tokens; the frame without choices comes where that was asked for, too."""
    pool.script = thinks
    options = {"continuous_usage_stats": True, "include_usage": closing}
    frames = await stream(client, path, stream_options=options)
    counts = [*([0] if path == CHAT else []), 2, 3, 5, 6, *([6] if closing else [])]
    assert [frame["usage"]["completion_tokens"] for frame in frames] == counts
    assert {frame["usage"]["prompt_tokens"] for frame in frames} == {3}
    assert all(use["total_tokens"] == 3 + use["completion_tokens"] for use in (frame["usage"] for frame in frames))
    assert (frames[-1]["choices"] == []) is closing


async def test_usage_is_of_all_choices_when_several_prompts_are_streamed(client: Any) -> None:
    """Prompts are counted as they are taken, tokens of all answers together."""
    options = {"continuous_usage_stats": True, "include_usage": True}
    frames = await stream(client, TEXT, prompt=["a", "b"], n=2, stream_options=options)
    assert [frame["usage"]["completion_tokens"] for frame in frames[:-1]][-1] == 8
    assert frames[-2]["usage"]["prompt_tokens"] == frames[-1]["usage"]["prompt_tokens"] == 6
    chat = await stream(client, CHAT, n=2, stream_options=options)
    assert chat[-2]["usage"]["completion_tokens"] == 4


async def test_stream_ends_with_usage_when_a_client_asks_as_openrouter_does(client: Any) -> None:
    """`usage: {include: true}` is `include_usage` by another name."""
    for path in (CHAT, TEXT):
        frames = await stream(client, path, usage={"include": True})
        assert (frames[-1]["choices"], frames[-1]["usage"]["prompt_tokens"]) == ([], 3)
        assert (await stream(client, path, usage={"include": False}))[-1]["choices"]


async def test_token_ids_are_told_when_a_chat_asks_for_them(client: Any, pool: Any) -> None:
    """Of the prompt once, of the answer in order, each once, streamed and whole."""
    pool.script = thinks
    answer = await whole(client, CHAT, return_token_ids=True)
    assert answer["prompt_token_ids"] == [7, 8, 9]
    assert answer["choices"][0]["token_ids"] == [1, 2, 3, 4, 5, 6]
    frames = await stream(client, CHAT, return_token_ids=True)
    assert [frame.get("prompt_token_ids") for frame in frames] == [[7, 8, 9], *[None] * (len(frames) - 1)]
    assert [one for frame in frames for one in frame["choices"][0].get("token_ids", [])] == [1, 2, 3, 4, 5, 6]
    assert "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames) == "Yes!"


async def test_token_ids_are_told_when_a_completion_asks_for_them(client: Any, pool: Any) -> None:
    """As vLLM tells them: both with the choice."""
    pool.script = thinks
    [choice] = (await whole(client, TEXT, return_token_ids=True))["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([7, 8, 9], [1, 2, 3, 4, 5, 6])
    frames = [frame["choices"][0] for frame in await stream(client, TEXT, return_token_ids=True)]
    assert [frame.get("prompt_token_ids") for frame in frames] == [[7, 8, 9], *[None] * (len(frames) - 1)]
    assert [one for frame in frames for one in frame.get("token_ids", [])] == [1, 2, 3, 4, 5, 6]


async def test_no_ids_are_told_when_nobody_asks(client: Any) -> None:
    """Their names are not in the answer."""
    for path in (CHAT, TEXT):
        for answer in (await whole(client, path), *await stream(client, path)):
            assert "prompt_token_ids" not in answer
            assert all("token_ids" not in choice and "prompt_token_ids" not in choice for choice in answer["choices"])


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
@pytest.mark.parametrize("more", [{}, {"return_token_ids": True}])
async def test_reasoning_is_left_out_when_a_client_wants_none(
    client: Any, pool: Any, fields: dict[str, Any], more: dict[str, Any]
) -> None:
    """The model thinks all the same: its tokens are counted, and told where ids are asked for."""
    pool.script = thinks
    answer = await whole(client, CHAT, **fields, **more)
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Yes!"}
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    frames = await stream(client, CHAT, **fields, **more)
    assert not any({"reasoning", "reasoning_content"} & frame["choices"][0]["delta"].keys() for frame in frames)
    assert "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames) == "Yes!"
    if more:
        assert [one for frame in frames for one in frame["choices"][0].get("token_ids", [])] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("fields", [{}, {"include_reasoning": True}, {"reasoning": {"exclude": False}}])
async def test_reasoning_is_told_when_it_is_not_unwanted(client: Any, pool: Any, fields: dict[str, Any]) -> None:
    """That is the default."""
    pool.script = thinks
    assert (await whole(client, CHAT, **fields))["choices"][0]["message"]["reasoning_content"] == "Hm"
    frames = await stream(client, CHAT, **fields)
    assert [f["choices"][0]["delta"]["reasoning"] for f in frames if "reasoning" in f["choices"][0]["delta"]] == ["Hm"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_header_names_parameters_when_they_change_nothing(client: Any, path: str) -> None:
    """On whole answers, streams and errors alike; without any such parameter there is no header."""
    fields = BASE[path] | {"user": "u", "keep_alive": 5, "mirostat": 0}
    for more in ({}, {"stream": True}, {"temperature": 9}):
        response = await client.post(path, json=fields | more)
        assert response.headers["x-ignored-parameters"] == "keep_alive, mirostat, user", more
        assert response.status == (400 if "temperature" in more else 200)
    assert "x-ignored-parameters" not in (await client.post(path, json=BASE[path])).headers


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"enable_thinking": False, "reasoning_effort": "low"}, "enable_thinking, reasoning_effort"),
        ({"thinking": {"type": "disabled"}, "reasoning": {"enabled": False}}, "reasoning, thinking"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, None),
        ({"reasoning": {"effort": "low", "exclude": True}}, None),
        ({"thinking_budget": 5, "chat_template_kwargs": {"thinking_budget": 5}}, None),
    ],
)
async def test_switch_is_named_when_the_template_reads_none(
    client: Any, pool: Any, fields: dict[str, Any], named: str | None
) -> None:
    """It changes nothing, then; a budget and what is told do so with any template."""
    model = pool.served[0]
    for names, header in (([], named), (["enable_thinking"], None), (["thinking"], None), (None, None)):
        model.ready = msgspec.structs.replace(model.ready, template_names=names)
        response = await client.post(CHAT, json=BASE[CHAT] | fields)
        assert response.status == 200
        assert response.headers.get("x-ignored-parameters") == header
