"""What keys, limits and metrics add to a request: the code that runs for one, with everything on and off in turn.

In CPU time of this thread, since what is looked for is a fraction of what a request costs and a shared machine's noise.
"""

import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from benchmarks.table import Table, median
from gateway.access.gate import GATE, QUOTA, Gate, add_headers, guard
from gateway.access.keys.key import RateLimits, new_key
from gateway.access.keys.keyring import Keyring
from gateway.access.limits import HOUR_NS
from gateway.access.usage import UsageLedger
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.state import JobState, ModelState
from gateway.dispatch.stats import PoolStats
from gateway.http.openapi import Operation, mount
from protocol.messages import GenerateJob, Kind, Sampling, TextPrompt
from protocol.messages import Usage as Cost

REQUESTS = 200
KEYS = 1000
PROMISED_S = 100e-6
STEPS = 64
"""Frames of an engine that one request takes part in; alone, so that it pays for all of them."""


async def spend(request: web.Request) -> web.Response:
    """Do nothing but what a limited handler does."""
    if quota := request.get(QUOTA):
        await quota.reserve_tokens(100)
    return web.Response()


class Guarded:
    """Requests with one key of many, whose logs of a minute, an hour and a day are full."""

    def __init__(self) -> None:
        self._keyring, self._now = Keyring("master"), 10**15
        made = [new_key(b"p" * 32, 1.0, name="x", limits=RateLimits(tpm=10**9, tpd=10**10)) for _ in range(KEYS)]
        self._keyring.replace_keys([key for key, _ in made], b"p" * 32)
        defaults = RateLimits(burst=10, rpm=60, rph=1000, rpd=10_000, tpm=0, tpd=0, parallel=8)
        self._usage = UsageLedger(defaults, clock_ns=lambda: self._now)
        self._headers = {"Authorization": f"Bearer {made[KEYS // 2][1]}"}
        self.answer: web.StreamResponse | None = None
        """What the last request got."""

    async def added_s(self) -> float:
        """Return what keys and limits add to one request."""
        without_s = await self.cost_s(auth=False)
        return await self.cost_s(auth=True) - without_s

    async def cost_s(self, *, auth: bool) -> float:
        """Return what one request costs, with keys and limits or without."""
        app = web.Application()
        app[GATE] = Gate(auth=auth, keyring=self._keyring, usage=self._usage)
        mount(app, (Operation(method="POST", path="/x", handler=spend, summary="", tag="", access=("chat",)),))
        asked = [make_mocked_request("POST", "/x", headers=self._headers, app=app) for _ in range(REQUESTS)]
        for one in asked:
            one.match_info._route = next(iter(app.router.routes()))
        asks = iter(asked)

        async def ask() -> None:
            self._now += HOUR_NS // 900
            one = next(asks)
            self.answer = await guard(one, spend)
            await add_headers(one, self.answer)

        return await _timed(ask)


async def _count(*, on: bool) -> float:
    """Return what counting costs one request: its histograms, its answer, its steps."""
    stats, model, answers = PoolStats(), ModelState("m", Kind.CHAT, created=0), Counter[tuple[str, str, int]]()
    job = GenerateJob(0, 0, "r", "", TextPrompt("hello"), Sampling(seed=1))

    async def request() -> None:
        flight = JobState(1, model, job, JobStream(1), 0.0)
        flight.sent_at, flight.output_at, flight.over_at, flight.outcome = 1.0, 2.0, 3.0, "done"
        flight.stream.usage = Cost(10, STEPS)
        if on:
            stats.count_sent(flight, 1.0)
            stats.time_first_output(flight, 2.0)
            for _ in range(STEPS):
                stats.steps.count_step("m", "decode", 1)
            stats.count_ended(flight)
            answers["/v1/chat/completions", "POST", 200] += 1

    return await _timed(request)


async def _timed(one: Callable[[], Awaitable[None]]) -> float:
    gc.collect()
    began = time.thread_time()
    for _ in range(REQUESTS):
        await one()
    return (time.thread_time() - began) / REQUESTS


async def overhead(table: Table, *, rounds: int) -> None:
    """Measure each on and off in turn, as medians of the differences."""
    guarded, guards, counts = Guarded(), [], []
    for _ in range(max(11, rounds)):
        guards.append(await guarded.added_s())
        counts.append(await _count(on=True) - await _count(on=False))
    guard_s, count_s = median(guards), median(counts)
    table.add("keys and limits, a request", f"{guard_s * 1e6:.1f} µs")
    table.add(f"metrics, a request of {STEPS} tokens", f"{count_s * 1e6:.1f} µs")
    total_s = guard_s + count_s
    table.add("keys, limits and metrics together", f"{total_s * 1e6:.1f} µs", "< 100 µs", total_s < PROMISED_S)
