"""Who has to make room in a cache that many tenants share. Pure.

A tenant may fill what nobody else uses; where room is short, whoever holds most gives first. So nobody loses what it
holds of an equal share, however much another one stores, until it has not used it for a while.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import msgspec


class TenantShare(msgspec.Struct, frozen=True, gc=False):
    """Something that `holder` keeps."""

    key: Any
    holder: str
    size_bytes: int
    used_at: float


def select_for_eviction(items: Iterable[TenantShare], excess_bytes: int, *, stale_before: float) -> list[Any]:
    """Return the keys to drop so that `excess_bytes` are free. `items` come least recently used first.

    What was not used since `stale_before` goes first, whosever it is; then the oldest of the holder with most bytes.
    """
    found: list[Any] = []
    lines: defaultdict[str, deque[TenantShare]] = defaultdict(deque)
    held: defaultdict[str, int] = defaultdict(int)
    for item in items:
        if excess_bytes > 0 and item.used_at < stale_before:
            found.append(item.key)
            excess_bytes -= item.size_bytes
        else:
            lines[item.holder].append(item)
            held[item.holder] += item.size_bytes
    while excess_bytes > 0 and lines:
        most = max(lines, key=lambda holder: held[holder])
        item = lines[most].popleft()
        found.append(item.key)
        held[most] -= item.size_bytes
        excess_bytes -= item.size_bytes
        if not lines[most]:
            del lines[most]
    return found
