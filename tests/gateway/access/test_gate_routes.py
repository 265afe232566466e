"""The whole application in production: who gets through to which route, and what the answers say of limits."""

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from gateway.access.gate import GATE, duration
from gateway.access.keys.key import METERED, OPEN, PERMISSIONS, RateLimits
from gateway.access.keys.keyring import Caller
from gateway.http.openapi import OPERATIONS, ROUTES, Operation
from tests.support.guarded_app import MASTER, Client, app_of, bearer, guarded, issue

OPEN_PATHS = {
    "/ping", "/health", "/health/live", "/health/ready",
    "/docs", "/redoc", "/openapi.json", "/docs/assets/{name}",
}  # fmt: skip


def routes(client: Client) -> list[tuple[str, str, Operation | None]]:
    """Every route of the router, as (method, a path that leads to it, what is known of it)."""
    app = app_of(client)
    found = []
    for route in app.router.routes():
        assert route.resource is not None
        path = re.sub(r"{\w+}", "x", route.resource.canonical)
        found.append((route.method, path, app[ROUTES].get(route)))
    assert len(found) > 20
    return found


async def test_every_route_has_a_policy_when_it_is_there(client: Client) -> None:
    """A new route without one is closed in production. Give its `Operation` an `access`."""
    lacking = [f"{method} {path}" for method, path, known in routes(client) if known is None or not known.access]
    assert not lacking, (
        f"no access=(...) on the Operation of: {', '.join(lacking)}; see gateway.access.keys.key.PERMISSIONS"
    )
    for operation in app_of(client)[OPERATIONS]:
        assert set(operation.access) <= {*PERMISSIONS, OPEN}, operation.path
        assert operation.access == (OPEN,) or OPEN not in operation.access, operation.path
    open_paths = {re.sub(r":[^}]*", "", o.path) for o in app_of(client)[OPERATIONS] if OPEN in o.access}
    assert open_paths == OPEN_PATHS


async def test_every_route_refuses_when_the_key_is_missing_bad_expired_revoked_or_too_weak(client: Client) -> None:
    """401 or 403 on every route but the open ones, in the one shape of errors; the right key opens each."""
    app = app_of(client)
    good = await issue(client, "*")
    expired = await issue(client, "*", expires_at=2.0)
    revoked = await issue(client, "*", revoked_at=1.0)
    weak = {name: await issue(client, name) for name in PERMISSIONS}
    callers: list[tuple[str | None, int, str]] = [
        (None, 401, "missing_api_key"),
        ("nonsense", 401, "invalid_api_key"),
        (good[:-1] + ("a" if good[-1] != "a" else "b"), 401, "invalid_api_key"),
        (expired, 401, "expired_api_key"),
        (revoked, 401, "invalid_api_key"),
    ]
    for method, path, known in routes(client):
        assert known is not None
        wrong = [(text, 403, "insufficient_permissions") for name, text in weak.items() if name not in known.access]
        for text, status, code in [*callers, *wrong]:
            answer = await client.request(method, path, headers=bearer(text) if text else {})
            if OPEN in known.access:
                assert answer.status not in (401, 403), path
                continue
            assert answer.status == status, (method, path, code)
            assert ("WWW-Authenticate" in answer.headers) is (status == 401)
            if method != "HEAD":
                assert (await answer.json())["error"]["code"] == code, (method, path)
        if OPEN not in known.access and not known.path.startswith("/admin"):
            assert (await client.request(method, path, headers=bearer(MASTER))).status not in (401, 403), path
    assert app[GATE].refused["missing_api_key"] > 10


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models", "/v1//models", "/v1/models/", "/V1/MODELS", "/v1/./models", "/ping/../v1/models", "/v1/%6dodels",
        "/ping%2f..%2fv1%2fmodels", "/docs/..%2fv1/models",
        "/health/../v1/models", "/v1/models?ping", "/v1/models#ping",
        "/v1/models;ping", "/nothing", "/docs/assets/../../v1/models", "/metrics%00/ping", "/ping/v1/models",
    ],
)  # fmt: skip
async def test_odd_paths_open_nothing_when_no_key_is_given(client: Client, path: str) -> None:
    """However a path is spelled, and whatever host is named: no key, no answer."""
    url = client.make_url("/").with_path("/")
    target = URL(f"http://{url.host}:{url.port}{path}", encoded=True)
    for headers in (
        {},
        {"Host": "localhost/ping"},
        {"Host": "ping"},
        {"X-Original-URL": "/ping"},
        {"X-Forwarded-For": "::1"},
    ):
        answer = await client.session.get(target, headers=headers, allow_redirects=False)
        assert answer.status in (400, 401, 404), await answer.text()
        assert "data" not in await answer.text()


