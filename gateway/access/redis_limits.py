"""Limits that several gateways keep together, in a Redis or Valkey server: exact over all of them, by one script.

Where the server is away, each gateway goes on with limits of its own, says so loudly, and tries again every second:
neither an open door nor an outage. Imported only where such a server is configured.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from gateway.access.keys.key import RateLimits
from gateway.access.keys.keyring import Caller
from gateway.access.limiter import LimitedRequest
from gateway.access.limits import Family, Remaining
from gateway.access.rate_limiter import LimitRefusal
from gateway.access.usage import UsageLedger

log = logging.getLogger(__name__)

PREFIX = "mlx-pool:limits"
PATIENCE_S = 1.0
"""How long an answer may take before the server counts as away."""
CONNECTIONS = 32
AGAIN_S = 1.0
ALARM_S = 60.0
"""A trouble that lasts is logged again after so long."""
LEASE_S = 15.0
"""So long the requests of a gateway that was killed count as running."""
MAX_OWED = 10_000
"""Ends of requests that are kept for a server that is away."""
US = 1_000_000

Act = Literal["begin", "reserve", "end", "renew"]
_FAMILIES: tuple[Family | None, ...] = (None, "requests", "tokens", "parallel")


class LimitDecision(msgspec.Struct, frozen=True):
    """What the store said: no, or what was taken; and what is left."""

    refused: LimitRefusal | None
    requests: Remaining | None
    tokens: Remaining | None
    taken: tuple[int, int]
    at_us: int


class LimitEntry(msgspec.Struct, frozen=True):
    """One request of one key under these limits (no None in them)."""

    key_id: str
    limits: RateLimits
    request: str


class RedisLimiter:
    """One gateway's share; `usage` counts along, for when the store is away. `clock_us` replaces the server's clock."""

    def __init__(self, url: str, usage: UsageLedger, *, clock_us: Callable[[], int] | None = None) -> None:
        """Raise `ValueError` for an address that is none. Connects only when it is first asked."""
        self._usage = usage
        self.trouble: str | None = None
        """Why each gateway limits for itself at the moment; None: the store does."""
        # Who finds no free connection waits for one: a crowd is no sign that the server is away.
        pool = BlockingConnectionPool.from_url(
            url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S, max_connections=CONNECTIONS, timeout=None
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(Path(__file__).with_name("redis_limits.lua").read_text())
        self._clock_us = clock_us
        self._name = secrets.token_hex(6)
        self._count = 0
        self._running: set[LimitEntry] = set()
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._owed: list[tuple[LimitEntry, int, tuple[int, int]]] = []
        self._alarmed_at = float("-inf")
        self._keeper: asyncio.Task[None] | None = None

    def is_up(self) -> bool:
        """Return whether the store answers."""
        return self.trouble is None

    async def start(self) -> None:
        """Look whether the store is there; go on without where it is not."""
        await self._try(self._redis.ping())
        self._keeper = asyncio.create_task(self._keep(), name="shared-limits")

    async def close(self) -> None:
        """Write what is owed, let go."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self.write_owed()
        await self._redis.aclose()

    async def write_owed(self) -> None:
        """Wait until the store knows every request that has ended, if it answers."""
        await asyncio.gather(*self._ending.values())

    def open_request(self, caller: Caller) -> "RedisRequest":
        """Return a new request of a key."""
        return RedisRequest(self, self._usage, caller)

    def make_entry(self, key_id: str, limits: RateLimits) -> LimitEntry:
        """Return what the store is to know of a new request of a key."""
        self._count += 1
        return LimitEntry(key_id, limits, f"{self._name}-{self._count}")

    async def start_request(self, entry: LimitEntry) -> LimitDecision | None:
        """Let a request in, until `end`; None where the store is away: then this gateway decides."""
        if (ending := self._ending.get(entry.key_id)) is not None:
            # Who has just finished one must find its room free.
            await asyncio.wait([ending])
        found = await self._ask("begin", entry)
        if found is not None and found.refused is None and entry.limits.parallel:
            self._running.add(entry)
        return found

    async def reserve_tokens(self, entry: LimitEntry, tokens: int) -> LimitDecision | None:
        """Take tokens; None where the store is away."""
        return await self._ask("reserve", entry, tokens)

    def end_request(self, entry: LimitEntry, spent: int, taken: tuple[int, int]) -> None:
        """Count a request as over that may never have begun. Never waits; written later where the store is away."""
        self._running.discard(entry)
        if len(self._owed) >= MAX_OWED:
            del self._owed[0]
        self._owed.append((entry, spent, taken))
        if self.is_up():
            before = self._ending.get(entry.key_id)
            task = self._ending[entry.key_id] = asyncio.create_task(self._pay(before))
            task.add_done_callback(lambda task: self._paid(entry.key_id, task))

    async def _pay(self, before: "asyncio.Task[None] | None" = None) -> None:
        if before is not None:
            await asyncio.wait([before])
        while self._owed and self.is_up():
            entry, spent, taken = debt = self._owed.pop(0)
            await self._ask("end", entry, spent, taken)
            if not self.is_up():
                self._owed.insert(0, debt)

    def _paid(self, key_id: str, task: "asyncio.Task[None]") -> None:
        if self._ending.get(key_id) is task:
            del self._ending[key_id]

    async def _keep(self) -> None:
        """Renew what runs, and look for a store that was away."""
        renewed_at = time.monotonic()
        while True:
            await asyncio.sleep(AGAIN_S)
            if not self.is_up():
                await self._try(self._redis.ping())
                if self.is_up():
                    log.warning("The store of shared limits is back")
                    await self._pay()
            elif time.monotonic() - renewed_at > LEASE_S / 3:
                renewed_at = time.monotonic()
                await self.renew_leases()

    async def renew_leases(self) -> None:
        """Tell the store that the requests of this gateway still run."""
        for entry in [*self._running]:
            await self._ask("renew", entry)

    async def _ask(
        self, act: Act, entry: LimitEntry, tokens: int = 0, taken: tuple[int, int] = (0, 0)
    ) -> LimitDecision | None:
        if not self.is_up():
            return None
        limits = entry.limits
        keys = [f"{PREFIX}:{{{entry.key_id}}}:{part}" for part in ("state", "log", "running")]
        now = self._clock_us() if self._clock_us else ""
        arguments: list[str | int] = [
            act, entry.request, int(LEASE_S * US), now, limits.burst or 0, interval_us(limits), limits.parallel or 0,
            limits.rpm or 0, limits.rph or 0, limits.rpd or 0, limits.tpm or 0, limits.tpd or 0, tokens, *taken,
        ]  # fmt: skip
        found: list[int] | None = await self._try(self._script(keys=keys, args=arguments))
        return _decision(found) if found else None

    async def _try(self, asking: Awaitable[Any]) -> Any:
        try:
            answer = await asking
        except (RedisError, OSError, TimeoutError) as error:
            self._alarm(error)
            return None
        self.trouble = None
        return answer

    def _alarm(self, error: Exception) -> None:
        self.trouble = type(error).__name__
        if time.monotonic() - self._alarmed_at < ALARM_S:
            return
        self._alarmed_at = time.monotonic()
        log.error("The store of shared limits fails (%s): each gateway limits for itself", self.trouble)


