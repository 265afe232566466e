"""`/admin` over HTTP, and how a request may come."""

import ipaddress
import json
import logging
import ssl
import stat
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway.access.connection import Connections
from gateway.access.keys.key import RateLimits
from gateway.app import make_app
from gateway.config import GatewayConfig, parse_arguments
from gateway.context import EVENTS, KEY_SYNC
from gateway.schema.errors import ApiError
from protocol.settings import ConfigError
from tests.support.guarded_app import MASTER, Client, app_of, bearer, guarded, issue

ADMIN = bearer(MASTER)
MINIMAL = {"name": "Ada", "permissions": ["models"]}


async def call(client: Client, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
    answer = await client.request(method, path, json=body, headers=ADMIN)
    assert answer.status == status, await answer.text()
    return await answer.json()


async def works(client: Client, text: str) -> bool:
    return (await client.get("/v1/models", headers=bearer(text))).status == 200


async def test_key_lives_through_its_whole_life_when_managed_over_http(client: Client, tmp_path: Path) -> None:
    """Made, listed, shown, changed, rotated, revoked; each holds at once and is in the audit log, without secrets."""
    wanted = {**MINIMAL, "models": ["a"], "limits": {"rpm": 5}, "expires_in": 3600}
    made = await call(client, "POST", "/admin/api-keys", wanted)
    text, path = made["key"], f"/admin/api-keys/{made['id']}"
    assert await works(client, text)
    assert (made["name"], made["state"], made["limits"], made["models"]) == ("Ada", "active", {"rpm": 5}, ["a"])
    assert made["expires_at"] == pytest.approx(made["created_at"] + 3600, abs=5)
    [listed] = (await call(client, "GET", "/admin/api-keys"))["data"]
    assert listed == await call(client, "GET", path) == {name: value for name, value in made.items() if name != "key"}
    changed = await call(client, "PATCH", path, {"permissions": ["chat"], "name": "Bob", "limits": {"tpm": 9}})
    assert (changed["permissions"], changed["name"], changed["limits"]) == (["chat"], "Bob", {"tpm": 9})
    assert not await works(client, text)
    await call(client, "PATCH", path, {"permissions": ["*"]})
    fresh = await call(client, "POST", f"{path}/rotate", {"grace": 60})
    assert fresh["id"] == made["id"]
    assert await works(client, fresh["key"])
    assert await works(client, text)
    last = (await call(client, "POST", f"{path}/rotate", {"grace": 0}))["key"]
    assert [await works(client, one) for one in (text, fresh["key"], last)] == [False, False, True]
    assert (await call(client, "DELETE", path))["state"] == "revoked"
    assert not await works(client, last)
    log = tmp_path / "data" / "audit.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    acts = [json.loads(line) for line in log.read_text().splitlines()]
    assert [act["act"] for act in acts] == [f"key.{name}" for name in
        ("create", "change", "change", "rotate", "rotate", "revoke")]  # fmt: skip
    assert {act["by"] for act in acts} == {"master"}
    assert {act["subject"] for act in acts} == {made["id"]}
    assert not any(one[13:] in log.read_text() for one in (text, fresh["key"], last))


@pytest.mark.parametrize("days", [30, 0.5, 1.0])
async def test_key_ends_in_days_when_days_are_given(client: Client, days: float) -> None:
    """When it is made, and when it is changed; the body of a new one is that of a common client."""
    body = {"name": "client-app", "permissions": ["embed:text", "embed:image"], "expires_in_days": days}
    made = await call(client, "POST", "/admin/api-keys", body)
    assert made["expires_at"] == pytest.approx(made["created_at"] + days * 86_400, abs=5)
    changed = await call(client, "PATCH", f"/admin/api-keys/{made['id']}", {"expires_in_days": 2 * days})
    assert changed["expires_at"] == pytest.approx(made["created_at"] + 2 * days * 86_400, abs=5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"permissions": ["chat"]}, "name"),
        ({**MINIMAL, "permissions": []}, "permissions"),
        ({**MINIMAL, "permissions": ["root"]}, "permissions"),
        ({**MINIMAL, "name": "a\nb"}, "name"),
        ({**MINIMAL, "limits": {"rpm": -1}}, "limits.rpm"),
        ({**MINIMAL, "limits": {"rpd": 10**9}}, "limits.rpd"),
        ({**MINIMAL, "limits": {"rps": 1}}, "limits.rps"),
        ({**MINIMAL, "expires_in": 0}, "expires_at"),
        ({**MINIMAL, "expires_in_days": 0}, "expires_at"),
        ({**MINIMAL, "expires_in_days": -1}, "expires_in_days"),
        ({**MINIMAL, "expires_in_days": 1e6}, "expires_in_days"),
        ({**MINIMAL, "expires_in_days": 1, "expires_in": 1}, "expires_in_days"),
        ({**MINIMAL, "colour": "red"}, "colour"),
    ],
)
async def test_key_is_refused_by_name_of_the_field_when_asked_for_wrongly(
    client: Client, body: dict[str, Any], param: str
) -> None:
    """400, and nothing is made."""
    error = (await call(client, "POST", "/admin/api-keys", body, status=400))["error"]
    assert error["param"] == param
    assert (await call(client, "GET", "/admin/api-keys"))["data"] == []


