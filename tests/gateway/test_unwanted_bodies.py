"""What strangers send that nobody asked for: it costs little, and they are told why in the one shape of errors."""

import asyncio
import gzip
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.access.keys.text import mint
from gateway.http import connection as http_connection
from gateway.http import listener
from gateway.http.connection import DISCARDED, HEAD_BYTES
from gateway.routes import docs
from gateway.telemetry.logs import TextLines
from tests.support.raw_clients import MASTER, RawSite, raw_site, wait_until

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
KEY = f"Authorization: Bearer {MASTER}\r\n".encode()
BOMB = gzip.compress(b"0" * 200_000_000, 9)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[RawSite]:
    async with raw_site(tmp_path) as one:
        yield one


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the gateway and aiohttp log."""
    kept: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(self.format(record))

    handler = Kept()
    handler.setFormatter(TextLines())
    loggers = [logging.getLogger(name) for name in ("gateway", "aiohttp")]
    for logger in loggers:
        logger.addHandler(handler)
    yield kept
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (CHAT, 415),
        (CHAT + KEY, 415),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\n", 415),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\n", 415),
    ],
    ids=["no key", "a key", "no such address", "GET"],
)
@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
async def test_compressed_body_is_never_unpacked_when_it_is_refused(
    site: RawSite, head: bytes, status: int, coding: bytes
) -> None:
    """200 MB of zeros in 200 KB cost no more than 200 KB, before and after the refusal."""
    began = time.process_time()
    answer = await site.send(head + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(BOMB)), BOMB)
    assert (answer.status, answer.error["code"]) == (status, "unsupported_media_type")
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (CHAT + b"Content-Length: 900000000\r\n\r\n", b"x" * 65536, 401),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000, 401),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n1;", b"extension" * 8000, 401),
        (b"POST /ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000, 401),
        (b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n", b"x" * 65536, 401),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n", b"x" * 65536, 401),
        (b"POST /v1/embed HTTP/1.0\r\nContent-Length: 900000000\r\n\r\n", b"x" * 65536, 401),
        (b"OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n", b"x" * 65536, 401),
    ],
    ids=["long", "tiny chunks", "chunk extension", "no such method", "HEAD", "GET", "HTTP/1.0", "OPTIONS"],
)
async def test_body_is_taken_up_to_a_bound_when_nobody_wants_it(
    site: RawSite, head: bytes, body: bytes, status: int
) -> None:
    """Its sender gets the refusal; then the connection ends, however much more would come."""
    reader, writer = await site.connect()
    sent = 0

    async def pour() -> None:
        nonlocal sent
        writer.write(head)
        while True:
            writer.write(body)
            await writer.drain()
            sent += len(body)

    pouring = asyncio.create_task(pour())
    data = bytearray()
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(65536):
                data += piece
            await wait_until(lambda: site.listener.count == 0)
    except ConnectionError:
        pass
    pouring.cancel()
    with pytest.raises((ConnectionError, asyncio.CancelledError)):
        await pouring
    assert data[9:12] == str(status).encode()
    # What the system itself keeps for a connection comes on top.
    assert sent < DISCARDED[0] + 8_000_000


async def test_connection_stays_when_the_unwanted_body_is_small(site: RawSite) -> None:
    """A refusal that comes before a body of a few bytes costs an ordinary client no connection."""
    reader, writer = await site.connect()
    for _ in range(3):
        writer.write(CHAT + b"Content-Length: 2\r\n\r\n")
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head[9:12] == b"401"
            assert b"connection: close" not in head.lower()
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.write(b"{}")


@pytest.mark.parametrize("length", [2, 900_000_000], ids=["small", "large"])
@pytest.mark.parametrize("head", [CHAT, b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + KEY], ids=["no key", "a key"])
async def test_unwanted_body_that_does_not_come_is_not_waited_for(
    site: RawSite, monkeypatch: pytest.MonkeyPatch, head: bytes, length: int
) -> None:
    """Its sender has the refusal at once, and then no connection."""
    monkeypatch.setattr(http_connection, "SMALL_S", 0.1)
    monkeypatch.setattr(http_connection, "DISCARDED", (DISCARDED[0], 0.1))
    monkeypatch.setattr(http_connection, "DISCARDED_OF_KNOWN", (http_connection.DISCARDED_OF_KNOWN[0], 0.1))
    reader, writer = await site.connect()
    writer.write(head + b"Content-Length: %d\r\n\r\n" % length)
    async with asyncio.timeout(10):
        assert (await reader.read())[9:12] in (b"401", b"404")
        await wait_until(lambda: site.listener.count == 0)


async def test_connection_is_closed_when_no_further_request_comes(
    site: RawSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a client with a key."""
    monkeypatch.setattr(http_connection, "KEEP_ALIVE_S", 0.1)
    reader, writer = await site.connect()
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n")
    async with asyncio.timeout(10):
        assert (await reader.read())[9:12] == b"200"
        await wait_until(lambda: site.listener.count == 0)


