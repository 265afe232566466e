"""The supervisor: carries out what `EngineWatch` decides, and tells the gateway. It must never import MLX.

One thread, one poll: engine exits, signals and the gateway's frames all wake it. Every send is non-blocking,
so that neither an absent nor a frozen gateway delays a restart.
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
from typing import assert_never

import zmq

from protocol import codec
from protocol.address import endpoint
from protocol.ancestry import Ancestry
from protocol.messages import Hello, KillEngine, Supervision
from worker.blas import ADVICE, find_openblas
from worker.child import Child
from worker.config import WorkerConfig, engine_environment, honcho_process
from worker.launch import IS_READY, engine_command
from worker.watch import (
    BecameReady,
    Begin,
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
)

log = logging.getLogger("worker.supervisor")

BEAT_S = 1.0
RETRY_S = 0.1
"""How soon to speak again while no gateway is connected."""
CONNECT_RETRY_MS = 50

Command = Callable[[WorkerConfig, str, int], Sequence[str]]
"""Makes an engine's argument list from its configuration, its uid and the lifeline's file descriptor."""


class Post:
    """The supervisor's end of the wire: one DEALER, one thread, nothing ever waits."""

    def __init__(self, address: str, model: str) -> None:
        self.epoch = 0
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
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

    def receive(self) -> list[Hello | KillEngine]:
        """All that has arrived and is for a supervisor of this epoch."""
        messages: list[Hello | KillEngine] = []
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
                elif isinstance(message, KillEngine) and envelope.epoch == self.epoch:
                    messages.append(message)

    def close(self) -> None:
        """Let go of the socket."""
        self.socket.close()
        self._context.term()

    def _complain(self, text: str) -> None:
        """Once per reason: a gateway of another version would fill the log."""
        if text != self._last_complaint:
            self._last_complaint = text
            log.warning("a frame from the gateway was ignored: %s", text)


class Supervisor:
    """Runs one engine process, again and again, until a signal tells it to leave."""

    def __init__(
        self, config: WorkerConfig, *, command: Command = engine_command, policy: Policy | None = None
    ) -> None:
        self._config = config
        self._command = command
        self._watch = EngineWatch(config.served_name, policy)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._post = Post(endpoint(config.run_dir), config.served_name)
        self._child: Child | None = None
        self._ancestry = Ancestry() if honcho_process() else None
        self._preload = find_openblas()
        self._next_beat = 0.0
        self._left = False

    def run(self) -> int:
        """Supervise until told to leave; returns the exit code. The main thread's, for its signals."""
        if self._preload is None and sys.platform == "linux" and self._config.device != "gpu":
            log.info(ADVICE)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: self._events.put(StopAsked(signal.Signals(number).name)))
        poller = zmq.Poller()
        poller.register(self._post.socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        self._happened(Begin())
        while not self._left:
            self._beat()
            poller.poll(self._patience_ms())
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            self._listen()
            self._catch_up()
        self._post.close()
        return 0

    def _patience_ms(self) -> int:
        """Until something is due; rounded up, since a wait that ends early would only be waited again."""
        due = self._next_beat if self._watch.deadline is None else min(self._next_beat, self._watch.deadline)
        return math.ceil(max(0.0, due - time.monotonic()) * 1000)

    def _listen(self) -> None:
        for message in self._post.receive():
            match message:
                case Hello():
                    self._report()
                case KillEngine():
                    self._happened(KillAsked(message.worker, message.reason))

    def _catch_up(self) -> None:
        while not self._left:
            try:
                self._happened(self._events.get_nowait())
            except queue.Empty:
                break
        if not self._left:
            self._happened(Tick())

    def _beat(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        self._report()
        if self._ancestry and not self._ancestry.alive():
            self._ancestry = None
            self._happened(StopAsked("honcho is gone"))

    def _report(self) -> None:
        now = time.monotonic()
        watch = self._watch
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
        )
        self._next_beat = now + (BEAT_S if self._post.send(report) else RETRY_S)

    def _happened(self, event: Event) -> None:
        for instruction in self._watch.handle(event, time.monotonic()):
            self._do(instruction)

    def _do(self, instruction: Instruction) -> None:
        match instruction:
            case Start():
                self._happened(self._start())
            case Terminate():
                if self._child:
                    self._child.terminate()
            case Kill():
                if self._child:
                    self._child.kill()
            case Report():
                self._report()
            case Say():
                log.log(logging.ERROR if instruction.bad else logging.INFO, "%s", instruction.text)
            case Leave():
                self._left = True
            case _:
                assert_never(instruction)

    def _start(self) -> Spawned | SpawnFailed:
        uid = uuid.uuid4().hex
        try:
            self._child = Child(
                lambda lifeline_fd: self._command(self._config, uid, lifeline_fd),
                environment=engine_environment(self._preload),
                on_exit=lambda code, last_line: self._heard(Exited(uid, code, last_line)),
                on_word=lambda word: self._heard(BecameReady(uid) if word == IS_READY else Proven(uid)),
            )
        except OSError as error:
            return SpawnFailed(str(error))
        return Spawned(uid, self._child.pid)

    def _heard(self, event: Event) -> None:
        """Called on the child's own threads."""
        self._events.put(event)
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_write, b"!")
