"""The line in front of one model: bounded in length and in time; `Turns` says who is next."""

from collections.abc import Iterator

from gateway.dispatch.flight import JobState
from gateway.dispatch.jobs.turns import Turns


class Queue:
    """Waiting flights. `capacity` and `timeout_s` are set from what the model's workers announce."""

    def __init__(self, *, capacity: int, timeout_s: float) -> None:
        self.capacity = capacity
        self.timeout_s = timeout_s
        self._line = Turns()

    def __len__(self) -> int:
        return len(self._line)

    @property
    def full(self) -> bool:
        """Whether a newcomer has to be refused."""
        return len(self._line) >= self.capacity

    @property
    def head(self) -> JobState | None:
        """Who is next."""
        return next(iter(self._line.values()), None)

    def push(self, flight: JobState, now: float) -> None:
        """Queue at the end."""
        flight.queued_at = now
        flight.queue = self
        self._line[flight.id] = flight

    def push_front(self, flight: JobState, now: float) -> None:
        """Queue at the front, above capacity if need be: this one had its turn and lost it, not by its own fault."""
        self.push(flight, now)
        self._line.move_to_end(flight.id, last=False)

    def remove(self, flight: JobState) -> bool:
        """Leave the line; whether it stood there."""
        found = self._line.pop(flight.id, None) is not None
        if found:
            flight.queue = None
        return found

    def in_turn(self) -> Iterator[JobState]:
        """All, who is next first; for one look, as nobody may come or go meanwhile."""
        return self._line.values()

    def take_job(self, flight: JobState) -> None:
        """Take out one that is sent: its caller has had its turn."""
        self._line.move_back(flight.id)
        self.remove(flight)

    def eviction_candidate(self, newcomer: JobState) -> JobState | None:
        """Who has to go where `newcomer` finds the line full; None if that is the newcomer. See `Turns`."""
        return self._line.eviction_candidate(newcomer)

    def find_expired(self, now: float) -> list[JobState]:
        """Everyone who has waited too long. Looks at all: who came back to the front started waiting anew."""
        return [
            flight
            for flight in self._line.values()
            if now - flight.queued_at > min(self.timeout_s, flight.wait_limit_s)
        ]

    def remove_all(self) -> list[JobState]:
        """Send everyone away."""
        waiting = [*self._line.values()]
        self._line.clear()
        for flight in waiting:
            flight.queue = None
        return waiting

    def __iter__(self) -> Iterator[JobState]:
        return iter([*self._line.values()])
