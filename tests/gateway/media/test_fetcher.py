"""Fetching from a server that plays a public one: what is taken, what is not, and where it ends."""

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from gateway.media.fetcher import UNREACHABLE, Fetcher, FetchLimits
from gateway.media.image_resolver import ImageResolver
from gateway.media.inline import ImageFile
from gateway.media.remote_urls import UrlRules
from gateway.memory_account import MemoryAccount
from gateway.schema.errors import ApiError
from gateway.schema.parts.bounds import MAX_IMAGE_BYTES
from gateway.schema.parts.image_references import ImageReference
from protocol.messages import Image
from tests.support.picture_files import padded, picture
from tests.support.remote_servers import Names, PublicHost, answering

PNG = picture()
Connect = Callable[..., Awaitable["Client"]]


class Client:
    """A fetcher that takes `public` for a public server, under the name `public.example`."""

    def __init__(
        self, public: PublicHost, limits: FetchLimits, *, port: int, domains: tuple[str, ...] | None = None
    ) -> None:
        names = Names(public_example=[[public.address]], cdn_public_example=[[public.address]])
        rules = UrlRules(ports=(port,), domains=domains)
        self.fetcher = Fetcher(rules, limits=limits, lookup=names, allowed=public.address.__eq__)
        self.gallery = ImageResolver(remote=self.fetcher)
        self.port = port

    def url(self, path: str, host: str = "public.example") -> str:
        return f"http://{host}:{self.port}{path}"

    async def get(self, path: str, host: str = "public.example") -> ImageFile:
        return await self.fetcher.fetch_image(self.url(path, host), "p", lambda _size: None)

    async def refused(self, path: str, host: str = "public.example") -> ApiError:
        with pytest.raises(ApiError) as raised:
            async with self.gallery.resolve_images(
                [ImageReference(where="p", url=self.url(path, host))], MemoryAccount().open_share("")
            ):
                pass
        assert raised.value.param == "p"
        assert self.gallery.held_bytes == 0
        return raised.value


@pytest.fixture
async def public() -> AsyncIterator[PublicHost]:
    async with PublicHost().listening() as listening:
        yield listening


@pytest.fixture
async def connect(public: PublicHost) -> AsyncIterator[Connect]:
    """Makes open clients with limits of their own."""
    made: list[Client] = []

    async def make(*, port: int = 0, domains: tuple[str, ...] | None = None, **limits: float) -> Client:
        bounds = FetchLimits(**limits)  # type: ignore[arg-type]
        client = Client(public, bounds, port=port or public.port, domains=domains)
        await client.fetcher.open()
        made.append(client)
        return client

    yield make
    for client in made:
        await client.fetcher.close()


async def test_a_file_is_fetched_with_its_digest_and_nothing_of_ours(public: PublicHost, connect: Connect) -> None:
    """Plain GETs: no cookie, no referrer, no authorization, no compression asked for; signatures stay as written."""
    public.serve("/set", answering(PNG, headers={"Set-Cookie": "id=1"}))
    client = await connect()
    assert await client.get("/set") == ImageFile(PNG, hashlib.sha256(PNG).digest())
    await client.get("/set?sig=a%2Fb%7Ec+d%20e&x=%41")
    first, second = public.requests
    assert second.raw_path == "/set?sig=a%2Fb%7Ec+d%20e&x=%41"
    for request in (first, second):
        assert request.method == "GET"
        assert not {"Cookie", "Referer", "Authorization"} & request.headers.keys()
        assert request.headers["Accept-Encoding"] == "identity"
    assert client.fetcher.counts == {"done": 2, "refused": 0, "failed": 0}


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    public: PublicHost, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the operator's shell says about proxies is not for addresses that strangers choose."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    public.files(a_png=PNG)
    assert (await (await connect()).get("/a.png")).data == PNG


@pytest.mark.parametrize("media", ["text/html", "application/octet-stream", "image/svg+xml", ""])
async def test_a_file_is_taken_for_what_it_is_when_its_type_says_otherwise(
    public: PublicHost, connect: Connect, media: str
) -> None:
    """Bytes decide."""
    public.serve("/a", answering(PNG, headers={"Content-Type": media}))
    client = await connect()
    async with client.gallery.resolve_images(
        [ImageReference(where="p", url=client.url("/a"))], MemoryAccount().open_share("")
    ) as album:
        assert album.images == [Image(0, hashlib.sha256(PNG).digest())]


