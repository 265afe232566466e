"""Limits that several gateways keep in one store: as exact as those of one, and no door when the store is lost."""

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.access import redis_limits
from gateway.access.gate import GATE
from gateway.access.keys.key import UNLIMITED, RateLimits
from gateway.access.limits import DAY_NS, HOUR_NS, MINUTE_NS
from gateway.access.rate_limiter import LimitRefusal, RateLimiter, Reservation
from gateway.access.redis_limits import LEASE_S, LimitDecision, LimitEntry, RedisLimiter
from gateway.access.usage import UsageLedger
from protocol.settings import ConfigError
from tests.support.guarded_app import Client, app_of, bearer, guarded, issue
from tests.support.redis_server import RedisServer, needs_redis, redis_server

__all__ = ["redis_server"]
pytestmark = needs_redis
US = 1000


def limiter_of(server: RedisServer, clock_us: Callable[[], int] | None = None) -> RedisLimiter:
    """One gateway's limiter."""
    return RedisLimiter(server.url, UsageLedger(UNLIMITED), clock_us=clock_us)


class Both:
    """Two gateways that share a store, told the same time as one limiter that has everything in memory."""

    def __init__(self, server: RedisServer, limits: RateLimits, key: str) -> None:
        self.now_us = 10**15
        self.limiter, self.limits, self.key = RateLimiter(limits), limits, key
        self.gateways = [limiter_of(server, lambda: self.now_us) for _ in range(2)]
        self.log: list[int] = []
        self.running: list[tuple[RedisLimiter, LimitEntry, LimitDecision, Any]] = []

    async def begin(self, chance: random.Random) -> None:
        gateway = chance.choice(self.gateways)
        entry = gateway.make_entry(self.key, self.limits)
        found = await gateway.start_request(entry)
        assert found is not None
        now = self.now_us * US
        expected = self.limiter.start_request(now)
        assert found.refused == expected
        self._check_windows(expected is None)
        if expected is not None:
            assert found.requests == self.limiter.requests_left(now) or expected.family == "parallel"
            return
        tokens = chance.randint(0, 60)
        reserved = await gateway.reserve_tokens(entry, tokens)
        assert reserved is not None
        taken = self.limiter.reserve_tokens(tokens, now)
        assert reserved.refused == (taken if isinstance(taken, LimitRefusal) else None)
        assert (reserved.requests, reserved.tokens) == (self.limiter.requests_left(now), self.limiter.tokens_left(now))
        self.running.append((gateway, entry, reserved, taken if isinstance(taken, Reservation) else None))

    async def end(self, chance: random.Random) -> None:
        gateway, entry, decision, taken = self.running.pop(chance.randrange(len(self.running)))
        spent = chance.randint(0, 90)
        gateway.end_request(entry, spent, decision.taken)
        await gateway.write_owed()
        self.limiter.end_request()
        self.limiter.settle_tokens(taken, spent, self.now_us * US)

    def _check_windows(self, accepted: bool) -> None:
        """By the log of everything alone: never more than a window may hold."""
        if accepted:
            self.log.append(self.now_us * US)
        for limit, span in ((self.limits.rpm, MINUTE_NS), (self.limits.rph, HOUR_NS), (self.limits.rpd, DAY_NS)):
            recent = [time for time in self.log if time > self.now_us * US - span]
            assert not limit or len(recent) <= limit

    async def close(self) -> None:
        for gateway in self.gateways:
            await gateway.close()


@pytest.mark.parametrize("seed", range(6))
async def test_two_gateways_decide_as_one_log_would(redis_server: RedisServer, seed: int) -> None:
    """Every decision, wait, remainder and reset is that of one limiter in memory, held to a brute-force log."""
    chance = random.Random(seed)
    limits = replace(
        UNLIMITED,
        burst=chance.choice([0, 3, 6]), rpm=chance.choice([0, 4, 9]), rph=chance.choice([0, 20]), rpd=30,
        tpm=chance.choice([0, 100]), tpd=chance.choice([0, 1000]), parallel=chance.choice([0, 3]),
    )  # fmt: skip
    both = Both(redis_server, limits, f"key{seed}")
    for _ in range(250):
        both.now_us += chance.choice([0, 0, 1, 1000, 10**6, 15 * 10**6, 10**8])
        if both.running and (len(both.running) > 3 or chance.random() < 0.4):
            await both.end(chance)
        else:
            # A lease that ran out would be a gateway that was killed: here none is.
            for gateway in both.gateways:
                await gateway.renew_leases()
            await both.begin(chance)
    await both.close()


async def test_waiting_exactly_as_told_is_accepted_and_a_millisecond_less_is_not(redis_server: RedisServer) -> None:
    """At the other gateway, too."""
    now = [10**15]
    one, other = (limiter_of(redis_server, lambda: now[0]) for _ in range(2))
    limits = replace(UNLIMITED, burst=10, rpm=60)
    refused = None
    while refused is None:
        decision = await one.start_request(one.make_entry("k", limits))
        assert decision is not None
        refused = decision.refused
    now[0] += refused.wait_ns // US - 1000
    early = await other.start_request(other.make_entry("k", limits))
    now[0] += 1000
    exact = await other.start_request(other.make_entry("k", limits))
    assert early is not None
    assert exact is not None
    assert (early.refused is None, exact.refused) == (False, None)
    await one.close()
    await other.close()


