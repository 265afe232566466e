"""Bodies of 20 MB that were built to be slow or large: how long they hold the event loop, what is said of them."""

import asyncio
import io
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import FormData, StreamReader

from gateway.access.keys.keyring import ANYBODY
from gateway.bodies import pace
from gateway.bodies.parsing import ParsingTurns
from gateway.memory_account import MEMORY
from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.decode import check, decode
from gateway.schema.errors import ApiError
from tests.support.guarded_app import Client, app_of, guarded

SIZE = 20 * 1024 * 1024 - 200
HOLD_S = 1.0
"""Of processor time between two turns of the loop: ten times what the slowest step takes on a quiet machine."""
JSON = {"Content-Type": "application/json"}
TALK = '"messages":[{"role":"user","content":"a"}]'


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Client]:
    """The whole application, without keys and workers."""
    async with guarded(tmp_path, auth=False, insecure=True, rate_limit_enabled=False) as client:
        yield client


def filled(head: str, item: str, tail: str, size: int = SIZE) -> bytes:
    """`item` again and again, up to `size` bytes."""
    count = (size - len(head) - len(tail)) // (len(item) + 1)
    return f"{head}{','.join([item] * count)}{tail}".encode()


async def longest_hold(client: Client, path: str, bodies: list[bytes]) -> tuple[float, list[tuple[int, str]]]:
    """Processor time of the longest turn of the loop while `bodies` are sent at once; status and message of each."""
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            worst, last = max(worst, now - last), now

    async def send(body: bytes) -> tuple[int, str]:
        async with client.post(path, data=io.BytesIO(body), headers=JSON) as answer:
            return answer.status, (await answer.json())["error"]["message"]

    watcher = asyncio.create_task(watch())
    try:
        answers = await asyncio.gather(*(send(body) for body in bodies))
    finally:
        watcher.cancel()
    return worst, answers


STRUCTURES = {
    "token lists": ("/v1/embeddings", filled('{"input":[', "[1]", "]}")),
    "numbers": ("/v1/embeddings", filled('{"input":[', "1", "]}")),
    "vectors": ("/similarity", filled('{"left":[[', "1.5", "]]}")),
    "objects": ("/v1/completions", filled('{"prompt":[', "{}", "]}")),
    "texts": ("/embed/text", filled('{"texts":[', '""', "]}")),
    "schema": (
        "/v1/chat/completions",
        filled(f'{{{TALK},"tools":[{{"type":"function","function":{{"name":"f","parameters":{{"a":[', "[]", "]}}}]}"),
    ),
    "parts": ("/v1/chat/completions", filled('{"messages":[{"role":"user","content":[', '{"type":"text"}', "]}]}")),
    "arguments": (
        "/v1/chat/completions",
        filled(
            '{"messages":[{"role":"assistant","tool_calls":[{"id":"a","type":"function","function":'
            '{"name":"f","arguments":"[',
            "[]",
            ']"}}]}]}',
        ),
    ),
    "keys": ("/admin/api-keys", b'{"name":{' + b",".join(b'"%d":1' % at for at in range(1_500_000)) + b"}}"),
    "orders": ("/admin/workers/x/drain", filled('{"grace":[', "[]", "]}")),
}


@pytest.mark.parametrize("name", STRUCTURES)
async def test_structure_is_refused_before_it_is_parsed(gateway: Client, name: str) -> None:
    """By a sentence that says how much is allowed; two at once hold the loop for moments."""
    path, body = STRUCTURES[name]
    worst, answers = await longest_hold(gateway, path, [body, body])
    for status, message in answers:
        assert status == 400
        assert "more than" in message
        assert message.endswith((" values.", " lists and objects."))
    assert worst < HOLD_S
    assert app_of(gateway)[MEMORY].held_bytes == 0


def numbers(count: int, form: str) -> str:
    """A list of so many numbers, none like the other."""
    draw = random.Random(count)
    return "[" + ",".join(form % (draw.random() * 900 + 300) for _ in range(count)) + "]"


