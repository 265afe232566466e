"""What every key has used: its limiter, and what still has to be written down. In memory; bounded; never waits."""

import time
from collections.abc import Callable, Iterable

import msgspec

from gateway.access.keys.key import RateLimits
from gateway.access.keys.keyring import Caller
from gateway.access.keys.store import UsageRow
from gateway.access.limits import DAY_NS, SECOND_NS
from gateway.access.rate_limiter import RateLimiter

MAX_PENDING = 20_000
"""Minutes of keys that may wait for a database that is away; beyond it they are added to each key's last one."""


class UsageLedger:
    """Limiters by key, made when a key is first used, and the sums since the last `take_pending`."""

    def __init__(
        self,
        defaults: RateLimits,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.defaults = defaults
        """The limits of keys that have none of their own."""
        self.clock_ns = clock_ns
        self._wall = wall
        self._limiters: dict[str, RateLimiter] = {}
        self._past: dict[str, list[UsageRow]] = {}
        self._pending: dict[tuple[str, int], UsageRow] = {}

    def __len__(self) -> int:
        return len(self._limiters)

    def limiter_for(self, caller: Caller) -> RateLimiter:
        """Return the limiter of a key, with the limits that it has now."""
        limiter = self._limiters.get(caller.id)
        # The record's limits are compared as they were given: the defaults never change.
        if limiter is None or limiter.asked is not caller.limits:
            limiter = self._make(caller, limiter)
        return limiter

    def count_use(self, key_id: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Note what a key used, and that it was used."""
        now = self._wall()
        key_minute = (key_id, int(now // 60))
        before = self._pending.get(key_minute)
        if before is None and len(self._pending) >= MAX_PENDING:
            self._squeeze()
            before = self._pending.get(key_minute)
        self._pending[key_minute] = UsageRow(
            *key_minute, requests + (before.requests if before else 0), tokens + (before.tokens if before else 0), now
        )

    def take_pending(self) -> list[UsageRow]:
        """Return what has to be written down; forgotten here, unless it is given back."""
        taken, self._pending = [*self._pending.values()], {}
        return taken

    def give_back(self, taken: Iterable[UsageRow]) -> None:
        """Take back what could not be written."""
        for spent in taken:
            key_minute = (spent.id, spent.minute)
            newer = self._pending.get(key_minute)
            if newer is not None:
                spent = _sum(spent, newer)
            self._pending[key_minute] = spent
        self._squeeze()

    def restore_usage(self, past: Iterable[UsageRow]) -> None:
        """Learn what keys used before this process started, so that a restart gives nobody a new day."""
        for spent in past:
            self._past.setdefault(spent.id, []).append(spent)

    def drop_idle(self) -> None:
        """Forget limiters that would say the same if they were new."""
        now = self.clock_ns()
        for key_id in [key_id for key_id, limiter in self._limiters.items() if limiter.is_idle(now)]:
            del self._limiters[key_id]

    def _make(self, caller: Caller, before: RateLimiter | None) -> RateLimiter:
        limiter = RateLimiter(caller.limits.filled_from(self.defaults), before)
        limiter.asked = caller.limits
        if past := self._past.pop(caller.id, None):
            now, wall = self.clock_ns(), self._wall()
            # The end of each minute: later than it was, so nothing is forgiven too early.
            ends = ((now - max(0, int((wall - 60 * (spent.minute + 1)) * SECOND_NS)), spent) for spent in past)
            limiter.restore_usage(
                (end, spent.requests, spent.tokens)
                for end, spent in sorted(ends, key=lambda pair: pair[0])
                if end > now - DAY_NS
            )
        self._limiters[caller.id] = limiter
        return limiter

    def _squeeze(self) -> None:
        if len(self._pending) < MAX_PENDING:
            return
        last: dict[str, UsageRow] = {}
        for spent in self._pending.values():
            last[spent.id] = _sum(last[spent.id], spent) if spent.id in last else spent
        self._pending = {(spent.id, spent.minute): spent for spent in last.values()}


def _sum(one: UsageRow, other: UsageRow) -> UsageRow:
    newer = max(one, other, key=lambda spent: spent.minute)
    return msgspec.structs.replace(
        newer,
        requests=one.requests + other.requests,
        tokens=one.tokens + other.tokens,
        last_used_at=max(one.last_used_at, other.last_used_at),
    )
