"""Limits against a log of everything that happened, searched by brute force."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.access.keys.key import UNLIMITED, RateLimits
from gateway.access.limits import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, Burst, RequestLog, TokenBucket
from gateway.access.rate_limiter import LimitRefusal, RateLimiter, Reservation

MS = 1_000_000
STEPS = st.lists(
    st.one_of(st.just(0), st.integers(1, 10 * MS), st.integers(0, 3 * SECOND_NS), st.integers(0, 2 * MINUTE_NS)),
    min_size=1,
    max_size=120,
)
BOUNDS = st.integers(1, 7)


class Log:
    """Every accepted request, for ever. What may be let in follows from the definition of each bound alone."""

    def __init__(self, burst: int, windows: tuple[tuple[int, int], ...], interval_ns: int) -> None:
        self.times: list[int] = []
        self.burst, self.windows, self.interval_ns = burst, windows, interval_ns

    def allows(self, now: int) -> bool:
        """No window would hold more than it may, and the bucket, filled drop by drop, has one left."""
        for limit, span in self.windows:
            if sum(now - span < time <= now for time in self.times) >= limit:
                return False
        level, last = Fraction(self.burst), self.times[0] if self.times else now
        for time in [*self.times, now]:
            level = min(Fraction(self.burst), level + Fraction(time - last, self.interval_ns))
            last = time
            level -= 1
        return level >= 0


@settings(max_examples=150, deadline=None)
@given(STEPS, BOUNDS, BOUNDS, st.integers(1, 20), st.integers(1, 40))
def test_requests_are_let_in_exactly_when_the_log_allows(
    steps: list[int], burst: int, rpm: int, rph: int, rpd: int
) -> None:
    """Every decision, what is left, and how long to wait: a nanosecond less is refused, exactly that is accepted."""
    limiter = RateLimiter(replace(UNLIMITED, burst=burst, rpm=rpm, rph=rph, rpd=rpd))
    log = Log(burst, ((rpm, MINUTE_NS), (rph, HOUR_NS), (rpd, DAY_NS)), -(-MINUTE_NS // rpm))
    now = 10**15
    for step in steps:
        now += step
        allowed = log.allows(now)
        left = limiter.requests_left(now)
        assert left is not None
        assert (left.remaining > 0) is allowed
        found = limiter.start_request(now)
        assert (found is None) is allowed
        if found is None:
            limiter.end_request()
            log.times.append(now)
        else:
            assert found.wait_ns == left.reset_ns
            assert not log.allows(now + found.wait_ns - 1)
            assert log.allows(now + found.wait_ns)
            assert not log.allows(now + found.wait_ns - MS)


@settings(max_examples=100, deadline=None)
@given(STEPS, BOUNDS)
def test_remaining_is_how_many_more_are_let_in_at_once(steps: list[int], rpm: int) -> None:
    """As many as the answer said, and not one more."""
    limits = replace(UNLIMITED, burst=rpm + 2, rpm=rpm, rph=rpm * 2)
    limiter, now = RateLimiter(limits), 0
    for step in steps:
        now += step
        left = limiter.requests_left(now)
        assert left is not None
        let_in = 0
        while limiter.start_request(now) is None:
            let_in += 1
        assert let_in == left.remaining


def test_wait_is_true_to_the_millisecond_when_the_default_limits_are_used_up() -> None:
    """The figures of production: burst 10, 60 a minute, 1,000 an hour, 10,000 a day; at the end of each."""
    limiter = RateLimiter(replace(UNLIMITED, burst=10, rpm=60, rph=1000, rpd=10_000))
    now, accepted, met = 0, 0, set()
    for _ in range(10_000):
        found = limiter.start_request(now)
        while isinstance(found, LimitRefusal):
            met.add(found.wait_ns)
            assert isinstance(limiter.start_request(now + found.wait_ns - MS), LimitRefusal)
            now += found.wait_ns
            found = limiter.start_request(now)
        accepted += 1
    assert accepted == 10_000
    assert now >= 9 * HOUR_NS
    found = limiter.start_request(now)
    assert isinstance(found, LimitRefusal)
    assert found.wait_ns > 12 * HOUR_NS
    assert limiter.start_request(now + found.wait_ns) is None


class Ledger:
    """A token bucket by its definition, in fractions: what was used, and what has come back since."""

    def __init__(self, limit: int, span_ns: int) -> None:
        self.limit, self.rate = limit, Fraction(limit, span_ns)
        self.used, self.at = Fraction(0), 0

    def use(self, tokens: int, now: int) -> None:
        """Tokens come or go."""
        self.used = max(Fraction(0), self.used - (now - self.at) * self.rate)
        self.used = max(Fraction(0), self.used + tokens)
        self.at = now

    def free(self, now: int) -> Fraction:
        """What could be taken."""
        return self.limit - max(Fraction(0), self.used - (now - self.at) * self.rate)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30 * SECOND_NS), st.integers(0, 120), st.integers(0, 200)), min_size=1),
    st.integers(1, 100),
)
def test_tokens_are_let_in_exactly_when_the_ledger_allows(steps: list[tuple[int, int, int]], limit: int) -> None:
    """Reserve, settle with more or less, be told to wait: never a token or a nanosecond off."""
    bucket, ledger, now = TokenBucket(limit, MINUTE_NS), Ledger(limit, MINUTE_NS), 0
    for step, wanted, spent in steps:
        now += step
        need = min(wanted, limit)
        wait = bucket.wait_ns(wanted, now)
        assert (wait == 0) is (ledger.free(now) >= need)
        left = bucket.read_remaining(now)
        assert left.remaining == max(0, ledger.free(now) // 1)
        if left.remaining < limit:
            assert ledger.free(now + left.reset_ns) >= left.remaining + 1 > ledger.free(now + left.reset_ns - 1)
        if wait:
            assert ledger.free(now + wait) >= need > ledger.free(now + wait - 1)
            continue
        taken = bucket.take_tokens(wanted, now)
        assert taken == need
        ledger.use(need, now)
        now += step // 2
        bucket.settle_tokens(taken, spent, now)
        ledger.use(spent - need, now)


def test_reservation_takes_from_all_buckets_or_none() -> None:
    """A full minute does not use up the day."""
    limiter = RateLimiter(replace(UNLIMITED, tpm=100, tpd=1000))
    assert isinstance(limiter.reserve_tokens(60, 0), Reservation)
    assert isinstance(limiter.reserve_tokens(60, 0), LimitRefusal)
    limiter.settle_tokens(None, 0, 0)
    assert isinstance(limiter.reserve_tokens(40, 0), Reservation)
    left = limiter.tokens_left(0)
    assert left is not None
    assert (left.limit, left.remaining) == (100, 0)


def test_thousand_at_once_never_exceed_the_burst() -> None:
    """However many come in one instant."""
    limiter = RateLimiter(replace(UNLIMITED, burst=10, rpm=60))
    assert sum(limiter.start_request(5) is None for _ in range(1000)) == 10


def test_parallel_requests_are_bounded_until_one_ends() -> None:
    """A slot comes back with the end of a request, and only so."""
    limiter = RateLimiter(replace(UNLIMITED, parallel=2))
    assert [limiter.start_request(0), limiter.start_request(0)] == [None, None]
    assert limiter.start_request(0) == LimitRefusal("parallel", 0)
    limiter.end_request()
    assert limiter.start_request(0) is None


def test_what_was_used_stays_used_when_limits_change() -> None:
    """New limits hold at once, over the same past."""
    old = RateLimiter(replace(UNLIMITED, rpm=5, tpm=100))
    for _ in range(5):
        old.start_request(0)
    old.reserve_tokens(80, 0)
    new = RateLimiter(replace(UNLIMITED, rpm=7, tpm=200), old)
    assert new.running == 5
    assert [new.start_request(1) is None for _ in range(3)] == [True, True, False]
    left = new.tokens_left(0)
    assert left is not None
    assert left.remaining == 120


def test_meter_is_idle_only_when_it_says_what_a_new_one_would() -> None:
    """Nothing is forgotten that still counts."""
    limiter = RateLimiter(replace(UNLIMITED, rpm=5, tpm=60))
    limiter.start_request(0)
    assert not limiter.is_idle(2 * MINUTE_NS)
    limiter.end_request()
    limiter.settle_tokens(None, 90, 0)
    assert not limiter.is_idle(MINUTE_NS)
    assert limiter.is_idle(2 * MINUTE_NS)
    assert RateLimiter(RateLimits(), None).is_idle(0)
    assert RequestLog(()).wait_ns(0) == 0
    assert Burst(1, 10).read_remaining(0).remaining == 1
