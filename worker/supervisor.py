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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_never

import zmq

from protocol import codec
from protocol.address import endpoint
from protocol.ancestry import Ancestry
from protocol.messages import EndEngine, Hello, KillEngine, StartEngine, Supervision
from worker.blas import ADVICE, find_openblas
from worker.child import Child
from worker.config import WorkerConfig, engine_environment, honcho_process
from worker.launch import engine_command
from worker.pulse import IS_READY
from worker.watch import (
    BecameReady,
    Begin,
    EndAsked,
    EngineWatch,
    Event,
    Exited,
    Instruction,
    Kill,
    KillAsked,
    Leave,
    Policy,
    Proven,
    Report,
    Say,
    Spawned,
    SpawnFailed,
    Start,
    StopAsked,
    Terminate,
    Tick,
    WakeAsked,
)

log = logging.getLogger("worker.supervisor")

BEAT_S = 1.0
RETRY_S = 0.1
"""How soon to speak again while no gateway is connected."""
CONNECT_RETRY_MS = 50

Command = Callable[[WorkerConfig, str, int], Sequence[str]]
"""Makes an engine's argument list from its configuration, its uid and the lifeline's file descriptor."""
Order = Hello | KillEngine | EndEngine | StartEngine
MOST_UNITS = 64
"""Engines beside each other at most, whatever the gateway says."""


class Post:
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

    def send(self, report: Supervision) -> bool:
        """Tell the gateway, if there is one; says whether there was."""
        try:
            self.socket.send(codec.encode([report], epoch=self.epoch), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[Order]:
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


class Unit:
    """One engine process after the other. `heard` takes what its child says, on any thread."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        post: Post,
        command: Command,
        policy: Policy | None,
        preload: Path | None,
        heard: "Callable[[Unit, Event], None]",
    ) -> None:
        self.post = post
        self.left = False
        self.watch = EngineWatch(config.served_name, policy)
        self._config = config
        self._command = command
        self._preload = preload
        self._heard = heard
        self._child: Child | None = None
        self._next_beat = 0.0

    @property
    def due(self) -> float:
        """When something is to be done, at the latest."""
        return self._next_beat if self.watch.deadline is None else min(self._next_beat, self.watch.deadline)

    def beat(self) -> None:
        """Report, if it is time to."""
        if time.monotonic() >= self._next_beat:
            self.report()

    def report(self) -> None:
        """Tell the gateway how things are."""
        now = time.monotonic()
        watch = self.watch
        report = Supervision(
            model=self._config.served_name,
            kind=self._config.kind,
            watch=watch.watch,
            pid=os.getpid(),
            engine=watch.worker,
            engine_pid=watch.pid,
            restarts=max(0, watch.restarts),
            exit_code=watch.exit_code,
            delay_s=watch.delay_s(now),
            parked=watch.parked,
        )
        self._next_beat = now + (BEAT_S if self.post.send(report) else RETRY_S)

    def happened(self, event: Event) -> None:
        """Take an event in, and do what follows."""
        for instruction in self.watch.handle(event, time.monotonic()) if not self.left else ():
            self._do(instruction)

    def _do(self, instruction: Instruction) -> None:
        match instruction:
            case Start():
                self.happened(self._start())
            case Terminate():
                if self._child:
                    self._child.terminate()
            case Kill():
                if self._child:
                    self._child.kill()
            case Report():
                self.report()
            case Say():
                log.log(logging.ERROR if instruction.bad else logging.INFO, "%s", instruction.text)
            case Leave():
                self.left = True
            case _:
                assert_never(instruction)

    def _start(self) -> Spawned | SpawnFailed:
        uid = uuid.uuid4().hex
        try:
            self._child = Child(
                lambda lifeline_fd: self._command(self._config, uid, lifeline_fd),
                environment=engine_environment(self._preload),
                on_exit=lambda code, last_line: self._heard(self, Exited(uid, code, last_line)),
                on_word=lambda word: self._heard(self, BecameReady(uid) if word == IS_READY else Proven(uid)),
            )
        except OSError as error:
            return SpawnFailed(str(error))
        return Spawned(uid, self._child.pid)


class Supervisor:
    """Runs one engine, again and again, and as many beside it as it is asked to, until a signal tells it to leave."""

    def __init__(
        self, config: WorkerConfig, *, command: Command = engine_command, policy: Policy | None = None
    ) -> None:
        self._config = config
        self._command = command
        self._policy = policy
        self._events: queue.SimpleQueue[tuple[Unit | None, Event]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._ancestry = Ancestry() if honcho_process() else None
        self._next_look = 0.0
        self._preload = find_openblas()
        self._units: list[Unit] = []

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
                unit.beat()
            self._look_for_honcho()
            self._poller.poll(self._patience_ms())
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            for unit in [*self._units]:
                self._listen(unit)
            self._catch_up()
        for unit in self._units:
            unit.post.close()
        self._context.term()
        return 0

    def _add(self) -> None:
        post = Post(self._context, endpoint(self._config.run_dir), self._config.served_name)
        unit = Unit(
            self._config,
            post=post,
            command=self._command,
            policy=self._policy,
            preload=self._preload,
            heard=self._heard,
        )
        self._units.append(unit)
        self._poller.register(post.socket, zmq.POLLIN)
        unit.happened(Begin())

    def _patience_ms(self) -> int:
        """Until something is due; rounded up, since a wait that ends early would only be waited again."""
        due = min(unit.due for unit in self._units)
        return math.ceil(max(0.0, due - time.monotonic()) * 1000)

    def _listen(self, unit: Unit) -> None:
        for message in unit.post.receive():
            match message:
                case Hello():
                    unit.report()
                case KillEngine():
                    unit.happened(KillAsked(message.worker, message.reason))
                case EndEngine():
                    unit.happened(EndAsked(message.worker, message.grace_s, message.again, message.reason))
                case StartEngine():
                    self._start_one()

    def _start_one(self) -> None:
        parked = next((unit for unit in self._units if unit.watch.parked), None)
        if parked is not None:
            parked.happened(WakeAsked())
        elif len(self._units) < MOST_UNITS and not any(unit.left for unit in self._units):
            self._add()

    def _catch_up(self) -> None:
        while True:
            try:
                unit, event = self._events.get_nowait()
            except queue.Empty:
                break
            for one in [unit] if unit else self._units:
                one.happened(event)
        for unit in self._units:
            unit.happened(Tick())

    def _look_for_honcho(self) -> None:
        if self._ancestry is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + BEAT_S
        if not self._ancestry.alive():
            self._ancestry = None
            self._events.put((None, StopAsked("honcho is gone")))
            self._wake()

    def _heard(self, unit: Unit, event: Event) -> None:
        """Called on the children's own threads."""
        self._events.put((unit, event))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_write, b"!")
