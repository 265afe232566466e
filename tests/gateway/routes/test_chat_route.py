"""`POST /v1/chat/completions` over a real server and a scripted pool."""

import asyncio
from typing import Any

import msgspec
import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.schema.parts.answers import ChatCompletion as OurCompletion
from gateway.schema.parts.answers import ChatCompletionChunk as OurChunk
from protocol.messages import TokenLogprob, ToolCall

PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
LOGPROB = TokenLogprob(
    token="Hi", raw=b"Hi", logprob=-0.5, top=[("Hi", b"Hi", -0.5), ("Yo\ufffd", b"Yo\xff", float("-inf"))]
)
CALLS = [
    ToolCall(index=0, id="call_1", name="f", arguments='{"a":1}'),
    ToolCall(index=1, id="call_2", name="g", arguments=""),
]


async def stream(client: Any, **fields: Any) -> list[dict[str, Any]]:
    """Frames of a stream that ended well; each is checked against the SDK's types and against ours."""
    response = await client.post(PATH, json=BODY | {"stream": True} | fields)
    assert response.status == 200, await response.text()
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    frames = [event.removeprefix("data: ").encode() for event in events[:-2]]
    for frame in frames:
        ChatCompletionChunk.model_validate(orjson.loads(frame), strict=True)
        msgspec.json.decode(frame, type=OurChunk)
    return [orjson.loads(frame) for frame in frames]


async def whole(client: Any, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json=BODY | fields)
    body = await response.read()
    assert response.status == 200, body
    ChatCompletion.model_validate(orjson.loads(body), strict=True)
    msgspec.json.decode(body, type=OurCompletion)
    return orjson.loads(body)


def deltas(frames: list[dict[str, Any]], choice: int = 0) -> list[dict[str, Any]]:
    return [entry["delta"] for frame in frames for entry in frame["choices"] if entry["index"] == choice]


async def test_stream_has_role_text_and_finish_when_it_runs_well(client: Any) -> None:
    """Role first with empty content, then text as it comes, then the reason with an empty delta; one id throughout."""
    frames = await stream(client)
    assert deltas(frames) == [{"role": "assistant", "content": ""}, {"content": "Hello"}, {"content": " world"}, {}]
    assert [frame["choices"][0]["finish_reason"] for frame in frames] == [None, None, None, "stop"]
    assert len({(frame["id"], frame["created"], frame["model"], frame["system_fingerprint"]) for frame in frames}) == 1
    assert frames[0]["id"].startswith("chatcmpl-")
    assert frames[0]["model"] == "small"
    assert all("usage" not in frame for frame in frames)


async def test_usage_frame_ends_the_stream_when_asked_for(client: Any) -> None:
    """Every frame says `usage: null`, the last one has no choices and the counts."""
    frames = await stream(client, stream_options={"include_usage": True})
    assert [frame["usage"] for frame in frames[:-1]] == [None] * 4
    assert frames[-1]["choices"] == []
    assert frames[-1]["object"] == "chat.completion.chunk"
    assert frames[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_choices_are_told_apart_when_there_are_several(client: Any, pool: Any) -> None:
    """Each choice has its own role frame, text and end."""
    frames = await stream(client, n=3)
    for choice in range(3):
        assert deltas(frames, choice)[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas(frames, choice)) == "Hello world"
    assert len(pool.played) == 1
    answer = await whole(client, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]


async def test_reasoning_comes_under_both_names_when_the_model_thinks(client: Any, pool: Any) -> None:
    """Reasoning is never content; clients find it as `reasoning_content` or `reasoning`."""

    async def think(play: Any) -> None:
        await play.accept()
        await play.say(reasoning="hm")
        await play.say("so", reasoning=" ok")
        await play.say("!", finish="stop")
        await play.done(reasoning_tokens=2)

    pool.script = think
    assert deltas(await stream(client)) == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": "so", "reasoning_content": " ok", "reasoning": " ok"},
        {"content": "!"},
        {},
    ]
    answer = await whole(client)
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "so!",
        "reasoning_content": "hm ok",
        "reasoning": "hm ok",
    }
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


async def test_tool_calls_come_as_deltas_when_the_model_calls(client: Any, pool: Any) -> None:
    """Id, type and name first, then the arguments; content is null where there is nothing but calls."""

    async def call(play: Any) -> None:
        await play.accept()
        await play.say(calls=CALLS, finish="tool_calls")
        await play.done()

    pool.script = call
    frames = await stream(client)
    pieces = [delta["tool_calls"][0] for delta in deltas(frames) if "tool_calls" in delta]
    assert pieces == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":1}'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"index": 1, "function": {"arguments": ""}},
    ]
    assert frames[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
    choice = (await whole(client))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
        ],
    }