async def test_thousand_at_once_over_two_gateways_never_exceed_the_burst(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server's own clock; and of requests that run together there are never more than allowed."""
    # A busy machine is no store that is away.
    monkeypatch.setattr(redis_limits, "PATIENCE_S", 30.0)
    gateways = [limiter_of(redis_server) for _ in range(2)]
    limits = replace(UNLIMITED, rph=25, parallel=15)
    running: list[tuple[RedisLimiter, LimitEntry]] = []

    async def ask(at: int) -> bool:
        gateway = gateways[at % 2]
        entry = gateway.make_entry("k", limits)
        found = await gateway.start_request(entry)
        assert found is not None
        if found.refused is None:
            running.append((gateway, entry))
        return found.refused is None

    assert sum(await asyncio.gather(*map(ask, range(1000)))) == 15
    for gateway, entry in running:
        gateway.end_request(entry, 0, (0, 0))
    for gateway in gateways:
        await gateway.write_owed()
    assert sum(await asyncio.gather(*map(ask, range(1000)))) == 10
    for gateway in gateways:
        await gateway.close()


async def test_room_of_a_gateway_that_was_killed_is_free_when_its_lease_is_over(redis_server: RedisServer) -> None:
    """Not sooner, and a gateway that lives renews it."""
    now = [10**15]
    killed, other = (limiter_of(redis_server, lambda: now[0]) for _ in range(2))
    limits = replace(UNLIMITED, parallel=1)

    async def let_in(gateway: RedisLimiter) -> bool:
        found = await gateway.start_request(gateway.make_entry("k", limits))
        assert found is not None
        return found.refused is None

    assert await let_in(killed)
    now[0] += int(LEASE_S * 10**6) - 1
    assert not await let_in(other)
    await killed.renew_leases()
    now[0] += int(LEASE_S * 10**6) - 1
    assert not await let_in(other)
    now[0] += 1
    assert await let_in(other)
    await killed.close()
    await other.close()


def pair(folder: Path, url: str) -> tuple[Any, ...]:
    """Two gateways with the same keys."""
    fields = {"data_dir": folder / "data", "rate_limit_storage": url}
    return guarded(folder / "a", run_dir=folder / "ra", **fields), guarded(
        folder / "b", run_dir=folder / "rb", **fields
    )


async def statuses(client: Client, text: str, count: int) -> list[int]:
    return [(await client.post("/v1/completions", json={}, headers=bearer(text))).status for _ in range(count)]


async def test_each_gateway_limits_for_itself_when_the_store_is_lost_and_together_when_it_is_back(
    tmp_path: Path, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Over HTTP: one limit for both; without the store the local ones, and an alarm; with it, together again."""
    first, second = pair(tmp_path, redis_server.url)
    async with first as a, second as b:
        text = await issue(a, "chat", limits=RateLimits(burst=0, rpm=6))
        async with asyncio.timeout(10):
            while (await b.get("/v1/queue/stats", headers=bearer(text))).status == 401:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await statuses(a, text, 4) + await statuses(b, text, 4) == [400] * 6 + [429] * 2
        told = await a.post("/v1/completions", json={}, headers=bearer(text))
        assert (told.status, told.headers["x-ratelimit-remaining-requests"]) == (429, "0")
        redis_server.stop()
        # What each has let in before still counts there: 4 and 2 of 6.
        assert await statuses(a, text, 4) == [400] * 2 + [429] * 2
        assert await statuses(b, text, 5) == [400] * 4 + [429]
        alarms = [record for record in caplog.records if "each gateway limits for itself" in record.getMessage()]
        assert {record.levelno for record in alarms} == {logging.ERROR}
        assert (
            "pool_shared_limits_up 0.0" in await (await a.get("/metrics", headers=bearer(await issue(a, "*")))).text()
        )
        redis_server.start()
        async with asyncio.timeout(10):
            while not all(app_of(client)[GATE].limiter.is_up() for client in (a, b)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await statuses(a, text, 4) + await statuses(b, text, 4) == [400] * 6 + [429] * 2


async def test_gateway_starts_without_its_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With an alarm, and limits of its own."""
    async with guarded(tmp_path, rate_limit_storage="redis://127.0.0.1:1/0") as client:
        text = await issue(client, "chat", limits=RateLimits(burst=2))
        assert await statuses(client, text, 3) == [400, 400, 429]
    assert "each gateway limits for itself" in caplog.text


async def test_address_that_is_none_is_refused_at_the_start_without_showing_it(tmp_path: Path) -> None:
    """It may hold a password."""
    with pytest.raises(ConfigError, match="must be an address") as found:
        async with guarded(tmp_path, rate_limit_storage="http://:s3cret@x"):
            pass
    assert "s3cret" not in str(found.value)
