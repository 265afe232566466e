"""Connections: how many there may be, and how long one may say nothing."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import cast

import pytest
from aiohttp import ClientSession, web

from gateway.http import connection as http_connection
from gateway.http.listener import TOLD, Listener
from gateway.http.middleware import answer_errors

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """A listening application that answers `ok`, and its clients."""

    def __init__(self) -> None:
        self.listener = Listener()
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def ask(self, streams: Streams) -> tuple[int, bytes]:
        """Status and body of one request."""
        reader, writer = streams
        writer.write(ASK)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head[9:12]), await reader.readexactly(length)

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()

    async def settled(self, count: int) -> None:
        """Until so many connections are open."""
        async with asyncio.timeout(10):
            while self.listener.count != count:  # noqa: ASYNC110 - the other side closes
                await asyncio.sleep(0.005)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async def ok(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application(middlewares=[answer_errors])
    app.router.add_get("/", ok)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    one = Site()
    address = await one.listener.open(cast("web.Server", runner.server), "127.0.0.1", 0, None)
    assert address.startswith("http://127.0.0.1:")
    one.port = int(address.rsplit(":", 1)[1])
    yield one
    await one.close()
    one.listener.close()
    await runner.cleanup()
    assert one.listener.count == 0


async def test_connection_is_refused_in_words_when_there_are_too_many(site: Site) -> None:
    """Those before it go on; as soon as one of them has left there is room again."""
    site.listener.most = 3
    first = [await site.connect() for _ in range(3)]
    late = await site.connect()
    status, text = await site.ask(late)
    assert (status, json.loads(text)["error"]["code"]) == (503, "too_many_connections")
    assert await late[0].read() == b""
    assert site.listener.refusals == 1
    assert [await site.ask(one) for one in first] == [(200, b"ok")] * 3
    first[0][1].close()
    await site.settled(2)
    assert await site.ask(await site.connect()) == (200, b"ok")


async def test_connection_is_closed_unheard_when_there_are_far_too_many(site: Site) -> None:
    """Even refusals take descriptors, so only some are told."""
    site.listener.most = 1
    first, *_others = [await site.connect() for _ in range(1 + TOLD)]
    last = await site.connect()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await site.ask(last)
    assert await site.ask(first) == (200, b"ok")


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHo"], ids=["nothing", "half a head"])
async def test_connection_is_closed_when_its_first_request_does_not_come(
    site: Site, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever only connects does not stay; who has asked once may ask again much later."""
    monkeypatch.setattr(http_connection, "FIRST_REQUEST_S", 0.1)
    reader, writer = await site.connect()
    regular = await site.connect()
    assert await site.ask(regular) == (200, b"ok")
    writer.write(said)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    assert await site.ask(regular) == (200, b"ok")


async def test_refused_connection_that_says_nothing_makes_room_soon(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or idle ones would keep others from being told."""
    monkeypatch.setattr(http_connection, "REFUSAL_S", 0.1)
    site.listener.most = 1
    await site.connect()
    reader, _ = await site.connect()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    assert site.listener.count == 1


def test_gateway_asks_for_the_descriptors_that_it_may_have() -> None:
    """A shell on macOS gives a program 256; the limit above that is for the program to use."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2048));"
        "from gateway.http.listener import raise_limit;"
        "print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2048 (2048, 2048)"


async def test_new_client_is_served_when_another_holds_all_idle_places(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unmodified HTTP client gets its answer once the silent ones' time is over."""
    monkeypatch.setattr(http_connection, "FIRST_REQUEST_S", 0.2)
    site.listener.most = 4
    for _ in range(4):
        await site.connect()
    async with asyncio.timeout(10), ClientSession() as session:
        while (await session.get(f"http://127.0.0.1:{site.port}/")).status != 200:  # noqa: ASYNC110 - time is the event
            await asyncio.sleep(0.02)