async def test_arguments_are_passed_on_as_they_come_when_a_call_is_streamed(client: Any, pool: Any) -> None:
    """A piece a frame, in order, each with its index; not streamed, they are one call."""

    async def call(play: Any) -> None:
        await play.accept()
        for piece in (ToolCall(0, "c", "f", ""), ToolCall(0, "", "", '{"a"'), ToolCall(0, "", "", ":1}")):
            await play.say(calls=[piece])
        await play.say(calls=[ToolCall(1, "d", "g", "{}")], finish="tool_calls")
        await play.done()

    pool.script = call
    frames = await stream(client)
    pieces = [delta["tool_calls"][0] for delta in deltas(frames) if "tool_calls" in delta]
    arguments = ["", "", ""]
    for piece in pieces:
        arguments[piece["index"]] += piece["function"]["arguments"]
    assert arguments[:2] == ['{"a":1}', "{}"]
    assert [piece["function"].get("name") for piece in pieces if "id" in piece] == ["f", "g"]
    calls = (await whole(client))["choices"][0]["message"]["tool_calls"]
    assert [(one["id"], one["function"]["arguments"]) for one in calls] == [("c", '{"a":1}'), ("d", "{}")]


async def test_logprobs_are_finite_when_streamed_or_not(client: Any, pool: Any) -> None:
    """Each token with bytes and alternatives, also where its text is held back; minus infinity becomes -9999."""

    async def likely(play: Any) -> None:
        await play.accept()
        await play.say("", logprobs=[LOGPROB])
        await play.say("HiHi", logprobs=[LOGPROB], finish="length")
        await play.done()

    pool.script = likely
    entry = {
        "token": "Hi",
        "bytes": [72, 105],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "Hi", "bytes": [72, 105], "logprob": -0.5},
            {"token": "Yo\ufffd", "bytes": [89, 111, 255], "logprob": -9999.0},
        ],
    }
    frames = await stream(client, logprobs=True, top_logprobs=2)
    found = [choice["logprobs"] for frame in frames for choice in frame["choices"]]
    assert found == [None, {"content": [entry], "refusal": None}, {"content": [entry], "refusal": None}, None]
    answer = await whole(client, logprobs=True, top_logprobs=2)
    assert answer["choices"][0]["logprobs"] == {"content": [entry, entry], "refusal": None}


async def test_answer_is_whole_when_not_streamed(client: Any) -> None:
    """Text, reason, usage and a fingerprint that stays the same; no timings unless asked for."""
    answer, again = await whole(client), await whole(client)
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["total_tokens"] == 5
    assert answer["system_fingerprint"] == again["system_fingerprint"]
    assert answer["id"] != again["id"]
    assert "timings" not in answer


async def test_timings_are_added_when_asked_for(client: Any, pool: Any) -> None:
    """Seconds per phase, in the body or in a frame without choices; usage is not implied."""

    async def timed(play: Any) -> None:
        await play.accept()
        await play.say("x", finish="stop")
        await play.done(wait_s=0.5, prefill_s=0.25, decode_s=0.1)

    pool.script = timed
    expected = {"wait_s": 0.5, "prefill_s": 0.25, "decode_s": 0.1, "tokens_per_second": 20.0}
    assert (await whole(client, return_timing=True))["timings"] == expected
    last = (await stream(client, return_timing=True))[-1]
    assert (last["choices"], last["timings"], "usage" in last) == ([], expected, False)
    last = (await stream(client, return_timing=True, stream_options={"include_usage": True}))[-1]
    assert (last["timings"], last["usage"]["total_tokens"]) == (expected, 5)


async def test_text_survives_when_it_is_hard_to_encode(client: Any, pool: Any) -> None:
    """Quotes, controls, line separators and emoji arrive as they were, and never break a frame."""
    text = '"\\\n\r\n\t\x00\u2028\U0001f600</script>data: [DONE]\n\n'

    async def odd(play: Any) -> None:
        await play.accept()
        await play.say(text)
        await play.say(finish="stop")
        await play.done()

    pool.script = odd
    assert "".join(delta.get("content", "") for delta in deltas(await stream(client))) == text


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("code", "status"),
    [("queue_full", 429), ("context_length_exceeded", 400), ("queue_timeout", 504), ("engine_error", 500)],
)
async def test_status_is_proper_when_a_job_fails_before_it_is_accepted(
    client: Any, pool: Any, streamed: bool, code: str, status: int
) -> None:
    """Until the model takes the job, an error is an ordinary answer, streamed or not."""

    async def refuse(play: Any) -> None:
        await play.fail(code)

    pool.script = refuse
    response = await client.post(PATH, json=BODY | {"stream": streamed})
    assert response.status == status
    assert (await response.json())["error"]["code"] == code


