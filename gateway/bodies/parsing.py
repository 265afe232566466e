"""Who parses next: large bodies one at a time, so that others run between their steps; callers take turns."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class ParsingTurns:
    """One turn at a time. One caller's hundred bodies delay another's one by a single turn."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def wait_turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the block lasts."""
        if self._busy:
            await self._wait(tenant)
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: str) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                # It got its turn in the moment in which it left.
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            tenant, line = next(iter(self._waiting.items()))
            waiter = line.popleft()
            if not line:
                del self._waiting[tenant]
            if not waiter.done():
                if line:
                    self._waiting.move_to_end(tenant)
                # Still busy: nobody may come in between.
                waiter.set_result(None)
                return
        self._busy = False


PARSING: web.AppKey[ParsingTurns] = web.AppKey("parsing", ParsingTurns)