def largest() -> dict[str, tuple[str, bytes]]:
    """The largest legal bodies."""
    tokens, vector = numbers(1024, "%d"), numbers(512, "%.3f")
    side = ",".join([vector] * 2048)
    emoji = "x, [y] {z} " * ((SIZE - 4000) // 11) + "\U0001f600"
    parts = ",".join(['{"type":"text","text":""}'] * 60_000)
    return {
        "token lists": ("/v1/embeddings", f'{{"input":[{",".join([tokens] * 2047)}]}}'.encode()),
        "vectors": ("/similarity", f'{{"left":[{side}],"right":[{side}],"top_k":1}}'.encode()),
        "text": ("/v1/chat/completions", f'{{"messages":[{{"role":"user","content":"{emoji}"}}]}}'.encode()),
        "parts": ("/v1/chat/completions", f'{{"messages":[{{"role":"user","content":[{parts}]}}]}}'.encode()),
        "prompt": ("/v1/completions", f'{{"prompt":[{",".join(["12345"] * 2_097_152)}]}}'.encode()),
    }


@pytest.mark.parametrize("name", ["token lists", "vectors", "text", "parts", "prompt"])
async def test_largest_legal_body_holds_the_loop_for_moments(gateway: Client, name: str) -> None:
    """It is read to its end (no model is there to answer it), in steps."""
    path, body = largest()[name]
    worst, answers = await longest_hold(gateway, path, [body])
    assert [status for status, _ in answers] == [404] or "model" in answers[0][1].lower()
    assert worst < HOLD_S
    assert app_of(gateway)[MEMORY].held_bytes == 0


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ({"service_tier": "'a" * 10_000_000}, "service_tier"),
        ({"messages": [{"role": "`|" * 10_000_000}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": " - at `$." * 2_000_000}]}]},
            "messages[0].content[0].type",
        ),
        ({"x" * 20_000_000: 1}, "x" * 100 + "…"),
        ({"messages": [{"role": "user", "y" * 20_000_000: 1}]}, "messages[0]." + "y" * 100 + "…"),
    ],
    ids=["value", "type names", "places", "field", "inner field"],
)
def test_error_is_explained_at_once_when_the_value_is_long(raw: dict[str, Any], param: str) -> None:
    """In a sentence of ordinary length, without a search through megabytes: most of the time is msgspec's own copy."""
    fields = {"messages": [{"role": "user", "content": "a"}]} | raw
    began = time.thread_time()
    with pytest.raises(ApiError) as raised:
        check(fields, ChatCompletionRequest)
    assert time.thread_time() - began < HOLD_S
    assert raised.value.param == param
    assert len(raised.value.message) < 300


@pytest.mark.parametrize("number", ["1" * 5000, "-" + "1" * 5000, "1" * 400, "1e5000", "0." + "1" * 5000])
def test_number_of_any_length_is_a_number_or_refused(number: str) -> None:
    """Never an error of the server's."""
    for field in ("seed", "temperature", "logit_bias"):
        value = f'{{"5":{number}}}' if field == "logit_bias" else number
        body = f'{{{TALK},"{field}":{value}}}'.encode()
        if number.startswith("0.") and field != "seed":
            decode(body, ChatCompletionRequest)
            continue
        with pytest.raises(ApiError) as raised:
            decode(body, ChatCompletionRequest)
        assert raised.value.status == 400


@pytest.mark.parametrize("name", ["f\n", "f" * 64 + "\n", "\n", ""])
def test_name_is_refused_when_a_line_feed_follows_it(name: str) -> None:
    """Of functions and of schemas."""
    tool = {"type": "function", "function": {"name": name}}
    schema = {"type": "json_schema", "json_schema": {"name": name, "schema": {}}}
    for field in ({"tools": [tool]}, {"response_format": schema}):
        with pytest.raises(ApiError, match="regex"):
            check({"messages": [{"role": "user", "content": "a"}], **field}, ChatCompletionRequest)


async def test_arguments_of_many_calls_are_counted_together(gateway: Client) -> None:
    """Each is small; together they are refused, with the place of the one that was too much."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" + "[]," * 9000 + "[]]"}}
    body = {"messages": [{"role": "assistant", "tool_calls": [call] * 4}]}
    async with gateway.post("/v1/chat/completions", json=body) as answer:
        error = (await answer.json())["error"]
    assert error["param"] == "messages[0].tool_calls[3].function.arguments"


async def test_callers_take_turns_when_several_parse() -> None:
    """One with many bodies delays another by one turn; who leaves while waiting holds up nobody."""
    turns, order = ParsingTurns(), list[str]()
    first = asyncio.Event()

    async def parse(tenant: str) -> None:
        async with turns.wait_turn(tenant):
            order.append(tenant)
            await first.wait()

    tasks = [asyncio.create_task(parse(tenant)) for tenant in ("a", "a", "a", "b", "a", "c", "b")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    first.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert "".join(order) == "aabcab"
    async with asyncio.timeout(60), turns.wait_turn("d"):
        pass


async def test_turn_is_passed_on_when_its_owner_leaves_in_that_moment() -> None:
    """The turn was given and not begun: the next one has it."""
    turns = ParsingTurns()
    async with turns.wait_turn("a"):
        waiting = [asyncio.create_task(parse_once(turns, name)) for name in "bc"]
        await asyncio.sleep(0)
    waiting[0].cancel()
    async with asyncio.timeout(60):
        assert await waiting[1] == "c"
    assert waiting[0].cancelled()


async def parse_once(turns: ParsingTurns, name: str) -> str:
    """Wait for a turn, and have it."""
    async with turns.wait_turn(name):
        return name


def upload() -> StreamReader:
    """A body of which nothing has come."""
    return StreamReader(Mock(connected=True), 2**16, loop=asyncio.get_running_loop())


async def test_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 408, which SDKs do not answer with the same long upload again: after a silence, and at the end of all time."""
    for bound in ("BODY_S", "SILENCE_S"):
        with monkeypatch.context() as changed:
            changed.setattr(pace, bound, 0.05)
            content = upload()
            with pytest.raises(ApiError) as caught:
                await pace.Pace(content).read_in_time(content.readany())
        assert (caught.value.code, caught.value.status) == ("request_timeout", 408)
        content.feed_data(b"it came")
        assert await pace.Pace(content).read_in_time(content.readany()) == b"it came"


async def test_body_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then breaks every silence, and would take months; one that is whole at last is taken."""
    monkeypatch.setattr(pace, "SILENCE_S", 0.05)
    content = upload()
    watched = pace.Pace(content)
    with pytest.raises(ApiError) as caught:
        for _ in range(1000):
            content.feed_data(b"x")
            await watched.read_in_time(content.readany())
            await asyncio.sleep(0.005)
    assert caught.value.code == "request_timeout"
    whole = pace.Pace(content)
    await asyncio.sleep(0.06)
    content.feed_data(b"x")
    content.feed_eof()
    assert await whole.read_in_time(content.readany()) == b"x"


async def test_body_is_refused_while_it_comes_when_memory_is_short(gateway: Client) -> None:
    """429 before more is read, though its length was declared: what counts is what came."""
    account = app_of(gateway)[MEMORY]
    other = account.open_share(ANYBODY.tenant)
    other.hold_bytes(account.most_bytes)

    async def body() -> AsyncIterator[bytes]:
        yield b" " * 65_536
        await asyncio.Event().wait()

    async with asyncio.timeout(10), gateway.post("/v1/embeddings", data=body(), headers=JSON) as answer:
        assert answer.status == 429
        assert answer.headers["retry-after"] == "1"
    other.close()
    assert (account.held_bytes, account.refused) == (0, 1)


async def test_form_is_refused_before_its_files_when_no_model_takes_them(gateway: Client) -> None:
    """Nothing of the file is waited for."""
    never = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        await never.wait()

    form = {"Content-Type": "multipart/form-data; boundary=b"}
    async with asyncio.timeout(10), gateway.post("/embed/image", data=body(), headers=form) as answer:
        assert answer.status in (404, 503)
        assert (await answer.json())["error"]["code"] in ("model_not_found", "model_not_ready")


async def test_fields_of_a_form_are_refused_when_they_are_too_large_together(gateway: Client) -> None:
    """Each is within its bound."""
    form = FormData(default_to_multipart=True)
    for _ in range(6):
        form.add_field("text", "x" * 1_000_000)
    async with gateway.post("/embed/multimodal", data=form) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (413, "text")
    assert app_of(gateway)[MEMORY].held_bytes == 0
