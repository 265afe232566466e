"""A bounded queue in which higher priorities go first and, within one, callers take turns.

One caller's thousand requests delay another's one by a single turn. Who lost a turn without fault goes before all.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What can wait: it has an id, an owner and a priority. Times are seconds of one clock."""

    id: int
    queued_at: float
    wait_limit_s: float

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def priority(self) -> int:
        """Higher goes first."""


T = TypeVar("T", bound=Queued)


class FairQueue(Generic[T]):
    """Waiting items; iteration gives the next one first. `capacity` and `timeout_s` may change at any time."""

    def __init__(self, *, capacity: int, timeout_s: float) -> None:
        self.capacity = capacity
        self.timeout_s = timeout_s
        self._items: dict[int, T] = {}
        self._front: OrderedDict[int, T] = OrderedDict()
        self._levels: dict[int, OrderedDict[str, OrderedDict[int, T]]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter([*self.in_turn()])

    @property
    def full(self) -> bool:
        """Whether a newcomer has to be refused."""
        return len(self._items) >= self.capacity

    @property
    def head(self) -> T | None:
        """Who is next."""
        return next(self.in_turn(), None)

    def push(self, item: T, now: float) -> None:
        """Queue at the end."""
        item.queued_at = now
        self._items[item.id] = item
        level = self._levels.setdefault(item.priority, OrderedDict())
        level.setdefault(item.tenant, OrderedDict())[item.id] = item

    def push_front(self, item: T, now: float) -> None:
        """Queue at the front, above capacity if need be: this one had its turn and lost it, not by its own fault."""
        item.queued_at = now
        self._items[item.id] = item
        self._front[item.id] = item
        self._front.move_to_end(item.id, last=False)

    def remove(self, item: T) -> bool:
        """Take one out; return whether it waited here. To take the next one uses up its caller's turn."""
        if self._items.pop(item.id, None) is None:
            return False
        if self._front.pop(item.id, None) is None:
            self._leave(item)
        return True

    def take(self, item: T) -> None:
        """Take out one that is served: its caller's turn comes after those of all others."""
        if item.id not in self._front:
            self._levels[item.priority].move_to_end(item.tenant)
        self.remove(item)

    def remove_all(self) -> list[T]:
        """Send everyone away."""
        waiting = [*self.in_turn()]
        self._items.clear()
        self._front.clear()
        self._levels.clear()
        return waiting

    def in_turn(self) -> Iterator[T]:
        """Yield the next one, then all others, for one look: nobody may come or go meanwhile."""
        yield from self._front.values()
        for priority in sorted(self._levels, reverse=True):
            for line in self._levels[priority].values():
                yield from line.values()

    def find_expired(self, now: float) -> list[T]:
        """Return everyone who has waited too long. Looks at all: who came back to the front started waiting anew."""
        return [item for item in self.in_turn() if now - item.queued_at > min(self.timeout_s, item.wait_limit_s)]

    def eviction_candidate(self, newcomer: T) -> T | None:
        """Return whose place `newcomer` may take: the last of the caller that holds most, if that is fairer so.

        None where its own caller holds as many, give or take one, or where what waits matters more.
        """
        held: dict[str, int] = {}
        for item in self._items.values():
            held[item.tenant] = held.get(item.tenant, 0) + 1
        tenant = max(held, key=lambda name: held[name], default=newcomer.tenant)
        if held.get(tenant, 0) < held.get(newcomer.tenant, 0) + 2:
            return None
        for priority in sorted(self._levels):
            line = self._levels[priority].get(tenant)
            if line and priority <= newcomer.priority:
                return next(reversed(line.values()))
        return None

    def _leave(self, item: T) -> None:
        level = self._levels[item.priority]
        line = level[item.tenant]
        took_turn = next(iter(level)) == item.tenant and next(iter(line)) == item.id
        del line[item.id]
        if not line:
            del level[item.tenant]
        elif took_turn:
            level.move_to_end(item.tenant)
        if not level:
            del self._levels[item.priority]
