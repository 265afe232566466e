"""How many inputs were embedded, since the start and per second of the last minute. Pure; times are given."""

from collections import deque

import msgspec

WINDOW_S = 60


class Throughput:
    """Counts of one model, in buckets of a second."""

    def __init__(self) -> None:
        self.inputs = 0
        self.tokens = 0
        self._seconds: deque[tuple[int, int, int]] = deque(maxlen=WINDOW_S)

    def count_request(self, now: float, *, inputs: int, tokens: int) -> None:
        """Count a request that was answered at `now`, in seconds."""
        self.inputs += inputs
        self.tokens += tokens
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            _, before, tokens_before = self._seconds.pop()
            inputs, tokens = inputs + before, tokens + tokens_before
        self._seconds.append((second, inputs, tokens))

    def read_rates(self, now: float) -> "Rates":
        """What was counted until `now`."""
        recent = [entry for entry in self._seconds if entry[0] > now - WINDOW_S]
        return Rates(
            inputs=self.inputs,
            tokens=self.tokens,
            inputs_per_s=sum(inputs for _, inputs, _ in recent) / WINDOW_S,
            tokens_per_s=sum(tokens for _, _, tokens in recent) / WINDOW_S,
        )


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and their tokens since the start, cached ones included, and per second of the last minute."""

    inputs: int
    tokens: int
    inputs_per_s: float
    tokens_per_s: float
