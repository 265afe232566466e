"""From names to addresses, and the only way in which the gateway opens connections to the outside.

A name counts as refused if any of its addresses is not public. Connections go to the very addresses that were looked
at: nothing is looked up twice, so a name that changes its mind gains nothing.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.media.fair_semaphore import FairSemaphore

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""Finds the numeric addresses of a host. Raises `OSError`."""
Allowed = Callable[[str], bool]
"""Whether connections to a numeric address may be made."""
AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]

LOOKUPS = 16
TENANT: ContextVar[str] = ContextVar("tenant", default="")
"""Whose fetch a look-up is for: it comes to `SystemLookup` through aiohttp, which knows of hosts alone."""


class NotAllowed(OSError):
    """An address that nothing is fetched from."""


class SystemLookup:
    """The system's own resolver, on threads of its own, shared out fairly between tenants.

    They are daemons: a name server that never answers must not hold up the end of the process, nor other threads' work.
    """

    def __init__(self, at_once: int = LOOKUPS) -> None:
        self._places = FairSemaphore(at_once, per_host=at_once)

    async def __call__(self, host: str, port: int) -> list[str]:
        """Resolve a host. Raises `OSError`. A look-up that nobody waits for any more keeps its place until it ends."""
        tenant = TENANT.get()
        await self._places.acquire(tenant, host)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()

        def settle(result: list[str] | OSError) -> None:
            self._places.release(tenant, host)
            if future.done():
                return
            if isinstance(result, OSError):
                future.set_exception(result)
            else:
                future.set_result(result)

        def look() -> None:
            result = _addresses(host, port)
            # The loop may be gone by now, and with it whoever asked.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result)

        threading.Thread(target=look, name="lookup", daemon=True).start()
        return await future


def make_connector(lookup: Lookup, allowed: Allowed, *, at_once: int) -> aiohttp.TCPConnector:
    """Make a connector to allowed addresses alone. Needs a running loop."""

    def open_socket(info: AddressInfo) -> socket.socket:
        # The last word, and the only one about hosts that are numeric already: aiohttp does not resolve those.
        if not allowed(info[4][0]):
            raise NotAllowed("refused")
        return socket.socket(family=info[0], type=info[1], proto=info[2])

    return aiohttp.TCPConnector(
        resolver=_Resolver(lookup, allowed),
        socket_factory=open_socket,
        use_dns_cache=False,
        # No connection outlives the check that it was made after.
        force_close=True,
        limit=at_once,
    )


class _Resolver(AbstractResolver):
    def __init__(self, lookup: Lookup, allowed: Allowed) -> None:
        self._lookup = lookup
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return all addresses of a name, or raise `NotAllowed` for the sake of any of them."""
        addresses = await self._lookup(host, port)
        if not addresses or not all(map(self._allowed, addresses)):
            raise NotAllowed("refused")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
            if family in (socket.AF_UNSPEC, socket.AF_INET6 if ":" in address else socket.AF_INET)
        ]

    async def close(self) -> None:
        """Do nothing: nothing is open."""


def _addresses(host: str, port: int) -> list[str] | OSError:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(ipaddress.ip_address(entry[4][0])) for entry in found]
    except OSError as error:
        return error
    except ValueError:
        # UnicodeError, for labels that are too long; no address at all.
        return OSError("not a name")
