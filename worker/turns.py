"""Whose turn it is: tenants one after the other, however much each has waiting."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class TenantTurns(Generic[Item]):
    """Things that wait, of several tenants. For one thread at a time."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add_item(self, tenant: str, item: Item) -> None:
        """Queue it behind the others of its tenant."""
        self._lines.setdefault(tenant, deque()).append(item)
        self._count += 1

    def pop_next(self) -> Item:
        """Take out what is next. Raises `StopIteration` where nothing waits."""
        tenant, line = next(iter(self._lines.items()))
        item = line.popleft()
        self._count -= 1
        if line:
            self._lines.move_to_end(tenant)
        else:
            del self._lines[tenant]
        return item