async def test_head_is_refused_when_it_goes_on(site: RawSite) -> None:
    """Request line and headers may be 32 KB, also where each line is a short one."""
    answer = await site.send(b"GET /ping HTTP/1.1\r\nHost: x\r\n", *[b"X-Filler: %b\r\n" % (b"a" * 4000)] * 20)
    assert answer.status == 431
    assert answer.error["code"] == "invalid_request"
    ordinary = [f"X-Filler-{at}: {'a' * 4000}" for at in range(HEAD_BYTES // 4000 - 1)]
    assert (await site.get("/ping", *ordinary)).status == 200


MALFORMED: dict[str, tuple[bytes, int]] = {
    "no method": (b"QUINCE /{key} HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01{key}\r\n\r\n", 400),
    "version": (b"GET /{key} HTTP/7.{key}\r\nHost: x\r\n\r\n", 400),
    "path": (b"GET /\x00{key} HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "header name": (b"GET / HTTP/1.1\r\nHost: x\r\nX {key}: 1\r\n\r\n", 400),
    "header value": (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer\x00{key}\r\n\r\n", 400),
    "header without colon": (b"GET / HTTP/1.1\r\nHost: x\r\n{key}\r\n\r\n", 400),
    "no host": (b"GET /{key} HTTP/1.1\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\nA: {key}\r\n\r\n", 400),
    "length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {key}\r\n\r\n", 400),
    "huge length": (b"POST /{key} HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    "both lengths": (
        b"POST /{key} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {key}\r\n\r\n", 400),
    "long line": (b"GET /{key}" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "long header": (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}" + b"a" * 9000 + b"\r\n\r\n", 431),
    "many headers": (b"GET /{key} HTTP/1.1\r\nHost: x\r\n" + b"X: {key}\r\n" * 200 + b"\r\n", 400),
    "expectation": (b"GET /ping HTTP/1.1\r\nHost: x\r\nExpect: {key}\r\n\r\n", 417),
    "port": (b"GET http://x:{key}/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "big port": (b"GET http://x:99999999/{key} HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "bracket": (b"GET http://[{key}/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "connect": (b"CONNECT {key}:x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_request_gets_a_json_error_and_one_line_when_it_holds_a_key(
    site: RawSite, lines: list[str], kind: str
) -> None:
    """400 with code, error id and request id; one line with that id, no byte of the key, no traceback."""
    text, status = MALFORMED[kind]
    _, key = mint()
    for secret in (key, MASTER):
        lines.clear()
        answer = await site.send(text.replace(b"{key}", secret.encode()))
        assert answer.status == status, answer.data
        error = answer.error
        assert set(error) == {"message", "type", "param", "code", "error_id"}
        assert (error["code"], error["type"]) == ("invalid_request", "invalid_request_error")
        assert answer.headers["content-type"].startswith("application/json")
        uuid.UUID(answer.headers["x-request-id"])
        assert len(lines) == 1, lines
        assert error["error_id"] in lines[0]
        assert answer.headers["x-request-id"] in lines[0]
        for part in (secret, secret[13:], secret[:9]):
            assert part not in lines[0]
            assert part not in answer.body.decode()
    assert site.listener.malformed.total() == 2


async def test_malformed_requests_are_counted_not_all_told_when_there_are_very_many(
    site: RawSite, lines: list[str]
) -> None:
    """A flood of them does not fill the disk."""
    await asyncio.gather(*(site.send(b"NONSENSE\r\n\r\n") for _ in range(60)))
    assert site.listener.malformed.total() == 60
    assert 20 <= len(lines) < 30


async def test_body_that_stops_being_http_is_refused_at_once_when_a_handler_waits_for_it(site: RawSite) -> None:
    """400, instead of a handler that waits for minutes for what can't come."""
    began = time.monotonic()
    answer = await site.send(CHAT + KEY + b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n', b"nonsense\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("key", "first"), [(b"", b"401"), (KEY, b"100")])
async def test_client_is_invited_to_send_its_body_only_when_its_key_is_good(
    site: RawSite, key: bytes, first: bytes
) -> None:
    """`Expect: 100-continue` is for asking first."""
    reader, writer = await site.connect()
    writer.write(CHAT + key + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await reader.readuntil(b"\r\n\r\n"))[9:12] == first
        if key:
            writer.write(b"{}")
            assert (await reader.readuntil(b"\r\n\r\n"))[9:12] == b"400"


async def test_reader_is_cut_off_when_it_reads_nothing_of_an_answer(
    site: RawSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger who asks for large pages and reads none keeps neither a place nor much memory."""
    monkeypatch.setattr(http_connection, "UNREAD_S", 0.2)
    _, writer = await site.connect()
    writer.write(b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await wait_until(lambda: site.listener.count == 1)
    [place] = site.listener.places
    await wait_until(lambda: place.connection is not None and place.connection.writing_paused)
    assert place.connection is not None
    assert place.connection.transport is not None
    assert place.connection.transport.get_write_buffer_size() < 200_000
    await wait_until(lambda: site.listener.count == 0)


async def test_docs_pages_come_whole_when_they_are_read(site: RawSite) -> None:
    """Byte for byte, with the right type."""
    folder = docs.PAGES
    for path, name, kind in (("/docs", "swagger.html", "text/html"), ("/docs/assets/redoc.standalone.js",) * 2 + ("",)):
        answer = await site.get(path)
        assert answer.status == 200
        assert answer.body == (folder / Path(name).name).read_bytes()
        assert answer.headers["content-type"].startswith(kind)


async def test_unwanted_bodies_are_taken_in_turns_when_many_senders_have_a_key(site: RawSite) -> None:
    """Each sender has its answer at once; a body that waits for its turn is not read, and costs the others nothing."""
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + KEY + b"Content-Length: 900000000\r\n\r\n"
    answers = []
    for _ in range(listener.DISCARDING):
        reader, writer = await site.connect()
        writer.write(head)
        answers.append((await reader.readexactly(12))[9:])
    reader, writer = await site.connect()
    writer.write(head)
    answers.append((await reader.readexactly(12))[9:])
    assert set(answers) == {b"404"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            while True:
                writer.write(bytes(1 << 20))
                await writer.drain()
    await site.close()
    async with asyncio.timeout(10):
        await wait_until(lambda: site.listener.count == 0)
