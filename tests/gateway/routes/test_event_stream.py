"""Streams against clients that are slow, silent or gone."""

import asyncio
import socket
from typing import Any

import orjson
import pytest

from gateway.context import HttpSettings

PATH = "/v1/chat/completions"
BODY = orjson.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True})
REQUEST = (
    f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    + BODY
)


@pytest.fixture
def http_settings() -> HttpSettings:
    """Clocks fast enough to wait for."""
    return HttpSettings(sse_ping_interval_s=0.05, write_timeout_s=0.3)


async def test_comment_is_sent_when_nothing_else_was(client: Any, pool: Any) -> None:
    """A long silence is filled with comment lines that SDKs skip; text that follows is whole."""
    go_on = asyncio.Event()

    async def silent(play: Any) -> None:
        await play.accept()
        await go_on.wait()
        await play.say("x")
        await play.say(finish="stop")
        await play.done()

    pool.script = silent
    response = await client.post(PATH, data=BODY, headers={"Content-Type": "application/json"})
    read = b""
    async with asyncio.timeout(60):
        while read.count(b": keep-alive\n\n") < 3:
            read += await response.content.readany()
    go_on.set()
    read += await response.content.read()
    assert read.startswith(b"data: ")
    assert b'"content":"x"' in read
    assert read.endswith(b"data: [DONE]\n\n")


async def test_no_comment_is_sent_when_text_flows(client: Any, pool: Any) -> None:
    """A stream that is never silent for long carries no comments, however long it lasts."""

    async def busy(play: Any) -> None:
        await play.accept()
        deadline = asyncio.get_running_loop().time() + 0.2
        while asyncio.get_running_loop().time() < deadline:
            await play.say("x")
            await asyncio.sleep(0.005)
        await play.say(finish="stop")
        await play.done()

    pool.script = busy
    response = await client.post(PATH, data=BODY, headers={"Content-Type": "application/json"})
    assert ": keep-alive" not in await response.text()


async def test_reader_is_dropped_when_it_stops_reading(client: Any, pool: Any, log: Any) -> None:
    """A client that reads nothing ends by itself: connection aborted, job left, and nobody else waited."""

    async def flood(play: Any) -> None:
        await play.accept()
        while True:
            await play.say("x" * 100_000)

    pool.script = flood
    with socket.socket() as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plug.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plug, (client.host, client.port))
        await asyncio.get_running_loop().sock_sendall(plug, REQUEST)
        await pool.asked.wait()
        assert (await client.get("/v1/models")).status == 200
        await asyncio.wait_for(pool.played[0].left.wait(), 10)
    assert "dropped" in await log.wait_for("stopped reading")
    await log.wait_for("status=499")


async def test_slow_reader_is_kept_when_it_reads_at_all(client: Any, pool: Any) -> None:
    """Reading slowly, but within the time-out, gets everything."""
    size = 3_000_000

    async def big(play: Any) -> None:
        await play.accept()
        for _ in range(30):
            await play.say("x" * (size // 30))
        await play.say(finish="stop")
        await play.done()

    pool.script = big
    response = await client.post(PATH, data=BODY, headers={"Content-Type": "application/json"})
    read = bytearray()
    while chunk := await response.content.read(500_000):
        read += chunk
        await asyncio.sleep(0.05)
    assert read.count(b"x") >= size
    assert read.endswith(b"data: [DONE]\n\n")
