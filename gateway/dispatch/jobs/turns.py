"""The order in which those who wait are served. Higher priorities first; within one, callers take turns.

One caller's thousand requests delay another's one by a single turn. Who lost a turn without fault goes before all.
"""

from collections import OrderedDict
from collections.abc import Iterator

from gateway.dispatch.flight import JobState


class Turns:
    """Waiting flights by id; iterating `values` gives the next one first."""

    def __init__(self) -> None:
        self._ids: dict[int, JobState] = {}
        self._front: OrderedDict[int, JobState] = OrderedDict()
        self._levels: dict[int, OrderedDict[str, OrderedDict[int, JobState]]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __setitem__(self, flight_id: int, flight: JobState) -> None:
        self._ids[flight_id] = flight
        level = self._levels.setdefault(flight.priority, OrderedDict())
        level.setdefault(flight.tenant, OrderedDict())[flight_id] = flight

    def pop(self, flight_id: int, _default: None) -> JobState | None:
        """Take one out; None if it does not wait. Taking the next one uses up its caller's turn."""
        flight = self._ids.pop(flight_id, None)
        if flight is not None and self._front.pop(flight_id, None) is None:
            self._leave(flight)
        return flight

    def move_to_end(self, flight_id: int, *, last: bool) -> None:
        """To the very front (`last` must be False: who comes waits at the end of its own line)."""
        flight = self._ids[flight_id]
        self._leave(flight)
        self._front[flight_id] = flight
        self._front.move_to_end(flight_id, last=last)

    def move_back(self, flight_id: int) -> None:
        """Have its caller's turn come after those of all others, though it was not its turn."""
        flight = self._ids[flight_id]
        if flight_id not in self._front:
            self._levels[flight.priority].move_to_end(flight.tenant)

    def clear(self) -> None:
        """Send all away."""
        self._ids.clear()
        self._front.clear()
        self._levels.clear()

    def values(self) -> Iterator[JobState]:
        """The next one, then all others in no order that matters."""
        yield from self._front.values()
        for priority in sorted(self._levels, reverse=True):
            for line in self._levels[priority].values():
                yield from line.values()

    def eviction_candidate(self, newcomer: JobState) -> JobState | None:
        """Whose place `newcomer` may take: the last of the caller that holds most places, if that is fairer so.

        None where its own caller holds as many, give or take one, or where what waits matters more.
        """
        held: dict[str, int] = {}
        for flight in self._ids.values():
            held[flight.tenant] = held.get(flight.tenant, 0) + 1
        tenant = max(held, key=lambda name: held[name], default=newcomer.tenant)
        if held.get(tenant, 0) < held.get(newcomer.tenant, 0) + 2:
            return None
        for priority in sorted(self._levels):
            line = self._levels[priority].get(tenant)
            if line and priority <= newcomer.priority:
                return next(reversed(line.values()))
        return None

    def _leave(self, flight: JobState) -> None:
        level = self._levels[flight.priority]
        line = level[flight.tenant]
        took_turn = next(iter(level)) == flight.tenant and next(iter(line)) == flight.id
        del line[flight.id]
        if not line:
            del level[flight.tenant]
        elif took_turn:
            level.move_to_end(flight.tenant)
        if not level:
            del self._levels[flight.priority]