WEAK: dict[str, Any] = {
    "permissions": ("admin", "chat"),
    "models": ("a", "b"),
    "limits": RateLimits(rpm=10),
    "expires_at": 4e9,
}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"permissions": ["*"]}, "permissions"),
        ({"permissions": ["chat", "vision"]}, "permissions"),
        ({"models": []}, "models"),
        ({"models": ["a", "c"]}, "models"),
        ({"limits": {"rpm": 11}}, "limits.rpm"),
        ({"limits": {"rpm": 0}}, "limits.rpm"),
        ({"limits": {}}, "limits.rpm"),
        ({"expires_in": None}, "expires_in"),
        ({"expires_in": 3e9}, "expires_in"),
    ],
)
async def test_nobody_grants_what_he_lacks(client: Client, changes: dict[str, Any], param: str) -> None:
    """403 that names the field, and no key is made; as much as one has oneself may be given on."""
    own = bearer(await issue(client, *WEAK["permissions"], **{k: v for k, v in WEAK.items() if k != "permissions"}))
    body = {"name": "n", "permissions": ["chat"], "models": ["a"], "limits": {"rpm": 10}, "expires_in": 60}
    granted = await client.post("/admin/api-keys", json=body, headers=own)
    path = f"/admin/api-keys/{(await granted.json())['id']}"
    assert granted.status == 200
    before = len((await call(client, "GET", "/admin/api-keys"))["data"])
    for answer in (
        await client.post("/admin/api-keys", json={**body, **changes}, headers=own),
        *([await client.patch(path, json=changes, headers=own)] if changes != {"expires_in": None} else []),
    ):
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["param"]) == (403, "insufficient_permissions", param)
    assert len((await call(client, "GET", "/admin/api-keys"))["data"]) == before
    assert (await client.patch(path, json={"name": "m"}, headers=own)).status == 200


async def test_stronger_key_is_not_handled_by_a_weaker_one_but_may_be_revoked(client: Client) -> None:
    """To rotate a key is to have it. Who may manage keys may close any."""
    own = bearer(await issue(client, "admin"))
    strong = await issue(client, "*")
    path = f"/admin/api-keys/{strong[4:12]}"
    assert (await client.post(f"{path}/rotate", headers=own)).status == 403
    assert (await client.patch(path, json={"permissions": ["admin"]}, headers=own)).status == 403
    assert await works(client, strong)
    assert (await client.delete(path, headers=own)).status == 200
    assert not await works(client, strong)


async def test_audit_log_is_private_and_no_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An open one is closed; a link is not followed, and the act is in the ordinary log all the same."""
    (tmp_path / "data").mkdir(mode=0o700)
    log = tmp_path / "data" / "audit.log"
    log.touch(mode=0o644)
    log.chmod(0o644)
    async with guarded(tmp_path) as client:
        await call(client, "POST", "/admin/api-keys", MINIMAL)
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert '"act":"key.create"' in log.read_text()
        log.unlink()
        (tmp_path / "elsewhere").write_text("")
        log.symlink_to(tmp_path / "elsewhere")
        caplog.clear()
        await call(client, "POST", "/admin/api-keys", MINIMAL)
        assert (tmp_path / "elsewhere").read_text() == ""
        assert "The audit log lacks an act (key.create)" in caplog.text
        assert "Audit: key.create" in caplog.text


async def test_unknown_key_is_404_and_lost_database_503_when_managed(client: Client, tmp_path: Path) -> None:
    """A change that can't be written is not pretended."""
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        body = {} if method == "PATCH" else None
        assert (await call(client, method, f"/admin/api-keys/nobody{path}", body, status=404))["error"]["param"] == "id"
    (tmp_path / "data" / "pepper").write_bytes(b"short")
    await app_of(client)[KEY_SYNC].close_database()
    assert (await call(client, "POST", "/admin/api-keys", MINIMAL, status=503))["error"]["code"] == "keys_unavailable"
    assert (await call(client, "GET", "/admin/stats"))["keys"]["trouble"] is True