@pytest.mark.parametrize(
    "body",
    [b"<html><body>secret words</body></html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"secret words", b""],
)
async def test_a_body_is_refused_when_it_is_no_image(public: PublicHost, connect: Connect, body: bytes) -> None:
    """Whatever type it is called, and none of it is passed on."""
    public.serve("/a", answering(body, headers={"Content-Type": "image/png"}))
    error = await (await connect()).refused("/a")
    assert (error.status, error.message) == (400, "The image is not a PNG, JPEG, WebP or GIF file.")


@pytest.mark.parametrize("status", [201, 204, 300, 304, 400, 401, 403, 404, 418, 500, 503])
async def test_only_the_status_is_told_when_a_server_refuses(public: PublicHost, connect: Connect, status: int) -> None:
    """Not its words."""
    public.serve("/a", answering(b"" if status in (204, 304) else b"secret words", status=status))
    error = await (await connect()).refused("/a")
    assert (error.status, str(status) in error.message, "secret" in error.message) == (400, True, False)


async def test_a_file_is_refused_when_it_is_too_large(public: PublicHost, connect: Connect) -> None:
    """20 MB are fetched; more is a 413, by its announced length without reading, or where the reading gets there."""
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1 << 20))
            sent += 1

    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(1 << 40)})
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    public.serve("/endless", endless)
    public.serve("/huge", huge)
    public.files(most_png=padded(MAX_IMAGE_BYTES), more_png=padded(MAX_IMAGE_BYTES + 1))
    client = await connect(total_s=30.0)
    assert len((await client.get("/most.png")).data) == MAX_IMAGE_BYTES
    for path in ("/more.png", "/huge", "/endless"):
        assert (await client.refused(path)).status == 413, path
    assert sent < 40


async def test_a_compressed_body_is_not_unpacked(public: PublicHost, connect: Connect) -> None:
    """20 KB that would become 20 MB stay 20 KB, which are no image."""
    bomb = gzip.compress(padded(20 << 20))
    public.serve("/a", answering(bomb, headers={"Content-Encoding": "gzip"}))
    client = await connect()
    assert (await client.get("/a")).data == bomb
    assert (await client.refused("/a")).status == 400


async def test_a_fetch_ends_when_its_time_is_over(public: PublicHost, connect: Connect) -> None:
    """A server that says nothing, and one that says it byte by byte, redirects included."""

    async def silent(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"\x89")
            await asyncio.sleep(0.01)

    public.serve("/silent", silent)
    public.serve("/drip", drip)
    public.redirect("/to-drip", "/drip")
    client = await connect(total_s=0.3)
    for path in ("/silent", "/drip", "/to-drip"):
        async with asyncio.timeout(10):
            assert "in time" in (await client.refused(path)).message
    assert client.fetcher.counts["failed"] == 3


async def test_a_server_is_unreachable_when_it_breaks_off_or_talks_nonsense(
    public: PublicHost, connect: Connect
) -> None:
    """Whatever is wrong with it, the words are the same."""

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readline()
        if b"nonsense" in request:
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        if b"short" in request:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n\x89PNG")
        if b"long" in request:
            writer.write(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, public.address, 0)
    client = await connect(port=server.sockets[0].getsockname()[1])
    for path in ("/nothing", "/nonsense", "/short", "/long"):
        assert (await client.refused(path)).message == UNREACHABLE, path
    server.close()
    await server.wait_closed()
    assert (await client.refused("/gone")).message == UNREACHABLE


async def test_a_host_is_refused_when_it_is_not_in_the_list(public: PublicHost, connect: Connect) -> None:
    """A domain stands for itself and for what is below it, not for names that only end like it."""
    public.files(a_png=PNG)
    client = await connect(domains=("public.example",))
    for host in ("public.example", "PUBLIC.example", "cdn.public.example", "public.example."):
        assert (await client.get("/a.png", host)).data == PNG
    for host in ("notpublic.example", "example", "public.example.evil.example", "evil.example", public.address):
        shown = f"[{host}]" if ":" in host else host
        assert (await client.refused("/a.png", shown)).status == 400
    public.redirect("/away", f"http://public.example.evil.example:{public.port}/a.png")
    assert (await client.refused("/away")).message == UNREACHABLE
    assert len(public.requests) == 5


