"""Owns the socket: one ROUTER that workers and supervisors connect to. The gateway's only module that knows ZeroMQ.

It carries bytes and reports who has gone; it reads no message. Every send is immediate or refused, one task
receives for the link's whole life, and nothing a peer does ends that task.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import zmq
import zmq.asyncio

from protocol.address import SOCKET_NAME, AddressError, GatewayLock, endpoint, prepare_run_dir
from protocol.codec import MAX_FRAME_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")

# As plain integers: arithmetic on pyzmq's enums costs more than the receive that it decides about.
EVENTS, POLLIN, NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)
TURN_MESSAGES = 64
"""Messages taken in one turn of the event loop, so that steps of several engines wake each stream once."""
DRAIN_MESSAGES = 10_000
"""Most that is read to learn the last words of a lost peer; more than high-water marks let one peer queue."""
PROBE_DELAYS_S = (0.005, 0.02, 0.1)
"""The routing table learns of a disconnect a little after the monitor does."""


class WorkerLink:
    """A bound ROUTER socket with its lock, its receive task and its monitor.

    `receive` is called with (identity, frames) for every message; `gone` with (identity, frozen) for a peer that
    can't be sent to, `frozen` if it is connected but reads nothing; `peers` names whom to probe when someone has
    disconnected, by sending them `probe`, a harmless frame.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        probe: bytes,
        receive: Callable[[bytes, Sequence[bytes]], None],
        gone: Callable[[bytes, bool], None],
        peers: Callable[[], Iterable[bytes]],
    ) -> None:
        self._run_dir = run_dir
        self._probe_frame = probe
        self._receive = receive
        self._gone = gone
        self._peers = peers
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._plain: zmq.Socket[bytes]
        self._monitor: zmq.asyncio.Socket | None = None
        self._lock: GatewayLock | None = None
        self._bound: Path | None = None
        self._first: asyncio.Future[list[bytes]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._probes: list[asyncio.TimerHandle] = []
        self._unreachable: dict[bytes, bool] = {}
        self._reaper: asyncio.Handle | None = None

    async def open(self) -> None:
        """Take the lock, bind, start receiving. Raises `AddressError`."""
        run_dir = prepare_run_dir(self._run_dir)
        self._lock = GatewayLock(run_dir)
        self._context = zmq.asyncio.Context()
        try:
            self._socket = socket = self._context.socket(zmq.ROUTER)
            self._plain = zmq.Socket.shadow(socket.underlying)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            self._monitor = monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            monitor.setsockopt(zmq.LINGER, 0)
            socket.bind(endpoint(run_dir))
            self._bound = run_dir / SOCKET_NAME
        except zmq.ZMQError as error:
            await self.close()
            raise AddressError(f"can't listen in {run_dir}: {error}") from None
        self._tasks = [
            asyncio.create_task(self._receive_for_ever(socket), name="link-receive"),
            asyncio.create_task(self._watch_for_ever(monitor), name="link-monitor"),
        ]

    async def close(self) -> None:
        """Stop, close the socket, let the next gateway in. Safe to call twice, and after a failed `open`."""
        for handle in (*self._probes, *([self._reaper] if self._reaper else [])):
            handle.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        socket, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        if socket is not None:
            # Before the monitor's own end is closed: libzmq would wait for a reader that is gone.
            socket.disable_monitor()
            socket.close(linger=0)
        if monitor is not None:
            monitor.close(linger=0)
        if self._context is not None:
            self._context.term()
            self._context = None
        if self._bound is not None:
            # libzmq leaves the file. While the lock is held, it is nobody else's.
            self._bound.unlink(missing_ok=True)
            self._bound = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def send_frame(self, identity: bytes, frame: bytes, buffers: Sequence[bytes] = ()) -> bool:
        """Send a frame, with raw buffers behind it, now.

        False if the peer is gone, or takes nothing any more; `gone` is then called in a later turn.
        """
        if self._socket is None:
            return False
        # Finished when it returns: NOBLOCK is tried on the spot. The wrapper also re-arms the receiver, whose
        # wake-up this send may have consumed; a send behind its back would lose it.
        error = _done(self._socket.send_multipart([identity, frame, *buffers], flags=zmq.NOBLOCK)).exception()
        if error is None:
            return True
        self._unreachable[identity] = isinstance(error, zmq.Again)
        if self._reaper is None:
            self._reaper = asyncio.get_running_loop().call_soon(self._reap)
        return False

    def receive_pending(self) -> None:
        """Take in everything that has already arrived. Not from within `receive`."""
        if self._socket is None:
            return
        self._take_first()
        self._take(DRAIN_MESSAGES)
        # Asking for the events through the wrapper re-arms a waiting receiver if something is left.
        self._socket.get(zmq.EVENTS)

    # -- inside ------------------------------------------------------------

    async def _receive_for_ever(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            self._first = first = _done(socket.recv_multipart())
            try:
                await first
            except zmq.ZMQError as error:
                log.error("receiving failed: %s", error)
                await asyncio.sleep(0.05)
                continue
            self._take_first()
            self._take(TURN_MESSAGES - 1)
            # With more waiting, the next receive returns without yielding: give the woken streams their turn.
            await asyncio.sleep(0)

    def _take_first(self) -> None:
        """Deliver what the receiver has been handed, unless that is done: between its waking and its turn, others run.

        A drain among them must not find what came later first.
        """
        first = self._first
        if first is None or not first.done():
            return
        self._first = None
        if not first.cancelled() and first.exception() is None:
            self._deliver(first.result())

    def _take(self, most: int) -> None:
        """Receive behind the wrapper's back, which is several times cheaper; whoever calls must have it look again."""
        for _ in range(most):
            if not int(self._plain.get(EVENTS)) & POLLIN:
                return
            self._deliver(self._plain.recv_multipart(NOBLOCK))

    def _deliver(self, parts: Sequence[bytes]) -> None:
        try:
            self._receive(parts[0], parts[1:])
        except Exception:
            log.exception("a message from %r could not be handled", parts[0][:64])

    async def _watch_for_ever(self, monitor: zmq.asyncio.Socket) -> None:
        """Someone disconnected (the event does not say who): see whom we can still write to."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(zmq.ZMQError):
                await monitor.recv_multipart()
                while _done(monitor.recv_multipart(flags=zmq.NOBLOCK)).exception() is None:
                    pass
            for handle in self._probes:
                handle.cancel()
            self._probe()
            self._probes = [loop.call_later(delay_s, self._probe) for delay_s in PROBE_DELAYS_S]
            await asyncio.sleep(0)

    def _probe(self) -> None:
        for identity in [*self._peers()]:
            self.send_frame(identity, self._probe_frame)

    def _reap(self) -> None:
        """Report who is unreachable, after their last words have been taken in."""
        self._reaper = None
        self.receive_pending()
        unreachable, self._unreachable = self._unreachable, {}
        for identity, frozen in unreachable.items():
            try:
                self._gone(identity, frozen)
            except Exception:
                log.exception("the loss of %r could not be handled", identity[:64])


def _done(call: Awaitable[T]) -> asyncio.Future[T]:
    """Return what an asyncio socket answers: a future, which is done already where the call was a NOBLOCK one."""
    return cast("asyncio.Future[T]", call)
