"""The link between an engine process and the gateway: one thread that owns one socket.

It keeps beating through a long prefill. It hands jobs to the preprocessor and commands to the loop, and sends what they
produce. Nothing in here may wait for the engine.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

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
from worker.gateway_socket import GatewayPoller, GatewaySocket, WakePipe
from worker.process.loop import Command, Reset, Stop
from worker.process.preprocessor import Preprocessor

log = logging.getLogger("worker")

BEAT_S = 1.0
LINGER_MS = 200


class Outbox:
    """Messages on their way to the gateway. Safe to use from any thread."""

    def __init__(self) -> None:
        self.wake_pipe = WakePipe()
        self._queue: queue.SimpleQueue[tuple[int, Sequence[ToGateway]]] = queue.SimpleQueue()
        self._asleep = False

    def send_messages(self, epoch: int, messages: Sequence[ToGateway]) -> None:
        """Queue messages that belong to `epoch`; those of an older one are dropped at the other end."""
        self._queue.put((epoch, messages))
        if self._asleep:
            self.wake_pipe.wake()

    def empty(self) -> bool:
        """Return whether nothing is queued."""
        return self._queue.empty()

    def take_messages(self) -> tuple[int, Sequence[ToGateway]]:
        """Take out what was queued first, with its epoch. Raises `queue.Empty`."""
        return self._queue.get_nowait()

    def mark_asleep(self, asleep: bool) -> None:
        """Say whether the link's thread has to be woken for what is queued from now on."""
        self._asleep = asleep


class GatewayLink:
    """Speaks for one worker process: sends what is in the outbox, beats, and takes the gateway's messages in."""

    def __init__(
        self,
        *,
        endpoint: str,
        identity: bytes,
        outbox: Outbox,
        commands: "queue.SimpleQueue[Command]",
        preprocessor: Preprocessor,
        announce: Callable[[], Announce],
        ready: Callable[[], Ready | None],
        beat: Callable[[], Beat],
        failed: Callable[[], None],
    ) -> None:
        """`failed` is called, on the link's thread, where it can't go on: nobody would hear of this process again."""
        self._endpoint = endpoint
        self._identity = identity
        self._outbox = outbox
        self._commands = commands
        self._preprocessor = preprocessor
        self._announce = announce
        self._ready = ready
        self._beat = beat
        self._failed = failed
        self._epoch = 0
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        """Connect, and go on connecting for as long as the process lives."""
        self._thread.start()

    def send_state(self) -> None:
        """Send `Ready`, if there is one, and beat at once: the worker's state has changed."""
        if ready := self._ready():
            self._outbox.send_messages(self._epoch, [ready])
        self._changed.set()
        self._outbox.wake_pipe.wake()

    def close(self, reason: str, *, timeout_s: float = 0.5) -> bool:
        """Send what is queued and a `Bye`, then stop the thread; return whether it has ended in time."""
        self._outbox.send_messages(self._epoch, [Bye(reason)])
        self._closing.set()
        self._outbox.wake_pipe.wake()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        poller = GatewayPoller(self._outbox.wake_pipe)
        socket = poller.connect_socket(self._endpoint, self._identity, linger_ms=LINGER_MS)
        try:
            self._serve(poller, socket)
        except Exception:
            log.exception("the link to the gateway failed; its process ends and a new one takes over")
            self._failed()
        finally:
            poller.close()

    def _serve(self, poller: GatewayPoller, socket: GatewaySocket) -> None:
        next_beat = 0.0
        while True:
            self._outbox.mark_asleep(True)
            due = self._changed.is_set() or not self._outbox.empty()
            wait_s = 0.0 if due else max(0.0, next_beat - time.monotonic())
            connected, readable = poller.wait(int(wait_s * 1000))
            self._outbox.mark_asleep(False)
            if readable:
                self._receive(socket)
            if connected or self._changed.is_set() or time.monotonic() >= next_beat:
                self._changed.clear()
                next_beat = time.monotonic() + BEAT_S
                self._outbox.send_messages(self._epoch, [self._beat()])
            self._flush(socket)
            if self._closing.is_set() and self._outbox.empty():
                return

    def _flush(self, socket: GatewaySocket) -> None:
        while True:
            try:
                epoch, messages = self._outbox.take_messages()
            except queue.Empty:
                return
            if not all(map(socket.send_frame, _frames(messages, epoch))):
                # Without a gateway: its next run starts a new epoch, which cancels what this was about.
                log.debug("no gateway is connected; %d messages dropped", len(messages))

    def _receive(self, socket: GatewaySocket) -> None:
        for envelope, buffers in socket.receive_frames():
            self._enter_epoch(envelope.epoch)
            for message in envelope.messages:
                self._handle(message, buffers)

    def _enter_epoch(self, epoch: int) -> None:
        """Drop whatever the last gateway run asked for, where `epoch` is a new one: it is nobody's any more."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._preprocessor.drop_waiting()
            self._commands.put(Reset(epoch))

    def _handle(self, message: object, buffers: Sequence[bytes]) -> None:
        match message:
            case GenerateJob() | EmbedJob() | TokenizeJob() | DetokenizeJob() | SimilarityJob():
                self._preprocessor.take_job(self._epoch, message, buffers)
            case Cancel():
                if self._preprocessor.cancel_job(self._epoch, message.job, message.attempt):
                    self._outbox.send_messages(
                        self._epoch, [Failed(message.job, message.attempt, Code.CANCELLED, "cancelled")]
                    )
                else:
                    self._commands.put(message)
            case Hello():
                ready = self._ready()
                self._outbox.send_messages(self._epoch, [self._announce(), *([ready] if ready else [])])
            case ClearCaches():
                self._commands.put(message)
            case Drain():
                self._commands.put(Stop(message.grace_s))
            case KillEngine() | EndEngine() | StartEngine():
                log.warning("%s is for supervisors; ignored", type(message).__name__)


def _frames(messages: Sequence[ToGateway], epoch: int) -> list[bytes]:
    """Return one frame, or several where one would be too large: the vectors of many jobs may end in one step."""
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
    """Return the message, if it can be sent; else the end of its job, not of this thread.

    Half a surrogate pair can't be sent.
    """
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