async def test_a_server_sees_its_client_leave_when_a_fetch_is_cancelled(public: PublicHost, connect: Connect) -> None:
    """Nothing is fetched for somebody who is gone."""
    came, left = asyncio.Event(), asyncio.Event()

    async def wait(_request: web.Request) -> web.StreamResponse:
        came.set()
        try:
            await asyncio.sleep(60)
        finally:
            left.set()
        return web.Response()

    public.serve("/a", wait)
    client = await connect()
    task = asyncio.create_task(client.get("/a"))
    await came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        await left.wait()
    assert client.fetcher.counts.total() == 0


async def test_fetches_take_turns_when_too_many_are_wanted(public: PublicHost, connect: Connect) -> None:
    """A tenant has half of all at once; who waits in vain is told to come again, not that the image is bad."""
    running, most = 0, 0
    gate = asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return web.Response(body=PNG)

    public.serve("/a", slow)
    client = await connect(at_once=4, wait_s=0.2, total_s=30.0)
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(6)]
    waiting = {*tasks}
    while len(waiting) > 2:
        waiting = (await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))[1]
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [found.status for found in results if isinstance(found, ApiError)] == [429] * 4
    assert [found.data for found in results if isinstance(found, ImageFile)] == [PNG] * 2
    assert {(await client.get("/a")).data for _ in range(6)} == {PNG}
    assert most == 2


async def test_memory_is_bounded_when_large_files_come_together(public: PublicHost, connect: Connect) -> None:
    """What is held is counted while it arrives: over the bound, a request is told to come again."""
    public.files(large_png=padded(5_000_000))
    client = await connect()
    gallery, account = ImageResolver(remote=client.fetcher), MemoryAccount(9_000_000)
    picture = [ImageReference(where="p", url=client.url("/large.png"))]
    async with gallery.resolve_images(picture, account.open_share("one")):
        with pytest.raises(ApiError) as raised:
            async with gallery.resolve_images(picture, account.open_share("two")):
                pass
        assert (raised.value.status, account.held_bytes, gallery.held_bytes) == (429, 5_000_000, 5_000_000)
    assert (account.held_bytes, account.refused) == (0, 1)


async def test_request_is_refused_for_good_when_its_images_never_fit(public: PublicHost, connect: Connect) -> None:
    """A 413: coming again would not help."""
    public.files(large_png=padded(5_000_000))
    client = await connect()
    with pytest.raises(ApiError) as raised:
        async with client.gallery.resolve_images(
            [ImageReference(where="p", url=client.url("/large.png"))], MemoryAccount(6_000_000).open_share("")
        ):
            pass
    assert (raised.value.status, raised.value.retry_after_s) == (413, None)


async def test_slow_servers_of_one_tenant_leave_places_for_others(public: PublicHost, connect: Connect) -> None:
    """A hundred fetches that never end, by one tenant: another one's image comes at once."""
    came, gate = asyncio.Semaphore(0), asyncio.Event()

    async def stall(_request: web.Request) -> web.StreamResponse:
        came.release()
        await gate.wait()
        return web.Response(body=PNG)

    public.serve("/slow", stall)
    public.files(a_png=PNG)
    client = await connect(at_once=8, wait_s=30.0, total_s=30.0)
    fetch, hold = client.fetcher.fetch_image, lambda _size: None
    slow = [asyncio.create_task(fetch(client.url("/slow"), "p", hold, tenant="a")) for _ in range(100)]
    for _ in range(4):
        await came.acquire()
    async with asyncio.timeout(60):
        assert (await fetch(client.url("/a.png"), "p", hold, tenant="b")).data == PNG
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    gate.set()
    await asyncio.gather(*slow, return_exceptions=True)


@pytest.mark.parametrize("limits", [{"silence_s": 0.3}, {"patience_s": 0.3}])
async def test_a_server_is_given_up_when_it_is_silent_or_drips(
    public: PublicHost, connect: Connect, limits: dict[str, float]
) -> None:
    """Long before the time of a whole fetch is over."""

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(PNG[:9])
        while "patience_s" in limits:
            await response.write(b"x")
            await asyncio.sleep(0.05)
        await asyncio.sleep(60)
        return response

    public.serve("/a", drip)
    client = await connect(total_s=60.0, **limits)
    async with asyncio.timeout(10):
        assert "in time" in (await client.refused("/a")).message
