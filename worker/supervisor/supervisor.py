"""The supervisor: carries out what `EngineWatch` decides, and tells the gateway. It must never import MLX.

One thread, one poll: engine exits, signals and the gateway's frames all wake it. Every send is non-blocking,
so that neither an absent nor a frozen gateway delays a restart. It runs one engine, and siblings of it when told to:
each is a unit of its own, with its own watch and its own end of the wire.
"""

import contextlib
import logging
import math
import os
import queue
import signal
import sys
import time
import uuid

import zmq

from protocol import codec
from protocol.address import endpoint
from protocol.messages import EndEngine, Hello, KillEngine, StartEngine, Supervision
from protocol.parent_watch import ParentWatch
from worker.config import WorkerConfig, honcho_process
from worker.process.launch import engine_command
from worker.supervisor.blas import ADVICE, find_openblas
from worker.supervisor.engine_slot import BEAT_S, EngineSlot
from worker.supervisor.lifecycle import (
    BecameReady,
    Begin,
    EndAsked,
    Event,
    Exited,
    KillAsked,
    RestartPolicy,
    StopAsked,
    Tick,
    WakeAsked,
)
from worker.supervisor.spare_pool import Command, EngineProcess, SpareOwner, SparePool

log = logging.getLogger("worker.supervisor.supervisor")

CONNECT_RETRY_MS = 50

Order = Hello | KillEngine | EndEngine | StartEngine
MOST_UNITS = 64
"""Engines beside each other at most, whatever the gateway says."""


class GatewayConnection:
    """The supervisor's end of the wire: one DEALER, one thread, nothing ever waits."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str, model: str) -> None:
        self.epoch = 0
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, f"{model}/sup/{uuid.uuid4().hex}".encode())
        # IMMEDIATE: without a gateway a send fails now, instead of arriving stale at the next one.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, CONNECT_RETRY_MS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, codec.MAX_FRAME_BYTES)
        self.socket.connect(address)
        self._last_complaint = ""

    def send_report(self, report: Supervision) -> bool:
        """Tell the gateway, if there is one; says whether there was."""
        try:
            self.socket.send(codec.encode([report], epoch=self.epoch), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive_orders(self) -> list[Order]:
        """All that has arrived and is for a supervisor of this epoch."""
        messages: list[Order] = []
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                envelope = codec.decode_to_worker(frames[0])
            except codec.BadFrame as error:
                self._complain(str(error))
                continue
            for message in envelope.messages:
                if isinstance(message, Hello):
                    self.epoch = envelope.epoch
                    messages.append(message)
                elif isinstance(message, KillEngine | EndEngine | StartEngine) and envelope.epoch == self.epoch:
                    messages.append(message)

    def close(self) -> None:
        """Let go of the socket."""
        self.socket.close()

    def _complain(self, text: str) -> None:
        """Once per reason: a gateway of another version would fill the log."""
        if text != self._last_complaint:
            self._last_complaint = text
            log.warning("a frame from the gateway was ignored: %s", text)


class Supervisor:
    """Runs one engine, again and again, and as many beside it as it is asked to, until a signal tells it to leave."""

    def __init__(
        self, config: WorkerConfig, *, command: Command = engine_command, policy: RestartPolicy | None = None
    ) -> None:
        self._config = config
        self._command = command
        self._policy = policy
        self._events: queue.SimpleQueue[tuple[EngineProcess | None, Event]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._parent = ParentWatch() if honcho_process() else None
        self._next_look = 0.0
        self._preload = find_openblas()
        self._units: list[EngineSlot] = []
        self._posts: list[GatewayConnection] = []
        self._reserve = SparePool(self._make, wanted=config.spare)

    def run(self) -> int:
        """Supervise until told to leave; returns the exit code. The main thread's, for its signals."""
        if self._preload is None and sys.platform == "linux" and self._config.device != "gpu":
            log.info(ADVICE)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(
                number, lambda number, _frame: self._events.put((None, StopAsked(signal.Signals(number).name)))
            )
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._add()
        # A unit leaves only when all have been told to: siblings that are not wanted any more are parked.
        while not all(unit.left for unit in self._units):
            for unit in self._units:
                unit.report_if_due()
            self._reserve.start_spare()
            self._look_for_honcho()
            self._poller.poll(self._patience_ms())
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            for unit, post in [*zip(self._units, self._posts, strict=True)]:
                self._listen(unit, post)
            self._catch_up()
        self._reserve.close()
        for post in self._posts:
            post.close()
        self._context.term()
        return 0

    def _add(self) -> None:
        post = GatewayConnection(self._context, endpoint(self._config.run_dir), self._config.served_name)
        unit = EngineSlot(self._config, tell=post.send_report, reserve=self._reserve, policy=self._policy)
        self._units.append(unit)
        self._posts.append(post)
        self._poller.register(post.socket, zmq.POLLIN)
        unit.on_event(Begin())

    def _make(self, owner: SpareOwner | None) -> EngineProcess:
        return EngineProcess(self._config, command=self._command, preload=self._preload, owner=owner, heard=self._heard)

    def _patience_ms(self) -> int:
        """Until something is due; rounded up, since a wait that ends early would only be waited again."""
        due = min(self._reserve.due, *(unit.due for unit in self._units))
        return math.ceil(max(0.0, due - time.monotonic()) * 1000)

    def _listen(self, unit: EngineSlot, post: GatewayConnection) -> None:
        for message in post.receive_orders():
            match message:
                case Hello():
                    unit.report_now()
                case KillEngine():
                    unit.on_event(KillAsked(message.worker, message.reason))
                case EndEngine():
                    unit.on_event(EndAsked(message.worker, message.grace_s, message.again, message.reason))
                case StartEngine():
                    self._start_one()

    def _start_one(self) -> None:
        parked = next((unit for unit in self._units if unit.watch.parked), None)
        if parked is not None:
            parked.on_event(WakeAsked())
        elif len(self._units) < MOST_UNITS and not any(unit.left for unit in self._units):
            self._add()

    def _catch_up(self) -> None:
        while True:
            try:
                process, event = self._events.get_nowait()
            except queue.Empty:
                break
            if isinstance(event, StopAsked):
                self._reserve.close()
                for unit in self._units:
                    unit.on_event(event)
            elif process is not None:
                self._handle(process, event)
        for unit in self._units:
            unit.on_event(Tick())

    def _handle(self, process: EngineProcess, event: Event) -> None:
        """What a process said, or that it is gone."""
        if process.owner is not None:
            process.owner.on_event(event)
        elif isinstance(event, Exited):
            self._reserve.spare_died(process, event.code)
        if isinstance(event, BecameReady):
            self._reserve.engine_ready()

    def _look_for_honcho(self) -> None:
        if self._parent is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + BEAT_S
        if not self._parent.alive():
            self._parent = None
            self._events.put((None, StopAsked("honcho is gone")))
            self._wake()

    def _heard(self, process: EngineProcess, event: Event) -> None:
        """Called on the children's own threads."""
        self._events.put((process, event))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_write, b"!")
