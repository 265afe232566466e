"""What keys, limits and counting cost a request."""

import gc
import statistics
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.access.gate import GATE, QUOTA, Gate, add_headers, guard
from gateway.access.keys.key import RateLimits, new_key
from gateway.access.keys.keyring import Keyring
from gateway.access.limits import HOUR_NS
from gateway.access.usage import UsageLedger
from gateway.http.openapi import Operation, mount

ROUNDS, REQUESTS = 5, 50
MOST_S = 500e-6
"""Of processor time; several times what it takes on a busy machine."""


async def spend(request: web.Request) -> web.Response:
    """A handler that does nothing but what a limited one does."""
    if quota := request.get(QUOTA):
        await quota.reserve_tokens(100)
    return web.Response()


async def test_guard_costs_little_when_everything_is_on(
    request: pytest.FixtureRequest,
) -> None:
    """One key of a thousand, all limits with full logs, a reservation, headers, sums: a fraction of a millisecond."""
    keyring, now = Keyring("master"), [10**15]
    made = [new_key(b"p" * 32, 1.0, name="x", limits=RateLimits(tpm=10**9, tpd=10**10)) for _ in range(1000)]
    keyring.replace_keys([key for key, _ in made], b"p" * 32)
    usage = UsageLedger(
        RateLimits(burst=10, rpm=60, rph=1000, rpd=10_000, tpm=0, tpd=0, parallel=8), clock_ns=lambda: now[0]
    )
    headers = {"Authorization": f"Bearer {made[500][1]}"}
    costs: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for auth, spent in costs.items():
            app = web.Application()
            app[GATE] = Gate(auth=auth, keyring=keyring, usage=usage)
            mount(app, (Operation(method="POST", path="/x", handler=spend, summary="", tag="", access=("chat",)),))
            asked = [make_mocked_request("POST", "/x", headers=headers, app=app) for _ in range(REQUESTS)]
            for one in asked:
                one.match_info._route = next(iter(app.router.routes()))
            gc.collect()
            began = time.thread_time()
            for one in asked:
                now[0] += HOUR_NS // 900
                answer = await guard(one, spend)
                await add_headers(one, answer)
            spent.append((time.thread_time() - began) / REQUESTS)
    assert answer.headers["x-ratelimit-remaining-requests"]
    added_s = statistics.median(costs[True]) - statistics.median(costs[False])
    request.node.user_properties.append(("guard_us", round(added_s * 1e6, 1)))
    assert added_s < MOST_S