async def test_operator_sees_configuration_statistics_and_events(client: Client) -> None:
    """Secrets are masked; what went wrong is among the events, the newest first; the cache can be emptied."""
    config = await call(client, "GET", "/admin/config")
    assert config["settings"]["api_key"] == "********"
    assert MASTER not in str(config)
    await client.get("/v1/models", headers=bearer("bad"))
    stats = await call(client, "GET", "/admin/stats")
    assert stats["keys"]["required"] is True
    assert stats["keys"]["refused"]["invalid_api_key"] == 1
    assert set(stats) == {"cache", "prefix_cache", "rate_limiting", "keys", "memory", "configuration", "performance"}
    assert await call(client, "GET", "/admin/workers") == {"data": []}
    assert await call(client, "POST", "/admin/cache/clear") == {
        "entries": 0,
        "bytes": 0,
        "workers": 0,
        "prefix_bytes": 0,
    }
    logging.getLogger("gateway.test").error("a key database %s", "burns")
    events = (await call(client, "GET", "/admin/events"))["data"]
    assert (events[0]["message"], events[0]["level"]) == ("a key database burns", "error")
    assert len((await call(client, "GET", "/admin/events?limit=1"))["data"]) == 1
    for limit in ("0", "x", "1001", "٣", "9" * 30):
        assert (await call(client, "GET", f"/admin/events?limit={limit}", status=400))["error"]["param"] == "limit"
    for _ in range(1500):
        logging.getLogger("gateway.test").warning("again")
    assert len(app_of(client)[EVENTS].list_latest(10_000)) == 1000


async def test_models_of_others_are_refused_and_hidden_when_a_key_is_for_some(client: Client) -> None:
    """There is none here; the list is empty, not forbidden."""
    text = await issue(client, "models", models=("mine",))
    assert (await (await client.get("/v1/models", headers=bearer(text))).json())["data"] == []


