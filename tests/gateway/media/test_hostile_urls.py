"""URLs that mean harm: each is refused in the same words, fast, and a real server on loopback sees nobody come."""

import re
import socket
import time
from collections.abc import AsyncIterator

import pytest

from gateway.media.fetcher import UNREACHABLE, Fetcher
from gateway.media.lookup import SystemLookup
from gateway.media.remote_urls import UrlRules
from gateway.schema.errors import ApiError
from tests.support.picture_files import picture
from tests.support.remote_servers import TRAP, Names, PublicHost, Trap

ADDRESSES = [
    "127.0.0.1", "127.0.0.2", "127.255.255.254", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "017700000001",
    "0x7f000001", "0x7f.1", "0x7F.0.0.1", "0177.0.0.1", "0177.0.0.01", "127.0.0.1.", "127.1.", "2130706433.",
    "00000127.0.0.1", "127.0.0.0x1", "4294967297", "127.0.0.1.0x0", "1.2.3.4.5", "10.0.0.1", "192.168.1.1",
    "172.16.0.1", "100.64.0.1", "169.254.169.254", "2852039166", "0xA9FEA9FE", "100.100.100.200", "168.63.129.16",
    "192.0.0.192", "224.0.0.1", "255.255.255.255",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]",
    "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]",
    "[fe80::1]", "[fe80::1%25lo]", "[::1%25lo]", "[fd00:ec2::254]", "[fc00::1]", "[ff02::1]",
    "[::ffff:169.254.169.254]",
]  # fmt: skip
NAMES = [
    "localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "x.localhost", "x.LocalHost.", "localhost6",
    "ip6-localhost", "metadata", "metadata.google.internal", "broadcasthost", "kubernetes.default.svc",
    "internal.example", "mapped.example", "mixed.example", "mixed6.example", "metadata.example", "nobody.example",
]  # fmt: skip
KNOWN = Names(
    localhost_localdomain=[["127.0.0.1"]],
    x_localhost=[["::1", "127.0.0.1"]],
    kubernetes_default_svc=[["10.96.0.1"]],
    internal_example=[["127.0.0.1"]],
    mapped_example=[["::ffff:127.0.0.1"]],
    mixed_example=[["93.184.216.34", "127.0.0.1"]],
    mixed6_example=[["2606:4700::1111", "::1"]],
    metadata_example=[["169.254.169.254"]],
    metadata_google_internal=[["169.254.169.254"]],
)
TRICKS = [
    "http://user@127.0.0.1:{port}/", "http://user:word@127.0.0.1:{port}/", "http://@127.0.0.1:{port}/",
    "http://93.184.216.34@127.0.0.1:{port}/", "http://127.0.0.1:{port}@93.184.216.34/",
    "http://93.184.216.34\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@93.184.216.34/",
    "http://93.184.216.34#@127.0.0.1:{port}/", "http://93.184.216.34?@127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}\\", "http:///127.0.0.1:{port}/", "http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/",
    "//127.0.0.1:{port}/", "127.0.0.1:{port}/", "http://127.0.0.1:{port}\t/", "ht\ntp://127.0.0.1:{port}/",
    " http://127.0.0.1:{port}/", "http://127.0.0.1 :{port}/", "http://127.0.0.1%00.example:{port}/",
    "http://127.0.0.1\x00.example:{port}/", "http://%31%32%37.0.0.1:{port}/", "http://127%2e0%2e0%2e1:{port}/",
    "http://１２７.０.０.１:{port}/", "http://127。0。0。1:{port}/", "http://①②⑦.0.0.1:{port}/", "http://ⓛocalhost:{port}/",
    "http://locaſhost:{port}/", "http://[::1:{port}/", "http://::1:{port}/", "http://[127.0.0.1]:{port}/",
    "http://127.0.0.1:{port}:80/", "http://127.0.0.1:0{port}/", "http://127.0.0.1:99999/", "http://127.0.0.1:-1/",
    "http://127.0.0.1:{port}/\r\nHost: a.example", "http://a.example\r\n\r\n@127.0.0.1:{port}/",
    "file:///etc/passwd", "file://localhost/etc/passwd", "file://127.0.0.1:{port}/", "/etc/passwd", "../../etc/passwd",
    "C:\\Windows\\win.ini", "\\\\127.0.0.1\\share", "ftp://127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/_GET",
    "dict://127.0.0.1:{port}/", "ldap://127.0.0.1:{port}/", "ws://127.0.0.1:{port}/", "jar:http://127.0.0.1:{port}/!/",
    "javascript:fetch('http://127.0.0.1:{port}')", "blob:http://127.0.0.1:{port}/1", "about:blank", "unix:///tmp/x",
    "view-source:http://127.0.0.1:{port}/", "url:http://127.0.0.1:{port}/", "http://", "https://", "http", "x", "http://.:{port}/",
    "http://-.example:{port}/", "http://" + "a" * 300 + ".example:{port}/", "http://a.example:{port}/" + "x" * 9000,
]  # fmt: skip
HOSTILE = [
    *(f"http://{host}:{{port}}/secret.png" for host in (*ADDRESSES, *NAMES)),
    *(f"https://{host}:{{port}}/" for host in ("127.0.0.1", "[::1]", "localhost", "internal.example")),
    *TRICKS,
]


async def lookup(host: str, port: int) -> list[str]:
    """Numbers as the C library reads them, `localhost` as this machine does, everything else from `KNOWN`."""
    if host.removesuffix(".").lower() == "localhost":
        return await SystemLookup()(host, port)
    if re.fullmatch(r"[0-9a-fx.:]+", host, re.IGNORECASE):
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)]
    return await KNOWN(host, port)


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    async with Trap().listening() as listening:
        yield listening