async def test_stream_ends_with_an_error_frame_when_a_job_fails_later(client: Any, pool: Any) -> None:
    """Text so far, one error frame, no `[DONE]`, and the connection closes."""

    async def die(play: Any) -> None:
        await play.accept()
        await play.say("Hel")
        await play.fail("worker_lost", "gone")

    pool.script = die
    reader, writer = await asyncio.open_connection(client.host, client.port)
    body = orjson.dumps(BODY | {"stream": True})
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = (await asyncio.wait_for(reader.read(), 5)).decode()  # until the server closes
    writer.close()
    assert answer.startswith("HTTP/1.1 200 ")
    assert answer.endswith("\r\n0\r\n\r\n")
    events = [line for line in answer.splitlines() if line.startswith("data: ")]
    assert len(events) == 3
    assert orjson.loads(events[1].removeprefix("data: "))["choices"][0]["delta"] == {"content": "Hel"}
    error = orjson.loads(events[2].removeprefix("data: "))["error"]
    assert (error["code"], error["type"], error["message"]) == ("worker_lost", "server_error", "gone")


async def test_stream_ends_with_a_generic_error_when_the_gateway_is_at_fault(client: Any, pool: Any, log: Any) -> None:
    """A bug after the headers is a generic frame for the client and a traceback, with the same id, for the log."""

    async def odd(play: Any) -> None:
        await play.accept()
        await play.mumble("not a delta")

    pool.script = odd
    response = await client.post(PATH, json=BODY | {"stream": True})
    error = orjson.loads((await response.text()).split("\n\n")[-2].removeprefix("data: "))["error"]
    assert error["code"] == "internal_error"
    assert any(error["error_id"] in line and "Traceback" in line for line in log.lines)


@pytest.mark.parametrize("streamed", [True, False])
async def test_job_is_cancelled_when_the_client_leaves(client: Any, pool: Any, log: Any, streamed: bool) -> None:
    """A client that leaves mid-answer ends its job at once, and the log says 499."""
    started = asyncio.Event()

    async def endless(play: Any) -> None:
        await play.accept()
        await play.say("x")
        started.set()
        await asyncio.Event().wait()

    pool.script = endless
    request = asyncio.ensure_future(client.post(PATH, json=BODY | {"stream": streamed}))
    await started.wait()
    if streamed:
        (await request).close()
    else:
        request.cancel()
    await asyncio.wait_for(pool.played[0].left.wait(), 5)
    await log.wait_for("status=499")


async def test_model_is_refused_when_unknown(client: Any, pool: Any) -> None:
    """404 in OpenAI's shape, with the parameter at fault, and no job."""
    response = await client.post(PATH, json=BODY | {"model": "nope"})
    assert response.status == 404
    assert (await response.json())["error"] | {"error_id": ""} == {
        "message": "The model 'nope' does not exist. Served here: small.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
        "error_id": "",
    }
    assert pool.played == []


async def test_job_carries_the_request_id_when_given(client: Any, pool: Any) -> None:
    """The caller's id travels to the worker and back, streamed or not."""
    for streamed in (True, False):
        response = await client.post(PATH, json=BODY | {"stream": streamed}, headers={"X-Request-ID": "req-1"})
        await response.read()
        assert response.headers["X-Request-ID"] == "req-1"
        assert pool.played[-1].job.request_id == "req-1"


async def test_the_cache_key_reaches_the_pool_when_a_client_gives_one(client: Any, pool: Any) -> None:
    """It is no bookkeeping: it says which requests belong together."""
    await stream(client, prompt_cache_key="session-1")
    assert pool.cache_key == "session-1"


@pytest.mark.parametrize("streamed", [False, True])
async def test_header_names_what_a_schema_leaves_to_the_model(client: Any, streamed: bool) -> None:
    """On whole answers and on streams; none where nothing is left, and a refusal under `strict`."""
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}

    async def ask(strict: bool, schema: dict[str, Any]) -> Any:
        named = {"name": "x", "schema": schema, "strict": strict}
        wanted = {"type": "json_schema", "json_schema": named}
        return await client.post(PATH, json=BODY | {"stream": streamed, "response_format": wanted})

    left = await ask(False, schema)
    assert left.status == 200
    assert left.headers["x-unenforced-schema"] == "response_format.json_schema.schema.uniqueItems"
    assert "x-unenforced-schema" not in (await ask(False, {"type": "array", "uniqueItems": False})).headers
    refused = await ask(True, schema)
    error = (await refused.json())["error"]
    assert (refused.status, error["param"]) == (400, "response_format.json_schema.schema")
    assert "schema.uniqueItems' can't be enforced" in error["message"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_header_names_what_changes_nothing_when_a_history_has_echoes(
    client: Any, pool: Any, streamed: bool
) -> None:
    """Of messages and of the template's options, once the model's names are known."""
    pool.served[0].ready = msgspec.structs.replace(pool.served[0].ready, template_names=["enable_thinking"])
    messages = [*BODY["messages"], {"role": "assistant", "content": "a", "id": "m"}, *BODY["messages"]]
    kwargs = {"enable_thinking": False, "clear_thinking": True}
    body = {"messages": messages, "chat_template_kwargs": kwargs, "stream": streamed}
    response = await client.post(PATH, json=body)
    assert response.status == 200
    assert response.headers["x-ignored-parameters"] == "chat_template_kwargs.clear_thinking, messages.id"
    plain = await client.post(PATH, json=BODY | {"stream": streamed})
    assert "x-ignored-parameters" not in plain.headers
