"""How errors reach users of the `openai` client: as which exception, with what on it, after how many attempts."""

import asyncio
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import APIError, AsyncOpenAI, OpenAI
from stress.key_traces import CLIENT_KEY
from stress.running_pool import FAKE, RunningPool, wait_until

from tests.support.pool_fixtures import CONTEXT, QWEN_NAME

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOO_LONG: list[Any] = [{"role": "user", "content": "hello " * 4 * CONTEXT}]
SMALL = (*FAKE, "--max-concurrency", "1", "--queue-size", "1", "--queue-timeout", "0.7")
LONG = "fake: slow@0.02 tokens@5000"


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_request", "temperature"),
        ({"n": 9}, openai.BadRequestError, "invalid_request", "n"),
        ({"messages": []}, openai.BadRequestError, "invalid_request", "messages"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "objekt"}}}},
            openai.BadRequestError,
            "invalid_request",
            "response_format.json_schema.schema",
        ),
        ({"tool_choice": "required"}, openai.BadRequestError, "invalid_request", "tool_choice"),
        ({"extra_body": {"best_effort": 1}}, openai.BadRequestError, "unsupported_parameter", "best_effort"),
        ({"messages": TOO_LONG}, openai.BadRequestError, "context_length_exceeded", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusal_is_an_exception_with_code_and_param(
    client: OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], code: str, param: str, stream: bool
) -> None:
    """Each refusal is the client's own exception for its status, streamed or not, and names the parameter."""
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": QWEN_NAME, "messages": HELLO, "stream": stream, **fields})
    assert raised.value.code == code
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert raised.value.request_id
    assert raised.value.response.headers["x-should-retry"] == "false"


def test_message_holds_both_numbers_when_the_context_is_exceeded(client: OpenAI) -> None:
    """The caller learns what fits and what was sent."""
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model=QWEN_NAME, prompt=[5] * (CONTEXT + 3), max_tokens=1)
    assert str(CONTEXT) in raised.value.message
    assert str(CONTEXT + 3) in raised.value.message


@pytest.mark.parametrize("asked", [CONTEXT, CONTEXT + 1, 10**9])
def test_answer_is_cut_when_more_is_asked_for_than_there_is_room(client: OpenAI, asked: int) -> None:
    """`max_tokens` is a ceiling: a prompt that fits is answered, and the answer says that it was cut."""
    prompt = [5] * (CONTEXT - 3)
    found = client.completions.create(model=QWEN_NAME, prompt=prompt, max_tokens=asked, extra_body={"ignore_eos": True})
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert (found.usage.completion_tokens, found.usage.total_tokens) == (3, CONTEXT)


def test_request_id_is_kept_when_given_and_made_when_not(client: OpenAI) -> None:
    """`with_raw_response`, `_request_id` and exceptions show the id; an illegal one is replaced."""
    asked: dict[str, Any] = {"model": QWEN_NAME, "messages": HELLO, "max_tokens": 2}
    given = client.chat.completions.with_raw_response.create(**asked, extra_headers={"X-Request-ID": "mine.1_a-b"})
    assert given.headers["x-request-id"] == given.request_id == "mine.1_a-b"
    assert given.parse()._request_id == "mine.1_a-b"
    assert float(given.headers["x-process-time"]) > 0
    made = {client.chat.completions.create(**asked)._request_id for _ in range(2)}
    assert len(made) == 2
    for illegal in ("a b", "x" * 65, "", "<script>", "1\t2"):
        raw = client.chat.completions.with_raw_response.create(**asked, extra_headers={"X-Request-ID": illegal})
        assert raw.headers["x-request-id"] not in ("", illegal)
    with client.chat.completions.with_streaming_response.create(
        **asked, stream=True, extra_headers={"X-Request-ID": "mine.2"}
    ) as streamed:
        assert streamed.headers["x-request-id"] == "mine.2"
        streamed.read()


class Counted:
    """An `openai` client that notes when it sent a request, and what it was answered."""

    def __init__(self, pool: RunningPool, *, max_retries: int = 2) -> None:
        self.sent_at: list[float] = []
        self.statuses: list[int] = []
        self.http = openai.DefaultHttpxClient(event_hooks={"request": [self._count], "response": [self._note]})
        self.client = OpenAI(base_url=pool.base_url, api_key=CLIENT_KEY, http_client=self.http, max_retries=max_retries)

    def _count(self, _request: Any) -> None:
        self.sent_at.append(time.monotonic())

    def _note(self, response: Any) -> None:
        self.statuses.append(response.status_code)

    @property
    def attempts(self) -> int:
        """How often it tried."""
        return len(self.sent_at)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