class RedisRequest(LimitedRequest):
    """One request, counted in the store, and in this process as well: it goes on alone where the store is away."""

    def __init__(self, limiter: RedisLimiter, usage: UsageLedger, caller: Caller) -> None:
        super().__init__(usage, caller)
        self._limiter = limiter
        self._entry: LimitEntry | None = None
        self._decision: LimitDecision | None = None

    async def start_request(self) -> LimitRefusal | None:
        """Let the request in until `end_request`, or say why not."""
        limiter = self.rate_limiter
        if limiter.bounded:
            # Noted before anything is awaited: whoever is cancelled meanwhile may have begun.
            self._entry = self._limiter.make_entry(self._caller.id, limiter.limits)
            self._decision = await self._limiter.start_request(self._entry)
        if self._decision is None:
            self._entry = None
            return await super().start_request()
        if self._decision.refused is None:
            self.rate_limiter.count_request(self._usage.clock_ns())
        else:
            self._entry = None
        return self._decision.refused

    async def reserve_tokens(self, tokens: int) -> LimitRefusal | None:
        """Take tokens for what the request may cost, once, or say why not."""
        decision = await self._limiter.reserve_tokens(self._entry, tokens) if self._entry else None
        if decision is None:
            return await super().reserve_tokens(tokens)
        self._decision = decision
        return decision.refused

    def settle_tokens(self, spent: int) -> None:
        """Replace what was reserved by what was spent, in the store too."""
        if self._entry is not None:
            self._limiter.end_request(self._entry, spent, self._decision.taken if self._decision else (0, 0))
        super().settle_tokens(spent)

    def read_remaining(self) -> tuple[Remaining | None, Remaining | None]:
        """Return what was left when the store last answered."""
        if self._decision is not None:
            return self._decision.requests, self._decision.tokens
        return super().read_remaining()


def interval_us(limits: RateLimits) -> int:
    """Return how fast a burst refills: as in `RateLimiter`, in whole microseconds."""
    return -(-60 * US // limits.rpm) if limits.rpm else US // max(1, limits.burst or 0)


def _decision(found: list[int]) -> LimitDecision:
    family = _FAMILIES[found[0]]
    return LimitDecision(
        refused=LimitRefusal(family, found[1] * 1000) if family else None,
        requests=_left(found[2:5]),
        tokens=_left(found[5:8]),
        taken=(found[8], found[9]),
        at_us=found[10],
    )


def _left(found: list[int]) -> Remaining | None:
    return Remaining(found[0], found[1], found[2] * 1000) if found[0] >= 0 else None
