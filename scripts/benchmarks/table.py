"""A measured table: what, how much, how much was wanted, whether that holds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One result; `wanted` None where nothing was promised."""

    what: str
    figure: str
    wanted: str = ""
    holds: bool | None = None


@dataclass
class Table:
    """Lines as they come, printed as they come: long work shows progress."""

    lines: list[Line] = field(default_factory=list)

    def add(self, what: str, figure: str, wanted: str = "", holds: bool | None = None) -> None:
        """Add and print one line."""
        self.lines.append(Line(what, figure, wanted, holds))
        mark = {True: "ok", False: "MISSED", None: ""}[holds]
        print(f"{what:<58} {figure:<34} {wanted:<16} {mark}", flush=True)

    @property
    def missed(self) -> list[Line]:
        """What does not hold."""
        return [line for line in self.lines if line.holds is False]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of ratios of measurements taken in turn: machines drift, pairs do not."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def median(values: Sequence[float]) -> float:
    """Return the median; the mean of two in the middle."""
    return statistics.median(values)
