"""Places for work that strangers' servers may make slow: shared out fairly between the tenants that want them.

Nobody may fill all of them. A tenant takes a further place only while it holds fewer than are free: alone it gets half,
the next one half of the rest. Of 64 places a seventh tenant still finds one at once; and whichever is given back goes
to who holds fewest.
"""

import asyncio
from collections import Counter, deque


class FairSemaphore:
    """A number of places, of which a tenant takes at most `per_host` for one host. For one event loop."""

    def __init__(self, at_once: int, *, per_host: int) -> None:
        self._free = at_once
        self._per_host = per_host
        self._held: Counter[str] = Counter()
        self._hosts: Counter[tuple[str, str]] = Counter()
        self._waiting: dict[str, deque[tuple[str, asyncio.Future[None]]]] = {}

    async def acquire(self, tenant: str, host: str) -> None:
        """Wait for a place; `release` has to follow. Among those who may have one, who holds fewest is next."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (host, turn)
        self._waiting.setdefault(tenant, deque()).append(entry)
        self._share_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(tenant, host)
            elif entry in (line := self._waiting.get(tenant, deque())):
                self._leave(tenant, line, entry)
            raise

    def release(self, tenant: str, host: str) -> None:
        """Free a place, and hand it to whoever is next."""
        self._free += 1
        self._held[tenant] -= 1
        self._hosts[tenant, host] -= 1
        # Without those that are zero: names and hosts come for ever.
        self._held, self._hosts = +self._held, +self._hosts
        self._share_out()

    def _share_out(self) -> None:
        while self._free and self._seat_one():
            pass

    def _seat_one(self) -> bool:
        for tenant, line in sorted(self._waiting.items(), key=lambda item: self._held[item[0]]):
            if self._held[tenant] >= self._free:
                return False
            for entry in line:
                host, turn = entry
                if self._hosts[tenant, host] < self._per_host:
                    self._leave(tenant, line, entry)
                    if turn.done():
                        return True
                    self._free -= 1
                    self._held[tenant] += 1
                    self._hosts[tenant, host] += 1
                    turn.set_result(None)
                    return True
        return False

    def _leave(
        self, tenant: str, line: "deque[tuple[str, asyncio.Future[None]]]", entry: "tuple[str, asyncio.Future[None]]"
    ) -> None:
        line.remove(entry)
        if not line:
            del self._waiting[tenant]
