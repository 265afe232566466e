"""What a scenario comes to: readings, each with the bound that has to hold."""

from dataclasses import dataclass, field

from hostility.monitor import MB, Observation

GAP_KEYED_S = 0.5
GAP_KEYLESS_S = 0.3
SILENCE_S = 1.0
BEAT_S = 2.5
"""Beats come once a second, and an engine that is not heard of for five is taken for dead."""
GROWTH_KEYED = 300 * MB
GROWTH_KEYLESS = 50 * MB
GROWTH_ENGINE = 500 * MB
SETTLE_S = 30.0


@dataclass(frozen=True)
class Reading:
    """A measured figure; `most` None: nothing was promised."""

    what: str
    figure: float
    most: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is within its bound."""
        return self.most is None or self.figure <= self.most

    def __str__(self) -> str:
        bound = "" if self.most is None else f" (at most {self.most:g})"
        return f"{self.what}: {self.figure:.3g}{self.unit and ' ' + self.unit}{bound}{self.note and ': ' + self.note}"


@dataclass
class AttackReport:
    """The readings of a scenario, in order."""

    readings: list[Reading] = field(default_factory=list)

    def add(self, what: str, figure: float, most: float | None = None, unit: str = "", note: str = "") -> None:
        """Note one."""
        self.readings.append(Reading(what, figure, most, unit, note))

    def add_gaps(self, seen: Observation, most_s: float) -> None:
        """Add the longest time that the gateway answered nobody, and where it held its own loop that long."""
        self.add("longest gap of /ping", seen.longest_s("ping"), most_s, "s", seen.described("ping"))
        fresh = seen.longest_s("fresh ping")
        self.add("the same on new connections", fresh, most_s, "s", seen.described("fresh ping"))
        lost = [fault for _, fault in seen.lost_pings]
        self.add("pings not answered", len(lost), 0, "", "; ".join(sorted({*lost})[:3]))
        if seen.elsewhere > 0.05:
            self.add("others' share of the machine", seen.elsewhere)

    def add_engines(self, seen: Observation, starts: int) -> None:
        """Add whether engines lived through it; `starts`: engine processes started meanwhile."""
        self.add("longest silence of an engine", seen.silent_s(), BEAT_S, "s")
        self.add("engines started again", starts, 0)

    def add_victims(self, seen: Observation) -> None:
        """Add what became of requests of those who did nothing wrong."""
        failures = seen.failures()
        asked = len(seen.requests) + len(seen.streams)
        self.add(
            f"others' requests that failed, of {asked}", len(failures), 0, "", "; ".join(sorted({*failures})[:3])[:400]
        )
        if "stream" in seen.gaps:
            self.add(
                "longest silence of another's stream",
                seen.longest_s("stream"),
                SILENCE_S,
                "s",
                seen.described("stream"),
            )

    @property
    def missed(self) -> list[Reading]:
        """What does not hold."""
        return [reading for reading in self.readings if not reading.holds]
