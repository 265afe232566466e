"""The worker's end of the wire: one thread that owns one DEALER socket.

It keeps beating through a long prefill, hands jobs to the reception and commands to the loop, and sends what
they produce. Nothing in here may wait for the engine, and every send is non-blocking.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence

import zmq

from protocol import codec
from protocol.errors import Code
from protocol.messages import (
    Accepted,
    Announce,
    Beat,
    Bye,
    Cancel,
    ClearCaches,
    Delta,
    DetokenizeJob,
    Done,
    Drain,
    EmbedJob,
    EndEngine,
    Failed,
    GenerateJob,
    Hello,
    KillEngine,
    Progress,
    Ready,
    Scores,
    SimilarityJob,
    StartEngine,
    Text,
    ToGateway,
    TokenizeJob,
    Tokens,
    Vectors,
)
from worker.process.loop import Command, Reset, Stop
from worker.process.preprocessor import Preprocessor

log = logging.getLogger("worker")

BEAT_S = 1.0
CONNECT_RETRY_MS = 50
SEND_BUFFER_MESSAGES = 100_000
"""High-water mark towards the gateway. Real bound: the rows that a worker admits; this only must never be met first."""


class GatewayLink:
    """Speaks for one worker process. `send` may be called from any thread."""

    def __init__(
        self,
        *,
        endpoint: str,
        identity: bytes,
        announce: Callable[[], Announce],
        ready: Callable[[], Ready | None],
        beat: Callable[[], Beat],
        command: Callable[[Command], None],
        reception: Callable[[], Preprocessor],
        failed: Callable[[], None],
    ) -> None:
        """`failed` is called, on the link's thread, where it can't go on: nobody would hear of this process again."""
        self._endpoint = endpoint
        self._identity = identity
        self._announce = announce
        self._ready = ready
        self._beat = beat
        self._command = command
        self._reception = reception
        self._failed = failed
        self._epoch = 0
        self._outbox: queue.SimpleQueue[tuple[int, Sequence[ToGateway]]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._asleep = False
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        """Connect, and go on connecting for as long as the process lives."""
        self._thread.start()

    def send_messages(self, epoch: int, messages: Sequence[ToGateway]) -> None:
        """Queue messages that belong to `epoch`; those of an older one are dropped at the other end."""
        self._outbox.put((epoch, messages))
        if self._asleep:
            self._wake()

    def say_now(self) -> None:
        """Tell `Ready`, if there is one, and beat at once: the worker's state has changed."""
        if ready := self._ready():
            self.send_messages(self._epoch, [ready])
        self._changed.set()
        self._wake()

    def close(self, reason: str, *, timeout_s: float = 0.5) -> None:
        """Send what is queued and a `Bye`, then stop the thread."""
        self.send_messages(self._epoch, [Bye(reason)])
        self._closing.set()
        self._wake()
        self._thread.join(timeout_s)

    def _wake(self) -> None:
        # A full pipe wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"!")

    def _run(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, self._identity)
        # IMMEDIATE: without a gateway a send fails now, instead of arriving stale at the next one.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.SNDHWM, SEND_BUFFER_MESSAGES)
        socket.setsockopt(zmq.RCVHWM, SEND_BUFFER_MESSAGES)
        socket.setsockopt(zmq.MAXMSGSIZE, codec.MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, CONNECT_RETRY_MS)
        # The connection itself has to make us speak first: the gateway greets only those it has heard.
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(self._endpoint)
        try:
            self._serve(socket, monitor)
        except Exception:
            log.exception("the link to the gateway failed; its process ends and a new one takes over")
            self._failed()
        finally:
            socket.disable_monitor()
            monitor.close(linger=0)
            socket.close()
            context.term()

    def _serve(self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        next_beat = 0.0
        while True:
            self._asleep = True
            due = self._changed.is_set() or not self._outbox.empty()
            wait_s = 0.0 if due else max(0.0, next_beat - time.monotonic())
            events = dict(poller.poll(int(wait_s * 1000)))
            self._asleep = False
            if self._wake_read in events:
                os.read(self._wake_read, 4096)
            if monitor in events:
                monitor.recv_multipart()
                next_beat = 0.0
            if socket in events:
                self._receive(socket)
            if time.monotonic() >= next_beat or self._changed.is_set():
                self._changed.clear()
                next_beat = time.monotonic() + BEAT_S
                self._outbox.put((self._epoch, [self._beat()]))
            self._flush(socket)
            if self._closing.is_set() and self._outbox.empty():
                return

    def _flush(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                epoch, messages = self._outbox.get_nowait()
            except queue.Empty:
                return
            try:
                for frame in _frames(messages, epoch):
                    socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                # No gateway. Its next run starts a new epoch, which cancels what this was about.
                log.debug("no gateway is connected; %d messages dropped", len(messages))

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                envelope = codec.decode_to_worker(frames[0])
            except codec.BadFrame as error:
                log.warning("a frame from the gateway was ignored: %s", error)
                continue
            self._turn_epoch(envelope.epoch)
            for message in envelope.messages:
                self._obey(message, frames[1:])

    def _turn_epoch(self, epoch: int) -> None:
        """A gateway run that is new to us: whatever the last one asked for is nobody's any more."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._reception().drop_waiting()
            self._command(Reset(epoch))

    def _obey(self, message: object, buffers: Sequence[bytes]) -> None:
        match message:
            case GenerateJob() | EmbedJob() | TokenizeJob() | DetokenizeJob() | SimilarityJob():
                self._reception().take_job(self._epoch, message, buffers)
            case Cancel():
                if self._reception().cancel_job(self._epoch, message.job, message.attempt):
                    self.send_messages(self._epoch, [Failed(message.job, message.attempt, Code.CANCELLED, "cancelled")])
                else:
                    self._command(message)
            case Hello():
                ready = self._ready()
                self.send_messages(self._epoch, [self._announce(), *([ready] if ready else [])])
            case ClearCaches():
                self._command(message)
            case Drain():
                self._command(Stop(message.grace_s))
            case KillEngine() | EndEngine() | StartEngine():
                log.warning("%s is for supervisors; ignored", type(message).__name__)


def _frames(messages: Sequence[ToGateway], epoch: int) -> list[bytes]:
    """One frame, or several where one would be larger than is read: the vectors of many jobs may end in one step."""
    frame = _encode(messages, epoch)
    if len(frame) <= codec.MAX_FRAME_BYTES or len(messages) < 2:
        return [frame]
    return [_encode([message], epoch) for message in messages]


def _encode(messages: Sequence[ToGateway], epoch: int) -> bytes:
    try:
        return codec.encode(messages, epoch=epoch)
    except (ValueError, TypeError, OverflowError):
        return codec.encode([fit for message in messages if (fit := _fit(message))], epoch=epoch)


def _fit(message: ToGateway) -> ToGateway | None:
    """The message, if it can be sent (half a surrogate pair can't); else the end of its job, not of this thread."""
    try:
        codec.encode([message], epoch=0)
    except (ValueError, TypeError, OverflowError):
        log.exception("a message of type %s can't be encoded", type(message).__name__)
        match message:
            case Accepted() | Progress() | Delta() | Done() | Tokens() | Text() | Vectors() | Scores() | Failed():
                return Failed(message.job, message.attempt, Code.ENGINE_ERROR, "The output can't be sent.")
            case _:
                return None
    return message