async def test_foreign_names_are_refused_when_nobody_is_asked_for_a_key(tmp_path: Path) -> None:
    """A web page whose name leads to this machine gets nothing; with keys, any name will do unless some are listed."""
    async with guarded(tmp_path, auth=False) as client:
        assert (await client.get("/v1/models")).status == 200
        for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
            assert (await client.get("/v1/models", headers={"Host": host})).status == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "x", "[::2]"):
            answer = await client.get("/v1/models", headers={"Host": host})
            assert (answer.status, (await answer.json())["error"]["code"]) == (421, "misdirected_request")
    async with guarded(tmp_path, allowed_hosts=("api.example",)) as client:
        assert (await client.get("/ping", headers={"Host": "api.example:443"})).status == 200
        for host in ("pool", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example", ""):
            assert (await client.get("/ping", headers={"Host": host})).status == 421, host
        for host in ("127.0.0.1:8000", "localhost", "[::1]:1", "127.0.0.2"):
            assert (await client.get("/ping", headers={"Host": host})).status == 200, host


async def test_monitoring_of_this_machine_is_let_in_when_a_proxy_serves_everybody_else(tmp_path: Path) -> None:
    """With the proxy settings of the operator's page: Prometheus and health checks on 127.0.0.1, and nothing more."""
    proxies = (ipaddress.ip_network("127.0.0.1"),)
    settings = {"require_https": True, "trusted_proxies": proxies, "allowed_hosts": ("pool.example.org",)}
    key = bearer(MASTER)
    outside = {"Host": "pool.example.org", "X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}
    async with guarded(tmp_path, **settings) as client:
        for path in ("/metrics", "/health/live", "/ping"):
            assert (await client.get(path, headers=key)).status == 200, path
        assert (await client.get("/health")).status == 503
        assert (await client.get("/metrics")).status == 401
        for changes in ({}, {"X-Forwarded-Proto": "http"}, {"Host": "127.0.0.1", "X-Forwarded-Proto": "http"}):
            answer = await client.get("/v1/models", headers={**key, **changes})
            assert (answer.status, (await answer.json())["error"]["code"]) == (403, "https_required")
        for name in ("X-Forwarded-For", "X-Real-IP", "Via", "Forwarded"):
            assert (await client.get("/metrics", headers={**key, name: "198.51.100.7"})).status == 403, name
        assert (await client.get("/metrics", headers={**key, "Host": "10.0.0.1:8000"})).status == 421
        assert (await client.get("/v1/models", headers={**key, **outside})).status == 200
        assert (await client.get("/v1/models", headers={**key, **outside, "X-Forwarded-Proto": "http"})).status == 403


async def test_local_names_are_refused_when_they_come_from_elsewhere() -> None:
    """What says Host: 127.0.0.1 but does not come from this machine goes by a name that is not listed."""
    from aiohttp.test_utils import make_mocked_request

    connections = Connections(hosts=frozenset({"pool.example.org"}))
    for peer, refused in (("203.0.113.1", True), ("127.0.0.1", False), ("::1", False), ("::ffff:127.0.0.1", False)):
        transport = mock.Mock()
        transport.get_extra_info = lambda name, _default=None, peer=peer: (peer, 5) if name == "peername" else None
        request = make_mocked_request("GET", "/ping", headers={"Host": "localhost:8000"}, transport=transport)
        with pytest.raises(ApiError) if refused else nullcontext():
            connections.check_request(request, monitoring=True)


async def test_web_pages_are_let_in_by_origin_when_listed(tmp_path: Path) -> None:
    """Off by default: no header, no preflight, no POST; listed origins get all three; a page of our own needs none."""
    ask = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    async with guarded(tmp_path) as client:
        assert (await client.options("/v1/models", headers=ask)).status == 401
        assert "Access-Control-Allow-Origin" not in (await client.get("/ping", headers=ask)).headers
        foreign = await client.post("/admin/cache/clear", headers={**ADMIN, "Origin": "https://evil.example"})
        assert (foreign.status, (await foreign.json())["error"]["code"]) == (403, "origin_not_allowed")
        own = {**ADMIN, "Origin": f"http://{client.host}:{client.port}"}
        assert (await client.post("/admin/cache/clear", headers=own)).status == 200
    async with guarded(tmp_path, cors_origins=("https://chat.example",)) as client:
        answer = await client.options("/v1/chat/completions", headers=ask)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, "https://chat.example")
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
        refused = await client.post("/v1/chat/completions", json={}, headers=ask)
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://chat.example")
        assert (await client.options("/v1/models", headers={**ask, "Origin": "https://evil.example"})).status == 401


async def test_plain_http_is_refused_unless_a_trusted_proxy_vouches(tmp_path: Path) -> None:
    """What anyone else says of himself counts for nothing."""
    said = {"X-Forwarded-Proto": "https"}
    network = parse_arguments(["--trusted-proxies", "10.0.0.0/8"], {}).trusted_proxies
    async with guarded(tmp_path, require_https=True, trusted_proxies=network) as client:
        for headers in ({}, said):
            answer = await client.get("/ping", headers=headers)
            assert (answer.status, (await answer.json())["error"]["code"]) == (403, "https_required")
    network = parse_arguments(["--trusted-proxies", "127.0.0.1"], {}).trusted_proxies
    async with guarded(tmp_path, require_https=True, trusted_proxies=network) as client:
        assert (await client.get("/ping", headers=said)).status == 200
        assert (await client.get("/ping", headers={"X-Forwarded-Proto": "https, http"})).status == 403
        assert (await client.get("/v1/models", headers=ADMIN)).status == 403
        # What monitors ask, on the machine where the proxy stands, is the proxy's own question.
        assert (await client.get("/ping")).status == 200


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--require-https"], "nobody could connect"),
        (["--tls-cert", "x"], "give both, or neither"),
        (["--trusted-proxies", "proxy"], "must be addresses or networks"),
    ],
)
def test_settings_are_refused_when_they_lock_everybody_out(argv: list[str], said: str) -> None:
    """At the start, not at the first request."""
    with pytest.raises(ConfigError, match=said):
        parse_arguments(argv, {})


async def test_https_is_served_when_a_certificate_is_given(tmp_path: Path) -> None:
    """Directly, without a proxy."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(  # noqa: ASYNC221
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    from gateway.http.tls import load_tls

    config = GatewayConfig(
        run_dir=tmp_path / "run", data_dir=tmp_path / "data", tls_cert=cert, tls_key=key, require_https=True
    )
    server = TestServer(make_app(config), scheme="https")
    await server.start_server(ssl=load_tls(cert, key))
    async with TestClient(server) as client:
        answer = await client.get("/ping", ssl=ssl.create_default_context(cafile=str(cert)))
        assert answer.status == 200