def test_full_queue_is_tried_again_when_the_server_says(start_pool: Callable[..., RunningPool]) -> None:
    """429 is retried after `retry-after-ms` (one second), and succeeds once there is room."""
    pool = start_pool(SMALL)
    held = [pool.open_chat(LONG, stream=True) for _ in range(2)]
    wait_until(lambda: pool.active() == 2)
    waiting = pool.open_chat(LONG)
    wait_until(lambda: pool.waiting() == 1)
    with Counted(pool, max_retries=0) as counted, pytest.raises(openai.RateLimitError) as raised:
        counted.client.chat.completions.create(model="fake", messages=HELLO)
    assert raised.value.code == "queue_full"
    assert 500 <= int(raised.value.response.headers["retry-after-ms"]) <= 120_000
    with Counted(pool) as counted, ThreadPoolExecutor() as threads:
        call = threads.submit(counted.client.chat.completions.create, model="fake", messages=HELLO, max_tokens=3)
        wait_until(lambda: counted.statuses == [429])
        for connection in (*held, waiting):
            connection.close()
        answer = call.result()
    assert answer.choices[0].message.content
    assert counted.attempts >= 2
    assert counted.sent_at[1] - counted.sent_at[0] >= 0.9


def test_deterministic_failures_are_tried_once(start_pool: Callable[..., RunningPool]) -> None:
    """400, 404, 504 and 507 carry `x-should-retry: false`: the client gives up at once."""
    pool = start_pool(SMALL)
    with Counted(pool) as counted, pytest.raises(openai.BadRequestError):
        counted.client.chat.completions.create(model="fake", messages=HELLO, temperature=9)
    assert counted.attempts == 1
    # In its first second a gateway says "not ready" of a model that may yet register.
    wait_until(lambda: pool.chat(model="none").status == 404)
    with Counted(pool) as counted, pytest.raises(openai.NotFoundError):
        counted.client.chat.completions.create(model="none", messages=HELLO)
    assert counted.attempts == 1
    with Counted(pool) as counted, pytest.raises(openai.InternalServerError) as raised:
        counted.client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "fake: oom@0"}])
    assert (counted.attempts, raised.value.status_code, raised.value.code) == (1, 507, "out_of_memory")
    for _ in range(2):
        pool.open_chat(LONG, stream=True)
    wait_until(lambda: pool.active() == 2)
    with Counted(pool) as counted, pytest.raises(openai.InternalServerError) as raised:
        counted.client.chat.completions.create(model="fake", messages=HELLO)
    assert (counted.attempts, raised.value.status_code, raised.value.code) == (1, 504, "queue_timeout")


def test_broken_stream_raises_when_engines_die_of_it(start_pool: Callable[..., RunningPool]) -> None:
    """A stream that can't go on raises `APIError` with its code in the middle of the iteration."""
    pool = start_pool(FAKE)
    with OpenAI(base_url=pool.base_url, api_key=CLIENT_KEY) as client:
        stream = client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "fake: slow@0.02 die@9 tokens@99"}], stream=True
        )
        seen = 0
        with pytest.raises(APIError) as raised:
            for chunk in stream:
                seen += bool(chunk.choices and chunk.choices[0].delta.content)
    assert seen > 5
    assert raised.value.code == "worker_crashed"


def test_connection_error_is_raised_when_the_gateway_dies_mid_stream(start_pool: Callable[..., RunningPool]) -> None:
    """kill -9 of the gateway: no stream ends as if it were complete."""
    pool = start_pool(FAKE)
    with OpenAI(base_url=pool.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": LONG}], stream=True, max_tokens=5000
        )
        with pytest.raises((APIError, openai.APIConnectionError)) as raised:
            for at, _ in enumerate(stream):
                if at == 5:
                    pool.gateway.signal(signal.SIGKILL)
    assert raised.value


async def test_each_of_32_streams_is_what_it_is_alone(qwen: RunningPool) -> None:
    """The asynchronous client with 32 different requests at once, each with its own sampling: every answer as alone."""
    requests: list[dict[str, Any]] = [
        {
            "model": QWEN_NAME,
            "messages": [{"role": "user", "content": "word " * (at % 7 + 1) + str(at)}],
            "max_tokens": 16 + at,
            **({"temperature": 0} if at % 2 else {"temperature": 0.5 + at / 40, "seed": at, "top_p": 0.9}),
        }
        for at in range(32)
    ]
    async with AsyncOpenAI(base_url=qwen.base_url, api_key=CLIENT_KEY) as client:

        async def streamed(request: dict[str, Any]) -> str:
            stream = await client.chat.completions.create(**request, stream=True)
            pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
            return "".join(pieces)

        alone = [(await client.chat.completions.create(**request)).choices[0].message.content for request in requests]
        together = await asyncio.gather(*map(streamed, requests))
    assert together == alone
    assert len(set(alone)) == 32
