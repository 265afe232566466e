"""Limits behind one interface, wherever they are kept; and the limiter that keeps them in this process alone."""

from typing import Protocol

from gateway.access.keys.keyring import Caller
from gateway.access.limits import Remaining
from gateway.access.rate_limiter import LimitRefusal, RateLimiter, Reservation
from gateway.access.usage import UsageLedger


class LimitedRequest:
    """One request under the limits of its key, counted in this process."""

    def __init__(self, usage: UsageLedger, caller: Caller) -> None:
        self._usage = usage
        self._caller = caller
        self._reserved: Reservation | None = None

    @property
    def rate_limiter(self) -> RateLimiter:
        """What the key has used, under the limits that it has now."""
        return self._usage.limiter_for(self._caller)

    @property
    def counts_tokens(self) -> bool:
        """Whether a reservation of tokens could matter."""
        return self.rate_limiter.counts_tokens

    async def start_request(self) -> LimitRefusal | None:
        """Let the request in until `end_request`, or say why not."""
        return self.rate_limiter.start_request(self._usage.clock_ns())

    async def reserve_tokens(self, tokens: int) -> LimitRefusal | None:
        """Take tokens for what the request may cost, once, or say why not."""
        found = self.rate_limiter.reserve_tokens(tokens, self._usage.clock_ns())
        if isinstance(found, LimitRefusal):
            return found
        self._reserved = found
        return None

    def end_request(self) -> None:
        """Count a request that was let in as one that runs no more."""
        self.rate_limiter.end_request()

    def settle_tokens(self, spent: int) -> None:
        """Replace what was reserved by what was spent; last, and also for a request that was not let in."""
        self.rate_limiter.settle_tokens(self._reserved, spent, self._usage.clock_ns())

    def read_remaining(self) -> tuple[Remaining | None, Remaining | None]:
        """Return what is left of requests and of tokens; None without a bound."""
        limiter, now = self.rate_limiter, self._usage.clock_ns()
        return limiter.requests_left(now), limiter.tokens_left(now)


class Limiter(Protocol):
    """The place where limits are kept."""

    def open_request(self, caller: Caller) -> LimitedRequest:
        """Return a new request of a key, which is not let in yet."""

    def is_up(self) -> bool | None:
        """Return whether the store works that gateways share; None without one."""

    async def start(self) -> None:
        """Begin to look after what is kept elsewhere."""

    async def close(self) -> None:
        """Write what is owed, and let go."""


class MemoryLimiter:
    """Limits of this gateway alone."""

    def __init__(self, usage: UsageLedger) -> None:
        self._usage = usage

    def open_request(self, caller: Caller) -> LimitedRequest:
        """Return a new request of a key."""
        return LimitedRequest(self._usage, caller)

    def is_up(self) -> None:
        """Return None: there is no store."""

    async def start(self) -> None:
        """Do nothing: there is no store."""

    async def close(self) -> None:
        """Do nothing: there is no store."""
