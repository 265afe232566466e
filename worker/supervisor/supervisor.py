"""The supervisor: carries out what `EngineLifecycle` decides, and tells the gateway. It must never import MLX.

One thread, one poll: engine exits, signals and the gateway's frames all wake it. It runs one engine, and siblings of it
when told to: each in a slot of its own, with its own lifecycle and its own end of the wire.
"""

import logging
import math
import queue
import signal
import sys
import time
import uuid
from collections.abc import Iterator

from protocol import codec
from protocol.address import endpoint
from protocol.messages import EndEngine, Hello, KillEngine, StartEngine, Supervision
from protocol.parent_watch import ParentWatch
from worker.config import WorkerConfig, honcho_process
from worker.gateway_socket import GatewayPoller, GatewaySocket, WakePipe
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

Order = Hello | KillEngine | EndEngine | StartEngine
MAX_SLOTS = 64
"""Engines beside each other at most, whatever the gateway says."""


class GatewayConnection:
    """One slot's end of the wire: reports go up, orders of the gateway's present epoch come down."""

    def __init__(self, socket: GatewaySocket) -> None:
        self.socket = socket
        self._epoch = 0

    def send_report(self, report: Supervision) -> bool:
        """Tell the gateway, if there is one; return whether there is."""
        return self.socket.send_frame(codec.encode([report], epoch=self._epoch))

    def receive_orders(self) -> Iterator[Order]:
        """Return all that has arrived and is for a supervisor of this epoch."""
        for envelope, _ in self.socket.receive_frames():
            for message in envelope.messages:
                if isinstance(message, Hello):
                    self._epoch = envelope.epoch
                    yield message
                elif isinstance(message, KillEngine | EndEngine | StartEngine) and envelope.epoch == self._epoch:
                    yield message


class Supervisor:
    """Runs one engine, again and again, and as many beside it as it is asked to, until a signal tells it to leave."""

    def __init__(
        self, config: WorkerConfig, *, command: Command = engine_command, policy: RestartPolicy | None = None
    ) -> None:
        self._config = config
        self._command = command
        self._policy = policy
        self._events: queue.SimpleQueue[tuple[EngineProcess | None, Event]] = queue.SimpleQueue()
        self._wake_pipe = WakePipe()
        self._poller = GatewayPoller(self._wake_pipe)
        self._parent = ParentWatch() if honcho_process() else None
        self._next_check = 0.0
        self._blas = find_openblas()
        self._slots: list[EngineSlot] = []
        self._connections: list[GatewayConnection] = []
        self._spare_pool = SparePool(self._make_process, wanted=config.spare)

    def run(self) -> int:
        """Supervise until told to leave; returns the exit code. The main thread's, for its signals."""
        if self._blas is not None:
            log.info("%s", self._blas)
        elif sys.platform == "linux" and self._config.device != "gpu":
            log.info(ADVICE)
        signal.set_wakeup_fd(self._wake_pipe.write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(
                number, lambda number, _frame: self._events.put((None, StopAsked(signal.Signals(number).name)))
            )
        self._add_slot()
        # A slot leaves only when all have been told to: siblings that are not wanted any more are parked.
        while not all(slot.left for slot in self._slots):
            for slot in self._slots:
                slot.report_if_due()
            self._spare_pool.start_spare()
            self._check_honcho()
            _, readable = self._poller.wait(self._wait_ms())
            for slot, connection in [*zip(self._slots, self._connections, strict=True)]:
                if connection.socket in readable:
                    self._handle_orders(slot, connection)
            self._handle_events()
        self._spare_pool.close()
        self._poller.close()
        return 0

    def _add_slot(self) -> None:
        identity = f"{self._config.served_name}/sup/{uuid.uuid4().hex}".encode()
        connection = GatewayConnection(self._poller.connect_socket(endpoint(self._config.run_dir), identity))
        slot = EngineSlot(self._config, report=connection.send_report, spare_pool=self._spare_pool, policy=self._policy)
        self._slots.append(slot)
        self._connections.append(connection)
        slot.on_event(Begin())

    def _make_process(self, owner: SpareOwner | None) -> EngineProcess:
        return EngineProcess(
            self._config, command=self._command, blas=self._blas, owner=owner, on_event=self._on_process_event
        )

    def _wait_ms(self) -> int:
        """Return the time until something is due; rounded up, since what ends early would be waited for again."""
        due = min(self._spare_pool.due, *(slot.due for slot in self._slots))
        return math.ceil(max(0.0, due - time.monotonic()) * 1000)

    def _handle_orders(self, slot: EngineSlot, connection: GatewayConnection) -> None:
        for message in connection.receive_orders():
            match message:
                case Hello():
                    slot.report_now()
                case KillEngine():
                    slot.on_event(KillAsked(message.worker, message.reason))
                case EndEngine():
                    slot.on_event(EndAsked(message.worker, message.grace_s, message.again, message.reason))
                case StartEngine():
                    self._start_engine()

    def _start_engine(self) -> None:
        parked = next((slot for slot in self._slots if slot.lifecycle.parked or slot.lifecycle.given_up), None)
        if parked is not None:
            parked.on_event(WakeAsked())
        elif len(self._slots) < MAX_SLOTS and not any(slot.left for slot in self._slots):
            self._add_slot()

    def _handle_events(self) -> None:
        while True:
            try:
                process, event = self._events.get_nowait()
            except queue.Empty:
                break
            if isinstance(event, StopAsked):
                self._spare_pool.close()
                for slot in self._slots:
                    slot.on_event(event)
            elif process is not None:
                self._handle_process_event(process, event)
        for slot in self._slots:
            slot.on_event(Tick())

    def _handle_process_event(self, process: EngineProcess, event: Event) -> None:
        """Take in what a process said, or that it is gone."""
        if process.owner is not None:
            process.owner.on_event(event)
        elif isinstance(event, Exited):
            self._spare_pool.spare_died(process, event.code)
        if isinstance(event, BecameReady):
            self._spare_pool.engine_ready()

    def _check_honcho(self) -> None:
        if self._parent is None or time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + BEAT_S
        if not self._parent.alive():
            self._parent = None
            self._events.put((None, StopAsked("honcho ended")))
            self._wake_pipe.wake()

    def _on_process_event(self, process: EngineProcess, event: Event) -> None:
        """Queue what became of a process. Called on the children's own threads."""
        self._events.put((process, event))
        self._wake_pipe.wake()