@pytest.fixture
async def public() -> AsyncIterator[PublicHost]:
    async with PublicHost().listening() as listening:
        yield listening


async def refusal(fetcher: Fetcher, url: str) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await fetcher.fetch_image(url, "messages[0].content[0].image_url.url", lambda _size: None)
    assert (raised.value.status, raised.value.param) == (400, "messages[0].content[0].image_url.url")
    return raised.value


async def test_nobody_comes_when_a_url_points_to_this_machine(trap: Trap) -> None:
    """Each of the table's URLs is a 400 that waits for no network, and the trap on both loopbacks was never called.

    The port is one that images may be fetched from: it is the address that is refused.
    """
    assert len(HOSTILE) > 100
    fetcher = Fetcher(UrlRules(ports=(trap.port,)), lookup=lookup)
    await fetcher.open()
    slow = {}
    for template in HOSTILE:
        url = template.replace("{port}", str(trap.port))
        began = time.monotonic()
        await refusal(fetcher, url)
        if (took_s := time.monotonic() - began) > 10:
            slow[url] = took_s
        assert trap.connections == 0, url
    assert not slow
    await trap.knock()
    assert fetcher.counts["done"] == 0
    await fetcher.close()


async def test_the_trap_catches_when_addresses_are_not_checked(trap: Trap) -> None:
    """The table is worth something: without the check, somebody comes."""
    fetcher = Fetcher(UrlRules(ports=(trap.port,)), lookup=lookup, allowed=lambda _address: True)
    await fetcher.open()
    for host in (TRAP, "internal.example"):
        before = trap.connections
        await fetcher.fetch_image(f"http://{host}:{trap.port}/", "p", lambda _size: None)
        assert trap.connections > before
    await fetcher.close()


async def test_refusals_are_alike_when_an_address_is_private_or_a_name_unknown(trap: Trap) -> None:
    """Nobody learns from the answer what there is in our network."""
    fetcher = Fetcher(UrlRules(ports=(trap.port,)), lookup=lookup)
    await fetcher.open()
    hosts = ("127.0.0.1", "10.0.0.1", "[::1]", "internal.example", "nobody.example", "mixed.example", "x.localhost")
    messages = {(await refusal(fetcher, f"http://{host}:{trap.port}/")).message for host in hosts}
    assert messages == {UNREACHABLE}
    await fetcher.close()


async def test_a_name_gains_nothing_when_it_changes_its_mind(trap: Trap, public: PublicHost) -> None:
    """Looked up once, connected to what was looked at; the next request is refused for the next answer."""
    public.files(a_png=picture())
    names = Names(rebinding_example=[[public.address], [TRAP]])
    rules = UrlRules(ports=(public.port, trap.port))
    fetcher = Fetcher(rules, lookup=names, allowed=public.address.__eq__)
    await fetcher.open()
    assert (await fetcher.fetch_image(f"http://rebinding.example:{public.port}/a.png", "p", lambda _size: None)).data
    assert names.asked == ["rebinding.example"]
    assert (await refusal(fetcher, f"http://rebinding.example:{trap.port}/a.png")).message == UNREACHABLE
    assert trap.connections == 0
    await fetcher.close()


LOCATIONS = [
    "http://127.0.0.1:{trap}/", "//127.0.0.1:{trap}/", "http://localhost:{trap}/", "http://internal.example:{trap}/",
    "http://[::ffff:127.0.0.1]:{trap}/", "http://2130706433:{trap}/", "http://user@public.example:{public}/a.png",
    "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "ftp://127.0.0.1:{trap}/",
    "data:image/png;base64,AAAA", "javascript:1", "http://public.example:1/", "", "http://", "\\\\127.0.0.1\\",
    "http://public.example:{public}\\@127.0.0.1:{trap}/",
]  # fmt: skip


async def test_nobody_comes_when_a_public_server_redirects(trap: Trap, public: PublicHost) -> None:
    """Every hop is checked as the first URL was, and the refusal does not tell where it led."""
    names = Names(public_example=[[public.address]], internal_example=[[TRAP]], localhost=[[TRAP]])
    rules = UrlRules(ports=(80, public.port, trap.port))
    fetcher = Fetcher(rules, lookup=names, allowed=public.address.__eq__)
    await fetcher.open()
    for status in (301, 307):
        for location in LOCATIONS:
            target = location.replace("{trap}", str(trap.port)).replace("{public}", str(public.port))
            public.redirect("/away", target, status)
            error = await refusal(fetcher, f"http://public.example:{public.port}/away")
            assert error.message == UNREACHABLE, location
            assert trap.connections == 0, location
    await trap.knock()
    await fetcher.close()


async def test_a_redirect_is_followed_when_it_leads_to_a_public_place(public: PublicHost) -> None:
    """Three times, relative and absolute; a fourth is one too many."""
    public.files(a_png=picture())
    public.redirect("/3", "/a.png")
    public.redirect("/2", "3", 307)
    public.redirect("/1", f"http://public.example:{public.port}/2", 301)
    public.redirect("/0", "/1", 308)
    public.redirect("/round", "/round")
    fetcher = Fetcher(
        UrlRules(ports=(public.port,)),
        lookup=Names(public_example=[[public.address]]),
        allowed=public.address.__eq__,
    )
    await fetcher.open()
    base = f"http://public.example:{public.port}"
    assert (await fetcher.fetch_image(f"{base}/1", "p", lambda _size: None)).data == picture()
    for path in ("/0", "/round"):
        assert (await refusal(fetcher, base + path)).message == UNREACHABLE
    assert len([request for request in public.requests if request.path == "/round"]) == 4
    await fetcher.close()