async def test_key_is_found_wherever_it_may_stand(client: Client) -> None:
    """Bearer (any case), X-API-Key, ?api_key=; the header wins over the query."""
    text = await issue(client, "models")
    for options in (
        {"headers": bearer(text)},
        {"headers": {"authorization": f"bearer  {text}"}},
        {"headers": {"X-API-Key": text}},
        {"params": {"api_key": text}},
        {"params": {"api_key": "bad"}, "headers": {"X-API-Key": text}},
        {"params": {"api_key": text}, "headers": {"Authorization": "Basic eDp5"}},
    ):
        assert (await client.get("/v1/models", **options)).status == 200, options  # type: ignore[arg-type]
    assert (await client.get("/v1/models", params={"api_key": text}, headers=bearer("bad"))).status == 401


@pytest.mark.parametrize(
    "text", ["' OR 1=1 --", "mlx_" + "a" * 100_000, "ключ", "\x7f\x01", "mlx_aaaaaaaa_;DROP TABLE"]
)
async def test_hostile_keys_are_just_bad_when_given(client: Client, text: str) -> None:
    """Quotes, length, other alphabets: a 401 like any other."""
    assert (await client.get("/v1/models", params={"api_key": text})).status in (400, 401)


async def test_nobody_is_asked_when_auth_is_off(tmp_path: Path) -> None:
    """Development: any key will do, and none."""
    async with guarded(tmp_path, auth=False, api_key=None) as client:
        for headers in ({}, bearer("anything")):
            answer = await client.get("/v1/models", headers=headers)
            assert answer.status == 200
            assert not [name for name in answer.headers if name.lower().startswith("x-ratelimit")]


async def test_limits_are_shown_and_hold_to_the_millisecond_when_a_key_is_used(client: Client) -> None:
    """Headers on every answer, 429 with how long to wait; a millisecond less is too early, exactly that is not."""
    gate, now = app_of(client)[GATE], [10**12]
    gate.usage.clock_ns = lambda: now[0]
    headers = bearer(await issue(client, "chat", limits=RateLimits(burst=3, rpm=60, tpm=1000)))
    body = {"messages": [{"role": "user", "content": "x"}]}

    async def ask() -> Any:
        return await client.post("/v1/chat/completions", json=body, headers=headers)

    seen = [await ask() for _ in range(3)]
    assert {answer.status for answer in seen} == {503}  # there is no worker: but it was let in
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in seen] == ["2", "1", "0"]
    assert seen[0].headers["x-ratelimit-limit-requests"] == "3"
    assert seen[0].headers["x-ratelimit-limit-tokens"] == seen[2].headers["x-ratelimit-remaining-tokens"] == "1000"
    now[0] += 400_300_000
    refused = await ask()
    assert refused.status == 429
    error = (await refused.json())["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert (refused.headers["retry-after-ms"], refused.headers["retry-after"]) == ("600", "1")
    assert refused.headers["x-ratelimit-reset-requests"] == "600ms"
    now[0] += 599_000_000
    assert (await ask()).status == 429
    now[0] += 1_000_000
    assert (await ask()).status == 503
    assert "x-ratelimit-limit-requests" not in (await client.get("/v1/models", headers=bearer(MASTER))).headers


async def test_thousand_requests_at_once_never_exceed_the_burst_when_they_come_over_http(client: Client) -> None:
    """In one instant, by the whole application: ten are let in, and as many as are told so."""
    gate = app_of(client)[GATE]
    gate.usage.clock_ns = lambda: 10**12
    headers = bearer(await issue(client, "chat", limits=RateLimits(burst=10, rpm=60)))

    async def ask() -> int:
        async with client.post("/v1/completions", json={}, headers=headers) as answer:
            return answer.status

    found = Counter(await asyncio.gather(*(ask() for _ in range(1000))))
    assert found == {400: 10, 429: 990}


async def test_limits_are_the_configured_ones_when_the_key_has_none(client: Client) -> None:
    """Burst 10, 60 a minute, 1,000 an hour, 10,000 a day; the master key has none; models and queues cost nothing."""
    usage = app_of(client)[GATE].usage
    caller = Caller(id="k", permissions=frozenset("*"), limits=RateLimits(rph=7))
    assert usage.limiter_for(caller).limits == RateLimits(burst=10, rpm=60, rph=7, rpd=10_000, tpm=0, tpd=0, parallel=0)
    headers = bearer(await issue(client, "*"))
    for _ in range(30):
        assert (await client.get("/v1/models", headers=headers)).status == 200
        assert (await client.post("/v1/completions", json={}, headers=bearer(MASTER))).status == 400
    statuses = [(await client.post("/v1/completions", json={}, headers=headers)).status for _ in range(11)]
    assert statuses == [400] * 10 + [429]
    for operation in app_of(client)[OPERATIONS]:
        assert METERED.isdisjoint(operation.access) or METERED.issuperset(operation.access), operation.path


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0ms"), (1, "1ms"), (12_000_000, "12ms"), (999_000_001, "1s"), (1_000_000_000, "1s"),
        (1_500_000_000, "1.5s"),
        (60_000_000_000, "1m0s"), (360_000_000_000, "6m0s"), (3_600_000_000_000, "1h0m0s"),
        (86_400_000_000_000, "24h0m0s"), (61_001_000_000, "1m1.001s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(ns: int, text: str) -> None:
    """Go's way."""
    assert duration(ns) == text
