"""Whose request it is: the client's address behind proxies, and the page of a browser that sends it."""

import ipaddress
from pathlib import Path
from unittest import mock

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.access.audit import FILE
from gateway.access.connection import HOPS, Connections
from tests.support.guarded_app import MASTER, Client, bearer, guarded

PROXIES = tuple(map(ipaddress.ip_network, ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32")))


@pytest.mark.parametrize(
    ("peer", "said", "address"),
    [
        ("203.0.113.1", [], "203.0.113.1"),
        ("203.0.113.1", ["198.51.100.7"], "203.0.113.1"),  # no proxy of ours: it may say what it likes
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["1.2.3.4, 198.51.100.7"], "198.51.100.7"),  # what stands left of it a client may have written
        ("127.0.0.1", ["1.2.3.4, 198.51.100.7, 10.1.1.1"], "198.51.100.7"),
        ("127.0.0.1", ["1.2.3.4", "198.51.100.7", "10.1.1.1"], "198.51.100.7"),
        ("127.0.0.1", ["10.9.9.9,10.1.1.1"], "10.9.9.9"),
        ("127.0.0.1", ["1.2.3.4, nonsense, 10.1.1.1"], "10.1.1.1"),
        ("127.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("127.0.0.1", ["[2001:dead::1]:4711"], "2001:dead::1"),
        ("2001:db8::1", ["2001:DEAD:0::1"], "2001:dead::1"),
        ("::ffff:127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["1.2.3.4," * 500 + "\tmlx_secret"], "127.0.0.1"),
        ("127.0.0.1", ["10.1.1.1," * 5000], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.7" + ", 10.1.1.1" * (HOPS - 1)], "198.51.100.7"),
        ("127.0.0.1", ["198.51.100.7" + ", 10.1.1.1" * HOPS], "10.1.1.1"),  # farther back nobody looks
    ],
)
def test_client_is_who_the_nearest_trusted_proxy_says(peer: str, said: list[str], address: str) -> None:
    """From right to left, as far as proxies are ours; what is no address is not believed."""
    transport = mock.Mock()
    transport.get_extra_info = lambda name, _default=None: (peer, 5) if name == "peername" else None
    headers = [("X-Forwarded-For", text) for text in said]
    request = make_mocked_request("GET", "/", headers=dict(headers[:1]), transport=transport)
    if len(headers) > 1:
        from multidict import CIMultiDict

        request = make_mocked_request("GET", "/", headers=CIMultiDict(headers), transport=transport)  # type: ignore[arg-type]
    assert Connections(proxies=PROXIES).find_client(request) == address


async def test_addresses_are_in_request_lines_and_the_audit_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a request came from, as far as it can be trusted."""
    from gateway.telemetry.logs import TextLines

    lines: list[str] = []
    caplog.set_level("INFO", "gateway")
    caplog.handler.setFormatter(TextLines())
    with mock.patch.object(caplog.handler, "emit", lambda record: lines.append(caplog.handler.format(record))):
        async with guarded(tmp_path, trusted_proxies=PROXIES) as client:
            headers = {**bearer(MASTER), "X-Forwarded-For": "9.9.9.9, 198.51.100.7", "X-Request-ID": "r1"}
            assert (await client.post("/admin/cache/clear", headers=headers)).status == 200
    ends = [line for line in lines if "Request completed: POST /admin/cache/clear" in line]
    assert [line.endswith("[request_id=r1] [client=198.51.100.7] [key=master]") for line in ends] == [True]
    [act] = map(orjson.loads, (tmp_path / "data" / FILE).read_bytes().splitlines())
    assert (act["act"], act["client"]) == ("cache.clear", "198.51.100.7")
    assert (tmp_path / "data" / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"Origin": "{own}"}, 200),
        ({"Origin": "{own}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "https://127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:3000", "Content-Type": "text/plain"}, 403),
        ({"Origin": "http://127.0.0.1:3000", "Content-Type": "application/x-www-form-urlencoded"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/admin/cache/clear", "/admin/models/x/load", "/admin/api-keys", "/v1/embeddings"])
async def test_page_of_another_local_port_changes_nothing_in_development(
    tmp_path: Path, headers: dict[str, str], status: int, path: str
) -> None:
    """Where nobody is asked for a key a browser's word for where a page is from is all there is."""
    async with guarded(tmp_path, auth=False, api_key=None) as client:
        url = client.make_url("/")
        given = {name: text.format(own=str(url)[:-1], port=url.port) for name, text in headers.items()}
        answer = await client.post(path, headers=given)
        assert (answer.status == 403) is (status == 403), await answer.text()
        if status == 403:
            assert (await answer.json())["error"]["code"] == "origin_not_allowed"


async def test_listed_origin_is_welcome_whatever_the_browser_calls_it(tmp_path: Path) -> None:
    """`cors_origins` is for pages of other places."""
    async with guarded(tmp_path, auth=False, api_key=None, cors_origins=("http://127.0.0.1:3000",)) as client:
        headers = {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"}
        assert (await client.post("/admin/cache/clear", headers=headers)).status == 200


async def test_numbers_of_thousands_of_digits_are_refused(client: Client) -> None:
    """400 with the name of what is wrong, wherever a number may stand in a query or a header."""
    for text in (
        "9" * 5000,
        "0" * 4999 + "1",
        "000001000" + "9" * 5000,
        "1" * 8000,
        "-" + "9" * 5000,
        "1e" + "9" * 4000,
    ):
        answer = await client.get("/admin/events", params={"limit": text}, headers=bearer(MASTER))
        assert answer.status == 400, text[:20]
        assert (await answer.json())["error"]["param"] == "limit"
