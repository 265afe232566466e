"""One account of the memory that requests take: bodies, forms, images, and the jobs made of them until they end.

Bytes are counted as they come, never as they are declared. Each caller may hold up to twice of what is still free: one
alone gets two thirds, the next one two thirds of the rest, and so on, so that a newcomer always finds some room.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.access.gate import CALLER
from gateway.allocator import release_free_memory
from gateway.schema.errors import ApiError

BODY_MEMORY_BYTES = 256 << 20
BURST_BYTES = 32 << 20
"""Requests that held more than this together leave a heap worth tidying up."""
RELEASE_S = 5.0


class MemoryAccount:
    """What all requests hold together, in bytes; `refused` counts those that found no room."""

    def __init__(self, capacity_bytes: int = BODY_MEMORY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self.refused = 0
        self.peak_bytes = 0
        """Most that was held since free memory was last given back to the system."""
        self._tenants: dict[str, int] = {}

    @property
    def most_bytes(self) -> int:
        """What a request may hold if there is no other."""
        return self.capacity_bytes * 2 // 3

    def report(self) -> dict[str, int]:
        """Return the account in brief."""
        return {"held_bytes": self.held_bytes, "most_bytes": self.capacity_bytes, "refused": self.refused}

    def open_share(self, tenant: str) -> "MemoryShare":
        """Open the share of a request of this caller."""
        return MemoryShare(self, tenant)

    def has_room(self, tenant: str, size: int) -> bool:
        """Return whether a caller may hold so many bytes more."""
        return self._tenants.get(tenant, 0) + size <= 2 * (self.capacity_bytes - self.held_bytes - size)

    def count_bytes(self, tenant: str, size: int) -> None:
        """Count so many bytes more; fewer, where negative."""
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        own = self._tenants.get(tenant, 0) + size
        if own:
            self._tenants[tenant] = own
        else:
            self._tenants.pop(tenant, None)


class MemoryShare:
    """What one request holds, until it and every job that it left behind are over."""

    __slots__ = ("_account", "_users", "held_bytes", "tenant")

    def __init__(self, account: MemoryAccount, tenant: str) -> None:
        self.held_bytes = 0
        self._account = account
        self.tenant = tenant
        self._users = 1

    def hold_bytes(self, size: int) -> None:
        """Hold so many bytes more. Raises `ApiError`: 429, or 413 where there could never be room."""
        if self._account.has_room(self.tenant, size):
            self._change(size)
            return
        self._account.refused += 1
        most = self._account.most_bytes
        if self.held_bytes + size > most:
            raise ApiError("body_too_large", f"The request takes more than {most} bytes of memory.")
        raise ApiError("queue_full")

    def release_bytes(self, size: int) -> None:
        """Give so many bytes back."""
        self._change(-size)

    def settle_bytes(self, size: int) -> None:
        """Hold so many bytes from now on, instead of what was estimated."""
        self._change(size - self.held_bytes)

    def add_user(self) -> None:
        """Keep what is held until `close` was called once more."""
        self._users += 1

    def close(self) -> None:
        """Give everything back, unless somebody else keeps it."""
        self._users -= 1
        if not self._users:
            self._change(-self.held_bytes)

    def _change(self, size: int) -> None:
        self._account.count_bytes(self.tenant, size)
        self.held_bytes += size


async def release_when_idle(app: web.Application) -> AsyncIterator[None]:
    """Give memory back to the system once a burst of large requests is over (for `cleanup_ctx`)."""
    account = app[MEMORY]

    async def watch() -> None:
        while True:
            await asyncio.sleep(RELEASE_S)
            if account.peak_bytes > BURST_BYTES and account.held_bytes < account.peak_bytes // 4:
                account.peak_bytes = account.held_bytes
                await asyncio.to_thread(release_free_memory)

    watcher = asyncio.create_task(watch(), name="memory")
    yield
    watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher


MEMORY: web.AppKey[MemoryAccount] = web.AppKey("memory", MemoryAccount)
SHARE: web.RequestKey[MemoryShare] = web.RequestKey("share", MemoryShare)


@web.middleware
async def account_memory(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request a share of the account, and take it back in the end."""
    share = request[SHARE] = request.app[MEMORY].open_share(request[CALLER].tenant)
    try:
        return await handler(request)
    finally:
        share.close()
