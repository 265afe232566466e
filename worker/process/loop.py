"""The engine loop: receive, admit, step, send. It owns the order of things, nothing else; no MLX in it."""

import logging
import queue
import time
from collections.abc import Callable, Sequence

import msgspec

from protocol.errors import Code
from protocol.messages import Cancel, ClearCaches, Done, Failed, State, ToGateway, Vectors
from worker.engines.base import CacheOwner, Counting, Engine
from worker.process.heartbeat import StepClock
from worker.process.preprocessor import Admitted

log = logging.getLogger("worker")


class Reset(msgspec.Struct, frozen=True):
    """A new gateway run: jobs of the old one have nobody to answer to."""

    epoch: int


class Stop(msgspec.Struct, frozen=True):
    """Finish what runs within `grace_s`, then end."""

    grace_s: float


PROVEN_STEPS = 8
"""An engine that has stepped so often since it was ready, or finished a job, does not die of being started."""

Command = Admitted | Cancel | ClearCaches | Reset | Stop


class Loop:
    """Runs one engine on the calling thread until it is told to stop."""

    def __init__(
        self,
        *,
        engine: Engine,
        pulse: StepClock,
        send: Callable[[int, Sequence[ToGateway]], None],
        proven: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`proven` is called once, when the engine has shown that it works."""
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._engine = engine
        self._pulse = pulse
        self._send = send
        self._proven = proven
        self._unproven_steps = PROVEN_STEPS
        self._clock = clock
        self._epoch = 0
        self._aboard: dict[int, int] = {}
        self._deadline: float | None = None

    def run(self) -> None:
        """Serve until `Stop`. Raises whatever the engine raised; jobs aboard have then been failed."""
        self._pulse.mark_step(busy=False)
        try:
            while not self._finished():
                self._receive()
                if self._engine.busy:
                    self._emit(self._engine.step())
                    if self._unproven_steps:
                        self._prove(steps=1)
                self._pulse.mark_step(busy=self._engine.busy)
        except BaseException:
            self._fail_all(Code.WORKER_LOST, "The model's process failed while it was working on this request.")
            raise
        self._fail_all(Code.DRAINING, "The model's process is shutting down.")

    def _finished(self) -> bool:
        if self._deadline is None:
            return False
        return not self._engine.busy or self._clock() >= self._deadline

    def _receive(self) -> None:
        """Take every command that is there; wait for one only when there is nothing else to do."""
        if not self._engine.busy and self._deadline is None:
            command = self.inbox.get()
            # Whatever it makes the engine do: if that never ends, it has to show.
            self._pulse.mark_busy()
            self._obey(command)
        while True:
            try:
                self._obey(self.inbox.get_nowait())
            except queue.Empty:
                return

    def _obey(self, command: Command) -> None:
        match command:
            case Admitted():
                self._admit(command)
            case Cancel():
                if self._aboard.get(command.job) == command.attempt:
                    self._cancel(command)
            case ClearCaches():
                if isinstance(self._engine, CacheOwner):
                    self._engine.forget()
            case Reset():
                for job in tuple(self._aboard):
                    self._engine.cancel(job)
                self._aboard.clear()
                self._epoch = command.epoch
            case Stop():
                self._pulse.enter_state(State.DRAINING)
                self._deadline = self._clock() + command.grace_s

    def _cancel(self, command: Cancel) -> None:
        usage = self._engine.spent(command.job) if isinstance(self._engine, Counting) else None
        if self._engine.cancel(command.job):
            self._emit([Failed(command.job, command.attempt, Code.CANCELLED, "cancelled", usage=usage)])

    def _admit(self, command: Admitted) -> None:
        if command.epoch != self._epoch:
            return
        if self._deadline is not None:
            message = "The model's process is shutting down."
            self._emit([Failed(command.job, command.attempt, Code.DRAINING, message, retryable=True)])
            return
        self._aboard[command.job] = command.attempt
        self._emit(self._engine.admit(command.prepared))

    def _emit(self, messages: Sequence[ToGateway]) -> None:
        if not messages:
            return
        for message in messages:
            if isinstance(message, Done | Vectors | Failed):
                self._aboard.pop(message.job, None)
                if self._unproven_steps and not isinstance(message, Failed):
                    self._prove(steps=PROVEN_STEPS)
        self._send(self._epoch, messages)

    def _prove(self, *, steps: int) -> None:
        self._unproven_steps = max(0, self._unproven_steps - steps)
        if self._unproven_steps == 0:
            self._proven()

    def _fail_all(self, code: Code, text: str) -> None:
        if self._aboard:
            failed = [Failed(job, attempt, code, text, retryable=True) for job, attempt in self._aboard.items()]
            self._emit(failed)
