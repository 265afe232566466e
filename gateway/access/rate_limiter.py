"""All limits of one key together: what is let in, what is refused and for how long, what the answer says. Pure."""

from collections.abc import Iterable

import msgspec

from gateway.access.keys.key import RateLimits
from gateway.access.limits import (
    DAY_NS,
    HOUR_NS,
    MINUTE_NS,
    SECOND_NS,
    Burst,
    Family,
    Remaining,
    RequestLog,
    TokenBucket,
)


class LimitRefusal(msgspec.Struct, frozen=True):
    """No, and how long to wait; 0 where nobody can tell."""

    family: Family
    wait_ns: int


class Reservation(msgspec.Struct, frozen=True):
    """Tokens that were taken for a request, per bucket."""

    taken: tuple[int, ...]


class RateLimiter:
    """What one key has used. `limits` holds no None here; 0 is no bound. Times are monotonic nanoseconds."""

    def __init__(self, limits: RateLimits, before: "RateLimiter | None" = None) -> None:
        self.limits = limits
        self.asked: RateLimits | None = None
        """The key's own limits, from which these were made."""
        self.running: int = before.running if before else 0
        interval_ns = -(-MINUTE_NS // limits.rpm) if limits.rpm else SECOND_NS // max(1, limits.burst or 0)
        self._burst = Burst(limits.burst, interval_ns) if limits.burst else None
        windows = ((limits.rpm or 0, MINUTE_NS), (limits.rph or 0, HOUR_NS), (limits.rpd or 0, DAY_NS))
        self._log = RequestLog(tuple((limit, span) for limit, span in windows if limit))
        spans = ((limits.tpm or 0, MINUTE_NS), (limits.tpd or 0, DAY_NS))
        self._buckets = {span: TokenBucket(limit, span) for limit, span in spans if limit}
        if before is not None:
            for time in before._log.times():
                self._log.count_request(time)
            for span in self._buckets.keys() & before._buckets.keys():
                self._buckets[span].adopt_debt(before._buckets[span])

    @property
    def counts_tokens(self) -> bool:
        """Whether there is any bound on tokens."""
        return bool(self._buckets)

    def restore_usage(self, past: Iterable[tuple[int, int, int]]) -> None:
        """Count what was used before this process started: (time, requests, tokens), oldest first."""
        for time, requests, tokens in past:
            for _ in range(requests):
                self._log.count_request(time)
            for bucket in self._buckets.values():
                bucket.settle_tokens(0, tokens, time)

    def start_request(self, now: int) -> LimitRefusal | None:
        """Let a request in, until `end`; or say why not."""
        if self.limits.parallel and self.running >= self.limits.parallel:
            return LimitRefusal("parallel", 0)
        wait_ns = self._log.wait_ns(now)
        if self._burst is not None:
            wait_ns = max(wait_ns, self._burst.wait_ns(now))
        if wait_ns:
            return LimitRefusal("requests", wait_ns)
        self.count_request(now)
        return None

    @property
    def bounded(self) -> bool:
        """Whether there is any bound at all."""
        return bool(self._burst or self._buckets or self.limits.parallel or self._log.bounded)

    def count_request(self, now: int) -> None:
        """Count a request that others have let in, until `end`."""
        if self._burst is not None:
            self._burst.count_request(now)
        self._log.count_request(now)
        self.running += 1

    def end_request(self) -> None:
        """Count a request that was let in as over."""
        self.running -= 1

    def reserve_tokens(self, tokens: int, now: int) -> Reservation | LimitRefusal:
        """Take tokens from every bucket, or from none."""
        wait_ns = max((bucket.wait_ns(tokens, now) for bucket in self._buckets.values()), default=0)
        if wait_ns:
            return LimitRefusal("tokens", wait_ns)
        return Reservation(tuple(bucket.take_tokens(tokens, now) for bucket in self._buckets.values()))

    def settle_tokens(self, reserved: Reservation | None, spent: int, now: int) -> None:
        """Correct a reservation by what was spent. A bucket that came since then starts with the whole."""
        taken = reserved.taken if reserved and len(reserved.taken) == len(self._buckets) else (0,) * len(self._buckets)
        for bucket, part in zip(self._buckets.values(), taken, strict=True):
            bucket.settle_tokens(part, spent, now)

    def requests_left(self, now: int) -> Remaining | None:
        """Return the tightest bound on requests; None without any."""
        bounds = self._log.read_remaining(now)
        if self._burst is not None:
            bounds.append(self._burst.read_remaining(now))
        return _tightest(bounds)

    def tokens_left(self, now: int) -> Remaining | None:
        """Return the tightest bound on tokens; None without any."""
        return _tightest([bucket.read_remaining(now) for bucket in self._buckets.values()])

    def is_idle(self, now: int) -> bool:
        """Return whether forgetting it would change nothing."""
        return (
            not self.running
            and self._log.is_idle(now)
            and all(bucket.is_idle(now) for bucket in self._buckets.values())
        )


def _tightest(bounds: list[Remaining]) -> Remaining | None:
    """Return the one with the least left; where several have equally little, the one that takes longest to give more.

    With nothing left that is exactly how long one has to wait.
    """
    return min(bounds, key=lambda left: (left.remaining, -left.reset_ns), default=None)
