"""How much is left: exact, in whole nanoseconds, and in memory. Pure; the time is told by the caller.

Requests: a bucket for bursts (the generic cell rate algorithm, one number), and sliding windows over one log of the
times of past requests (the n-th last of them decides, so a window costs one look-up). Tokens: leaky buckets, since what
a request costs is known only when it is over: an estimate is taken before, and the difference given back or taken
afterwards, which may leave a debt. All arithmetic is in integers: whoever waits exactly as long as they were told is
let in.
"""

from array import array
from typing import Literal

import msgspec

Family = Literal["requests", "tokens", "parallel"]
SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS


class Remaining(msgspec.Struct, frozen=True):
    """One bound: its size, what is left of it, and after how long one more than that is."""

    limit: int
    remaining: int
    reset_ns: int


class Burst:
    """At most `limit` at once, one more every `interval_ns`."""

    def __init__(self, limit: int, interval_ns: int) -> None:
        self.limit = limit
        self._interval_ns = interval_ns
        self._empty_at = 0
        """When the bucket will have drained."""

    def wait_ns(self, now: int) -> int:
        """Return how long until one more is let in; 0: now."""
        return max(0, self._empty_at - (self.limit - 1) * self._interval_ns - now)

    def count_request(self, now: int) -> None:
        """Let one in."""
        self._empty_at = max(now, self._empty_at) + self._interval_ns

    def read_remaining(self, now: int) -> Remaining:
        """Return what it would let in now."""
        filled_ns = self._empty_at - now
        if filled_ns <= 0:
            return Remaining(self.limit, self.limit, 0)
        remaining = max(0, self.limit - -(-filled_ns // self._interval_ns))
        return Remaining(self.limit, remaining, max(0, filled_ns - (self.limit - remaining - 1) * self._interval_ns))


class RequestLog:
    """At most `limit` in any `span_ns`, for each of `windows` (limit, span). Remembers as many as the largest needs."""

    def __init__(self, windows: tuple[tuple[int, int], ...]) -> None:
        self._windows = windows
        self._size = max((limit for limit, _ in windows), default=0)
        self._times = array("q")
        self._next = 0

    @property
    def bounded(self) -> bool:
        """Whether there is any window."""
        return bool(self._windows)

    def wait_ns(self, now: int) -> int:
        """Return how long until one more is let in; 0: now."""
        count, wait = len(self._times), 0
        for limit, span in self._windows:
            if count >= limit:
                wait = max(wait, self._times[self._next - limit] + span - now)
        return wait

    def count_request(self, now: int) -> None:
        """Let one in."""
        if len(self._times) < self._size:
            # Until the log is full, what was written last stands at its end: index -n is the n-th last.
            self._times.append(now)
        elif self._size:
            self._times[self._next] = now
            self._next = (self._next + 1) % self._size

    def read_remaining(self, now: int) -> list[Remaining]:
        """Return each window."""
        return [self._left(limit, span, now) for limit, span in self._windows]

    def times(self) -> list[int]:
        """Return what it remembers, oldest first."""
        return [*self._times[self._next :], *self._times[: self._next]]

    def is_idle(self, now: int) -> bool:
        """Return whether nothing that it remembers counts any more."""
        span = max((span for _, span in self._windows), default=0)
        return not self._times or self._times[self._next - 1] + span <= now

    def _left(self, limit: int, span: int, now: int) -> Remaining:
        low, high = 0, min(limit, len(self._times))
        # How many of the newest are younger than the span: the times only grow.
        while low < high:
            middle = (low + high + 1) // 2
            if self._times[self._next - middle] + span > now:
                low = middle
            else:
                high = middle - 1
        reset_ns = self._times[self._next - low] + span - now if low else 0
        return Remaining(limit, limit - low, reset_ns)


class TokenBucket:
    """`limit` tokens, all of which come back within `span_ns`, evenly. May fall into debt by what `settle` adds."""

    def __init__(self, limit: int, span_ns: int) -> None:
        self.limit = limit
        self._span_ns = span_ns
        # In tokens × span: then every nanosecond brings back a whole number of units, `limit` of them.
        self._used = 0
        self._at = 0

    def wait_ns(self, tokens: int, now: int) -> int:
        """Return how long until `tokens` can be taken; 0: now. Of more than the limit, the limit has to be there."""
        self._drain(now)
        missing = self._used + (min(tokens, self.limit) - self.limit) * self._span_ns
        return max(0, -(-missing // self.limit))

    def take_tokens(self, tokens: int, now: int) -> int:
        """Take them; returns what was taken."""
        self._drain(now)
        taken = min(tokens, self.limit)
        self._used += taken * self._span_ns
        return taken

    def settle_tokens(self, taken: int, spent: int, now: int) -> None:
        """Replace what was taken by what was spent in fact."""
        self._drain(now)
        self._used = max(0, self._used + (spent - taken) * self._span_ns)

    def read_remaining(self, now: int) -> Remaining:
        """Return what could be taken now."""
        self._drain(now)
        remaining = max(0, (self.limit * self._span_ns - self._used) // self._span_ns)
        return Remaining(self.limit, remaining, 0 if remaining == self.limit else self.wait_ns(remaining + 1, now))

    def adopt_debt(self, other: "TokenBucket") -> None:
        """Take over what another bucket of the same span has handed out."""
        self._used, self._at = other._used, other._at

    def is_idle(self, now: int) -> bool:
        """Return whether it is full."""
        self._drain(now)
        return self._used == 0

    def _drain(self, now: int) -> None:
        if now > self._at:
            self._used = max(0, self._used - (now - self._at) * self.limit)
            self._at = now
