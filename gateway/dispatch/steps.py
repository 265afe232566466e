"""How many rows engines compute together: a histogram by model and kind of step. Plain numbers, read when asked for."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

Step = Literal["decode", "embed"]
"""`decode`: rows that got a token in one step of an engine, which is what comes in one frame. `embed`: inputs in the
largest forward pass of a job."""
BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class StepCounts:
    """Counts per bucket, the last of which has no bound."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, Step], list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._sums: defaultdict[tuple[str, Step], int] = defaultdict(int)

    def count_step(self, model: str, step: Step, rows: int) -> None:
        """One step. The hot path: once per frame of an engine."""
        self._counts[model, step][bisect_left(BOUNDS, rows)] += 1
        self._sums[model, step] += rows

    def histograms(self) -> Iterator[tuple[tuple[str, Step], list[tuple[str, float]], int]]:
        """Of each model and kind: its labels, (upper bound, steps up to it), the sum of rows: as Prometheus has it."""
        for labels, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            yield labels, buckets, self._sums[labels]
