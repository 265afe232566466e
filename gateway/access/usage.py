"""What every key has used: its meter, and what still has to be written down. In memory; bounded; never waits."""

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
    """Meters by key, made when a key is first used, and the sums since the last `take`."""

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
        self._meters: dict[str, RateLimiter] = {}
        self._past: dict[str, list[UsageRow]] = {}
        self._pending: dict[tuple[str, int], UsageRow] = {}

    def __len__(self) -> int:
        return len(self._meters)

    def limiter_for(self, caller: Caller) -> RateLimiter:
        """Return the meter of a key, with the limits that it has now."""
        meter = self._meters.get(caller.id)
        # The record's limits are compared as they were given: the defaults never change.
        if meter is None or meter.asked is not caller.limits:
            meter = self._make(caller, meter)
        return meter

    def count_use(self, key_id: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Note what a key used, and that it was used."""
        now = self._wall()
        place = (key_id, int(now // 60))
        before = self._pending.get(place)
        if before is None and len(self._pending) >= MAX_PENDING:
            self._squeeze()
            before = self._pending.get(place)
        self._pending[place] = UsageRow(
            *place, requests + (before.requests if before else 0), tokens + (before.tokens if before else 0), now
        )

    def take_pending(self) -> list[UsageRow]:
        """Return what has to be written down; forgotten here, unless it is given back."""
        taken, self._pending = [*self._pending.values()], {}
        return taken

    def give_back(self, taken: Iterable[UsageRow]) -> None:
        """Take back what could not be written."""
        for spent in taken:
            place = (spent.id, spent.minute)
            newer = self._pending.get(place)
            if newer is not None:
                spent = _sum(spent, newer)
            self._pending[place] = spent
        self._squeeze()

    def restore_usage(self, past: Iterable[UsageRow]) -> None:
        """Learn what keys used before this process started, so that a restart gives nobody a new day."""
        for spent in past:
            self._past.setdefault(spent.id, []).append(spent)

    def drop_idle(self) -> None:
        """Forget meters that would say the same if they were new."""
        now = self.clock_ns()
        for key_id in [key_id for key_id, meter in self._meters.items() if meter.is_idle(now)]:
            del self._meters[key_id]

    def _make(self, caller: Caller, before: RateLimiter | None) -> RateLimiter:
        meter = RateLimiter(caller.limits.filled_from(self.defaults), before)
        meter.asked = caller.limits
        if past := self._past.pop(caller.id, None):
            now, wall = self.clock_ns(), self._wall()
            # The end of each minute: later than it was, so nothing is forgiven too early.
            ends = ((now - max(0, int((wall - 60 * (spent.minute + 1)) * SECOND_NS)), spent) for spent in past)
            meter.restore_usage(
                (end, spent.requests, spent.tokens)
                for end, spent in sorted(ends, key=lambda pair: pair[0])
                if end > now - DAY_NS
            )
        self._meters[caller.id] = meter
        return meter

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
