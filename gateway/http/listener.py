"""The listening sockets: how many connections there may be, who has to go when there are too many.

A connection takes a descriptor, and so do workers' sockets, databases and images that are fetched: those are left some.
A place is counted from the moment that a connection is accepted, before any handshake. Who has shown a valid key is
known here; strangers have fewer places, and whoever of them has waited longest makes room for the next.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from gateway.http.connection import ClientConnection, budget_of_malformed
from gateway.http.place import ListenerPlace
from gateway.schema.errors import ApiError
from gateway.values import Network

BACKLOG = 1024
SPARE = 96
"""Descriptors that connections leave to others, if there are twice as many."""
TOLD = 32
"""So many connections too many are heard and refused; others are closed unheard."""
STRANGERS = 128
"""Connections without a valid key so far; others wait to be accepted until one of them is known or gone."""
STRANGERS_TLS = 48
"""The same over TLS, where each may take half a megabyte of buffers."""
LEAST_STRANGERS = 8
SETTLED_S = 0.5
"""Nobody who came or was answered later than this ago has to make room."""
HANDSHAKE_S = 8.0
AT_ONCE = 64
"""Connections that are accepted before others get a turn."""
RECEIVE_BYTES = 64 * 1024
"""What the system keeps for a connection until it is read (Linux doubles it): with the system's own megabytes, hundreds
of senders would have the event loop copy a hundred megabytes before anybody else has a turn."""
DISCARDING = 8
"""Connections with a key whose unwanted bodies are thrown away together: hundreds at once would hold the loop."""
PAUSE_S = 1.0
"""How long nothing is accepted when the system has no room."""
LIMITS = (65_536, 10_240)
"""Descriptors to ask the system for: macOS gives a program 256 unless it asks, and refuses more than its own bound."""

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1"))
"""Addresses of this machine itself, where a proxy may stand: they may have all places."""

log = logging.getLogger(__name__)


class Listener:
    """Accepts connections, as many as there are descriptors for."""

    def __init__(self, *, proxies: tuple[Network, ...] = LOOPBACK, unread_s: float = 60.0) -> None:
        self.refusals = 0
        """Connections that were one too many, so far."""
        self.evictions = 0
        """Connections that had to make room."""
        self.failed_handshakes: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.most = 0
        self.unread_s = unread_s
        """A client that reads nothing of an answer for so long is cut off."""
        self.proxies = proxies
        self.places: set[ListenerPlace] = set()
        self._by_address: Counter[str] = Counter()
        # Whose turn to leave it is comes first.
        self._strangers: dict[ListenerPlace, None] = {}
        self._idle: dict[ListenerPlace, None] = {}
        self._sockets: list[socket.socket] = []
        # Accepted, and waits for room.
        self._held: tuple[socket.socket, Any] | None = None
        self._resumption: asyncio.TimerHandle | None = None
        self._malformed_lines = budget_of_malformed()
        self._discarding = asyncio.Semaphore(DISCARDING)

    @property
    def count(self) -> int:
        """Connections that are open, handshakes included."""
        return len(self.places)

    def discarding(self, place: ListenerPlace) -> contextlib.AbstractAsyncContextManager[Any]:
        """Wait for the turn to throw a body away. Strangers' are small, and wait for nobody."""
        return self._discarding if place.known else contextlib.nullcontext()

    @property
    def strangers(self) -> int:
        """Those over which no valid key has come yet."""
        return len(self._strangers)

    async def open(self, server: web.Server, host: str, port: int, tls: ssl.SSLContext | None) -> str:
        """Begin to listen; answers the address. Raises `OSError`."""
        limit = raise_limit()
        self.most = max(limit - SPARE, limit // 2)
        self._loop = asyncio.get_running_loop()
        self._server, self.tls = server, tls
        self._sockets = await bind(host, port)
        self._resume()
        bound: tuple[Any, ...] = self._sockets[0].getsockname()
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{bound[1]}"

    def close(self) -> None:
        """Take no more connections; those that are open stay."""
        self._pause()
        if self._resumption is not None:
            self._resumption.cancel()
        if self._held is not None:
            self._held[0].close()
            self._held = None
        while self._sockets:
            self._sockets.pop().close()
        for place in [*self.places]:
            if place.connection is None:
                place.abort()

    # -- accepting ---------------------------------------------------------

    def _resume(self) -> None:
        self._resumption = None
        for listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening)
        if self._held is not None:
            self._loop.call_soon(self._accept, self._sockets[0])

    def _pause(self, pause_s: float | None = None) -> None:
        for listening in self._sockets:
            self._loop.remove_reader(listening.fileno())
        if pause_s is not None and self._resumption is None:
            self._resumption = self._loop.call_later(pause_s, self._resume)

    def _end_pause(self) -> None:
        """Accept again: there may be room."""
        if self._resumption is not None:
            self._resumption.cancel()
            self._resume()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE if self._sockets else 0):
            try:
                accepted, peer = self._held or listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.error("No connection can be accepted: %s", error.strerror)
                self._pause(PAUSE_S)
                return
            self._held = None
            now, address = time.monotonic(), address_of(peer)
            if (wait_s := self._make_room_for_stranger(address, now)) > 0:
                self._held = accepted, peer
                self._pause(wait_s)
                return
            self._admit(accepted, address, now)

    def _make_room_for_stranger(self, address: str, now: float) -> float:
        """Close whoever of too many strangers has waited longest; how long to wait where it is too early, else 0.

        An address that has half of their places makes room for its next one itself, however early.
        """
        most = min(STRANGERS if self.tls is None else STRANGERS_TLS, max(LEAST_STRANGERS, self.most // 2))
        if self.strangers < most:
            return 0.0
        own = [place for place in self._strangers if place.address == address and not place.exempt]
        if len(own) >= most // 2:
            self._evict(own[0])
            return 0.0
        first = next(iter(self._strangers))
        if (left_s := first.since + SETTLED_S - now) > 0:
            return left_s
        self._evict(first)
        return 0.0

    def _evict(self, place: ListenerPlace) -> None:
        self.evictions += 1
        if self.evictions & (self.evictions - 1) == 0:
            log.warning("Connection places are short: %d idle connections closed for newer ones", self.evictions)
        place.abort()
        self.remove_connection(place)

    def _admit(self, accepted: socket.socket, address: str, now: float) -> None:
        """Give a new connection its place, be it only to be refused."""
        place = ListenerPlace(address, exempt=self._is_proxy(address), now=now)
        share = self.most if place.exempt else max(1, self.most // 2)
        if self.count >= self.most:
            oldest = [next(iter(places)) for places in (self._strangers, self._idle) if places]
            if settled := [one for one in oldest if now - one.since >= SETTLED_S]:
                self._evict(settled[0])
        if self.count >= self.most or self._by_address[address] >= share:
            place.refused = True
            self.refusals += 1
            if self.refusals & (self.refusals - 1) == 0:
                log.warning(
                    "%d connections are open, %d of them from %s; %d refused",
                    self.count,
                    self._by_address[address],
                    address,
                    self.refusals,
                )
            if self.count >= self.most + TOLD or self._by_address[address] >= share + TOLD:
                accepted.close()
                return
        self.places.add(place)
        self._by_address[address] += 1
        if not place.refused:
            self._strangers[place] = None
        accepted.setblocking(False)
        place.handshake = self._loop.create_task(self._shake_hands(accepted, place), name="connection")

    async def _shake_hands(self, accepted: socket.socket, place: ListenerPlace) -> None:
        """Shake hands, where TLS asks for it; a connection that fails at it gives its place back."""
        times = {} if self.tls is None else {"ssl_handshake_timeout": HANDSHAKE_S}
        try:
            await self._loop.connect_accepted_socket(
                lambda: ClientConnection(self, place, self._server, self._loop), accepted, ssl=self.tls, **times
            )
        except asyncio.CancelledError:
            accepted.close()
            self.remove_connection(place)
        except Exception as error:
            accepted.close()
            self.remove_connection(place)
            self._count_handshake(error, place)
        finally:
            place.handshake = None

    def _count_handshake(self, error: Exception, place: ListenerPlace) -> None:
        kind = "timeout" if isinstance(error, TimeoutError | ConnectionAbortedError) else "failed"
        self.failed_handshakes[kind] += 1
        count = self.failed_handshakes.total()
        if count & (count - 1) == 0:
            log.warning("%d connections ended before their TLS handshake, the last from %s", count, place.address)

    # -- what becomes of connections ---------------------------------------

    def mark_busy(self, place: ListenerPlace) -> None:
        """Take note that a request runs."""
        self._idle.pop(place, None)

    def mark_known(self, place: ListenerPlace) -> None:
        """Take note that a valid key came."""
        if not place.known and not place.refused and place in self.places:
            place.known = True
            self._strangers.pop(place, None)
            self._end_pause()

    def mark_idle(self, place: ListenerPlace) -> None:
        """Take note that the answer is sent."""
        if place not in self.places or place.refused:
            return
        place.since = time.monotonic()
        waiting = self._idle if place.known else self._strangers
        waiting.pop(place, None)
        waiting[place] = None

    def remove_connection(self, place: ListenerPlace) -> None:
        """Free the place of a connection that is closed; again is harmless."""
        if place not in self.places:
            return
        self.places.discard(place)
        self._strangers.pop(place, None)
        self._idle.pop(place, None)
        self._by_address[place.address] -= 1
        if not self._by_address[place.address]:
            del self._by_address[place.address]
        self._end_pause()

    def count_malformed(self, kind: str, error: ApiError) -> None:
        """Count a request that was no HTTP, and log it, unless there are very many."""
        self.malformed[kind] += 1
        if (skipped := self._malformed_lines.take_line()) is not None:
            log.info("Malformed request: %s status=%d error_id=%s%s", kind, error.status, error.error_id, skipped)

    def _is_proxy(self, address: str) -> bool:
        with contextlib.suppress(ValueError):
            found = ipaddress.ip_address(address)
            return any(found in network for network in self.proxies)
        return False


async def bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen at every address of a host. Raises `OSError`, which names the setting at fault."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"--host: {host} is no address of this machine: {error.strerror}") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, number, _, address in _unique(found):
            listening = socket.socket(family, kind, number)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections take it over, so it has to be said before any is accepted.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listening.bind(address)
            except OSError as error:
                raise OSError(_cause_of_failed_bind(error, address[0], address[1])) from None
            listening.setblocking(False)
            listening.listen(BACKLOG)
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def _cause_of_failed_bind(error: OSError, host: str, port: int) -> str:
    """Return what is wrong with an address, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"--port: {port} is in use on {host}: end what listens there, or try --port {port + 1}"
        case errno.EACCES:
            return f"--port: {port} may not be opened by this user: take one above 1023"
        case errno.EADDRNOTAVAIL:
            return f"--host: {host} is no address of this machine"
        case _:
            return f"--host, --port: can't listen on {host}:{port}: {error.strerror}"


def _unique(found: Iterable[Any]) -> list[Any]:
    return [*dict.fromkeys(found)]


def address_of(peer: Any) -> str:
    """Return the address of a socket's other end; one of IPv4 looks like one, whichever kind of socket it came to."""
    text = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    return text.partition("%")[0].removeprefix("::ffff:") if "." in text else text.partition("%")[0] or "local"


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
