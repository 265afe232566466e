"""What a scenario comes to: readings, each with the bound that has to hold."""

from dataclasses import dataclass, field

from hostility.watch import MB, Sight

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
class Report:
    """The readings of a scenario, in order."""

    readings: list[Reading] = field(default_factory=list)

    def add(self, what: str, figure: float, most: float | None = None, unit: str = "", note: str = "") -> None:
        """Note one."""
        self.readings.append(Reading(what, figure, most, unit, note))

    def add_gaps(self, sight: Sight, most_s: float) -> None:
        """Add the longest time that the gateway answered nobody, and where it held its own loop that long."""
        self.add("longest gap of /ping", sight.longest_s("ping"), most_s, "s", sight.described("ping"))
        fresh = sight.longest_s("fresh ping")
        self.add("the same on new connections", fresh, most_s, "s", sight.described("fresh ping"))
        lost = [fault for _, fault in sight.lost_pings]
        self.add("pings not answered", len(lost), 0, "", "; ".join(sorted({*lost})[:3]))
        if sight.elsewhere > 0.05:
            self.add("others' share of the machine", sight.elsewhere)

    def add_engines(self, sight: Sight, starts: int) -> None:
        """Add whether engines lived through it; `starts`: engine processes started meanwhile."""
        self.add("longest silence of an engine", sight.silent_s(), BEAT_S, "s")
        self.add("engines started again", starts, 0)

    def add_victims(self, sight: Sight) -> None:
        """Add what became of requests of those who did nothing wrong."""
        failures = sight.failures()
        asked = len(sight.requests) + len(sight.streams)
        self.add(
            f"others' requests that failed, of {asked}", len(failures), 0, "", "; ".join(sorted({*failures})[:3])[:400]
        )
        if "stream" in sight.gaps:
            self.add(
                "longest silence of another's stream",
                sight.longest_s("stream"),
                SILENCE_S,
                "s",
                sight.described("stream"),
            )

    @property
    def missed(self) -> list[Reading]:
        """What does not hold."""
        return [reading for reading in self.readings if not reading.holds]
