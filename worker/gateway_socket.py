"""A worker's end of the wire: the ZeroMQ sockets of one thread, and the pipe that wakes it.

Nothing in here waits but `GatewayPoller.wait`: neither an absent nor a frozen gateway holds anything up.
"""

import contextlib
import logging
import os
from typing import NamedTuple

import zmq

from protocol import codec
from protocol.messages import ToWorker

log = logging.getLogger("worker")

CONNECT_RETRY_MS = 50
HIGH_WATER_FRAMES = 100_000
"""Frames from the gateway that may wait on a socket: more than it sends for all the jobs that a worker is given."""
NO_BOUND = 0
"""Frames to the gateway: a lost one is a hole in a text. For a gateway that stands still no more of them wait than the
rows of its jobs have tokens."""


class WakePipe:
    """Ends the wait of a thread. Other threads and signals may wake it."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)

    def wake(self) -> None:
        """End the wait, now or as soon as it begins."""
        # A full pipe wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self.write_fd, b"!")

    def clear(self) -> None:
        """Forget what has woken."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.read_fd, 4096)


class FromGateway(NamedTuple):
    """A frame that can be read, and the raw frames that came with it."""

    envelope: codec.Envelope[ToWorker]
    buffers: list[bytes]


class GatewaySocket:
    """One DEALER, connected to the gateway whenever there is one."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", address: str, identity: bytes, *, linger_ms: int
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, identity)
        # IMMEDIATE: without a gateway a send fails now, instead of arriving stale at the next one.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.LINGER, linger_ms)
        self.socket.setsockopt(zmq.SNDHWM, NO_BOUND)
        self.socket.setsockopt(zmq.RCVHWM, HIGH_WATER_FRAMES)
        self.socket.setsockopt(zmq.MAXMSGSIZE, codec.MAX_FRAME_BYTES)
        self.socket.setsockopt(zmq.RECONNECT_IVL, CONNECT_RETRY_MS)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(address)
        self._last_complaint = ""

    def send_frame(self, frame: bytes) -> bool:
        """Send a frame, if there is a gateway; return whether there is."""
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive_frames(self) -> list[FromGateway]:
        """Return all that has arrived; frames that can't be read are left out."""
        arrived: list[FromGateway] = []
        while True:
            try:
                frame, *buffers = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return arrived
            try:
                arrived.append(FromGateway(codec.decode_to_worker(frame), buffers))
            except codec.BadFrame as error:
                self._log_once(str(error))

    def close(self) -> None:
        """Let go of the socket. What it has taken is still sent, within its linger time."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()

    def _log_once(self, reason: str) -> None:
        """Log a reason that is not the last one again: a gateway of another version would fill the log."""
        if reason != self._last_complaint:
            self._last_complaint = reason
            log.warning("a frame from the gateway was ignored: %s", reason)


class GatewayPoller:
    """The sockets of one thread, and what it waits for."""

    def __init__(self, wake: WakePipe) -> None:
        self._wake = wake
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._poller.register(wake.read_fd, zmq.POLLIN)
        self._sockets: list[GatewaySocket] = []

    def connect_socket(self, address: str, identity: bytes, *, linger_ms: int = 0) -> GatewaySocket:
        """Open a socket; it goes on connecting until it is closed."""
        socket = GatewaySocket(self._context, address, identity, linger_ms=linger_ms)
        # In this order: a socket knows of its connection before the monitor tells.
        self._poller.register(socket.socket, zmq.POLLIN)
        self._poller.register(socket.monitor, zmq.POLLIN)
        self._sockets.append(socket)
        return socket

    def wait(self, timeout_ms: int) -> tuple[list[GatewaySocket], list[GatewaySocket]]:
        """Wait for something to do. Return the sockets that were just connected, and those that have frames.

        A new connection is for the worker to speak first on: the gateway greets only those that it has heard.
        """
        events = dict(self._poller.poll(timeout_ms))
        if self._wake.read_fd in events:
            self._wake.clear()
        connected = [socket for socket in self._sockets if socket.monitor in events]
        for socket in connected:
            socket.monitor.recv_multipart()
        return connected, [socket for socket in self._sockets if socket.socket in events]

    def close(self) -> None:
        """Close every socket, and wait for what lingers."""
        for socket in self._sockets:
            socket.close()
        self._context.term()
