"""The listening socket: how many connections there may be, and how long one may stay before it asks for anything.

A connection takes a descriptor, and so do workers' sockets, databases and images that are fetched: those are left some.
"""

import asyncio
import contextlib
import logging
import resource
import ssl
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

KEEP_ALIVE_S = 75.0
FIRST_REQUEST_S = 30.0
"""A connection whose first request has not come by then is closed."""
REFUSAL_S = 1.0
"""The same for one that is refused anyway."""
BACKLOG = 1024
SPARE = 96
"""Descriptors that connections leave to others, if there are twice as many."""
TOLD = 32
"""So many connections too many are heard and refused; others are closed unheard."""
LIMITS = (65_536, 10_240)
"""Descriptors to ask the system for: macOS gives a program 256 unless it asks, and refuses more than its own bound."""

log = logging.getLogger(__name__)


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_deadline", "_listener", "refused")

    def __init__(self, listener: "Listener", server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, keepalive_timeout=KEEP_ALIVE_S, access_log=None)  # type: ignore[arg-type]
        self._listener = listener
        self._deadline: asyncio.TimerHandle | None = None
        self.refused = False
        """Whether it is one too many: its request gets an error, and then it is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.refused = not self._listener.admit(self)
        self._deadline = self._loop.call_later(REFUSAL_S if self.refused else FIRST_REQUEST_S, self.force_close)

    def asked(self) -> None:
        """A request has come, with all of its headers. aiohttp itself bounds the time to the next one."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            if self.refused:
                self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._listener.left(self)
        super().connection_lost(exc)


class Listener:
    """Accepts connections, as many as there are descriptors for."""

    def __init__(self) -> None:
        self.refusals = 0
        """Connections that were one too many, so far."""
        self.most = 0
        self._open: set[Connection] = set()
        self._sockets: asyncio.Server | None = None

    @property
    def count(self) -> int:
        """Connections that are open."""
        return len(self._open)

    async def open(self, server: web.Server, host: str, port: int, tls: ssl.SSLContext | None) -> str:
        """Begin to listen; answers the address. Raises `OSError`."""
        limit = raise_limit()
        self.most = max(limit - SPARE, limit // 2)
        loop = asyncio.get_running_loop()
        self._sockets = await loop.create_server(
            lambda: Connection(self, server, loop), host, port, ssl=tls, backlog=BACKLOG
        )
        bound: tuple[Any, ...] = self._sockets.sockets[0].getsockname()
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{bound[1]}"

    def close(self) -> None:
        """Take no more connections; those that are open stay."""
        if self._sockets is not None:
            self._sockets.close()

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; whether it is one of those that there is room for."""
        self._open.add(connection)
        if self.count <= self.most:
            return True
        self.refusals += 1
        if self.refusals & (self.refusals - 1) == 0:
            log.warning("%d connections are open, the most there is room for; %d refused", self.most, self.refusals)
        if self.count > self.most + TOLD and connection.transport is not None:
            connection.transport.abort()
        return False

    def left(self, connection: Connection) -> None:
        """It is closed."""
        self._open.discard(connection)


def raise_limit() -> int:
    """Let this process have as many descriptors as the system allows, within reason; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in LIMITS:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or limit <= soft:
            break
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return limit
    return soft if soft != resource.RLIM_INFINITY else LIMITS[0]
