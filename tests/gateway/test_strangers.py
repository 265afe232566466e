"""Connections without a key: few places, the longest idle makes room, handshakes count from accept on."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.http import listener as module
from gateway.http.listener import BACKLOG, address_of, bind
from tests.support.raw_clients import MASTER, RawSite, make_certificate, raw_site, wait_until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
KEY = f"Authorization: Bearer {MASTER}\r\n".encode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[RawSite]:
    async with raw_site(tmp_path) as site:
        yield site


@pytest.fixture
async def secure(tmp_path: Path, certificate: tuple[Path, Path]) -> AsyncIterator[RawSite]:
    async with raw_site(tmp_path, tls=certificate) as site:
        yield site


@pytest.fixture(params=["plain", "tls"])
async def site(
    request: pytest.FixtureRequest, tmp_path: Path, certificate: tuple[Path, Path]
) -> AsyncIterator[RawSite]:
    async with raw_site(tmp_path, tls=certificate if request.param == "tls" else None) as one:
        yield one


async def ask(streams: Streams, path: bytes = b"/ping", head: bytes = b"") -> int:
    """The status of one request on a connection that stays."""
    reader, writer = streams
    writer.write(b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path, head))
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    return int(answer[9:12])


async def is_closed(streams: Streams) -> bool:
    """Whether the other side ends it, waited for."""
    try:
        async with asyncio.timeout(20):
            return await streams[0].read() == b""
    except ConnectionError:
        return True


async def test_handshake_that_never_ends_is_counted_and_ended(
    secure: RawSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From accept on it has a place, which is free again when its time is over; the log says so once."""
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.3)
    silent = [await secure.connect(tls=False) for _ in range(3)]
    await wait_until(lambda: secure.listener.count == 3)
    assert all([await is_closed(one) for one in silent])
    await wait_until(lambda: secure.listener.count == secure.listener.strangers == 0)
    assert secure.listener.failed_handshakes == {"timeout": 3}
    told = [one for one in caplog.records if "TLS handshake" in one.getMessage()]
    assert len(told) == 2  # of the first and of the second
    assert "127.0.0.1" in told[0].getMessage()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""])
async def test_place_is_given_back_when_a_handshake_fails(secure: RawSite, said: bytes) -> None:
    """At once, whether the client talks nonsense or leaves."""
    for _ in range(20):
        _, writer = await secure.connect(tls=False)
        writer.write(said)
        writer.close()
    await wait_until(lambda: secure.listener.failed_handshakes.total() == 20)
    await wait_until(lambda: secure.listener.count == secure.listener.strangers == 0)
    assert await ask(await secure.connect()) == 200


async def test_new_client_is_served_when_strangers_hold_every_place(
    site: RawSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of handshakes or of heads, or idle after an answer: the longest idle is closed for the next."""
    monkeypatch.setattr(module, "STRANGERS", 6)
    monkeypatch.setattr(module, "STRANGERS_TLS", 6)
    monkeypatch.setattr(module, "SETTLED_S", 0.1)
    first = await site.connect()
    assert await ask(first) == 200
    held = []
    for _ in range(5):
        held.append(await site.connect(tls=False))
        held[-1][1].write(b"\x16\x03" if site.listener.tls else b"GET / HT")
    for _ in range(6):
        assert await ask(await site.connect()) == 200
    assert site.listener.strangers <= 6
    assert site.listener.evictions == 6
    assert await is_closed(first)
    assert all([await is_closed(one) for one in held])


async def test_client_with_a_key_stays_when_strangers_flood(site: RawSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has shown a valid key once is no stranger, however long idle."""
    monkeypatch.setattr(module, "STRANGERS", 4)
    monkeypatch.setattr(module, "STRANGERS_TLS", 4)
    monkeypatch.setattr(module, "SETTLED_S", 0.05)
    known = await site.connect()
    assert await ask(known, b"/v1/models", KEY) == 200
    assert site.listener.strangers == 0
    guesser = await site.connect()
    assert await ask(guesser, b"/v1/models", b"X-API-Key: nonsense\r\n") == 401
    assert site.listener.strangers == 1
    for _ in range(12):
        assert await ask(await site.connect()) == 200
    assert await is_closed(guesser)
    assert await ask(known, b"/v1/models", KEY) == 200


async def test_crowd_waits_instead_of_being_refused_when_it_comes_at_once(
    plain: RawSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients with good keys at the same moment: each is served, none refused."""
    monkeypatch.setattr(module, "STRANGERS", 4)

    async def visit() -> int:
        return await ask(await plain.connect(), b"/v1/models", KEY)

    assert set(await asyncio.gather(*(visit() for _ in range(60)))) == {200}
    assert plain.listener.refusals == 0


async def test_idle_client_makes_room_when_all_descriptors_are_taken(
    plain: RawSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those with a key the one that has been idle longest, never one whose request runs."""
    monkeypatch.setattr(module, "SETTLED_S", 0.05)
    known = [await plain.connect() for _ in range(3)]
    for one in known:
        assert await ask(one, b"/v1/models", KEY) == 200
    plain.listener.most = 3
    await asyncio.sleep(0.06)
    assert await ask(await plain.connect(), b"/v1/models", KEY) == 200
    assert await is_closed(known[0])
    assert await ask(known[1], b"/v1/models", KEY) == 200


async def test_one_address_gets_half_of_the_places_when_it_is_no_proxy(plain: RawSite) -> None:
    """The rest is left for others; a trusted proxy, which speaks for many, may have all."""
    plain.listener.most = 8
    plain.listener.proxies = ()
    open_ones = [await plain.connect() for _ in range(4)]
    for one in open_ones:
        assert await ask(one, b"/v1/models", KEY) == 200
    fifth = await plain.connect()
    assert await ask(fifth, b"/v1/models", KEY) == 503
    plain.listener.proxies = (ipaddress.ip_network("127.0.0.1"),)
    assert await ask(await plain.connect(), b"/v1/models", KEY) == 200


async def test_address_that_has_half_of_the_places_makes_room_itself(
    plain: RawSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, so that others need not wait behind it."""
    monkeypatch.setattr(module, "STRANGERS", 4)
    monkeypatch.setattr(module, "SETTLED_S", 60.0)
    plain.listener.proxies = ()
    first = [await plain.connect() for _ in range(4)]
    await wait_until(lambda: plain.listener.strangers == 4)
    assert await ask(await plain.connect()) == 200
    assert await is_closed(first[0])


async def test_port_in_use_is_named_when_it_is_listened_on() -> None:
    """An `OSError` that says where; nothing stays open. Another one can be had."""
    [first] = await bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(OSError, match=rf"--port: {port} is in use on 127\.0\.0\.1"):
        await bind("127.0.0.1", port)
    first.close()
    both = await bind("localhost", 0)
    assert {one.family for one in both} <= {socket.AF_INET, socket.AF_INET6}
    assert BACKLOG >= 1024
    for one in both:
        one.close()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("10.0.0.1", 5), "10.0.0.1"),
        (("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::1"),
        ("", "local"),
    ],
)
def test_address_is_written_one_way(peer: object, address: str) -> None:
    """Whatever kind of socket it came to."""
    assert address_of(peer) == address


async def test_old_versions_of_tls_are_refused(secure: RawSite) -> None:
    """1.2 is the oldest one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert context.minimum_version
    assert secure.listener.tls is not None
    assert secure.listener.tls.minimum_version >= ssl.TLSVersion.TLSv1_2
