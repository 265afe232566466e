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


HEALTHY_STEPS = 8
"""An engine that has stepped so often since it was ready, or finished a job, does not die of being started."""

Command = Admitted | Cancel | ClearCaches | Reset | Stop


class Loop:
    """Runs one engine on the calling thread until it is told to stop."""

    def __init__(
        self,
        *,
        engine: Engine,
        step_clock: StepClock,
        inbox: "queue.SimpleQueue[Command]",
        send: Callable[[int, Sequence[ToGateway]], None],
        on_healthy: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_healthy` is called once, when the engine has shown that it works."""
        self._engine = engine
        self._step_clock = step_clock
        self.inbox = inbox
        self._send = send
        self._on_healthy = on_healthy
        self._steps_to_healthy = HEALTHY_STEPS
        self._clock = clock
        self._epoch = 0
        self._in_flight: dict[int, int] = {}
        self._deadline: float | None = None

    def run(self) -> None:
        """Serve until `Stop`. Raise whatever the engine raised; jobs in flight have then been failed."""
        self._step_clock.mark_step(busy=False)
        try:
            while not self._finished():
                self._receive()
                if self._engine.busy:
                    self._emit(self._engine.step())
                    if self._steps_to_healthy:
                        self._count_proof(steps=1)
                self._step_clock.mark_step(busy=self._engine.busy)
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
            self._step_clock.mark_busy()
            self._handle(command)
        while True:
            try:
                self._handle(self.inbox.get_nowait())
            except queue.Empty:
                return

    def _handle(self, command: Command) -> None:
        match command:
            case Admitted():
                self._admit(command)
            case Cancel():
                if self._in_flight.get(command.job) == command.attempt:
                    self._cancel(command)
            case ClearCaches():
                if isinstance(self._engine, CacheOwner):
                    self._engine.forget()
            case Reset():
                for job in tuple(self._in_flight):
                    self._engine.cancel(job)
                self._in_flight.clear()
                self._epoch = command.epoch
            case Stop():
                self._step_clock.enter_state(State.DRAINING)
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
        self._in_flight[command.job] = command.attempt
        self._emit(self._engine.admit(command.prepared))

    def _emit(self, messages: Sequence[ToGateway]) -> None:
        if not messages:
            return
        for message in messages:
            if isinstance(message, Done | Vectors | Failed):
                self._in_flight.pop(message.job, None)
                if self._steps_to_healthy and not isinstance(message, Failed):
                    self._count_proof(steps=HEALTHY_STEPS)
        self._send(self._epoch, messages)

    def _count_proof(self, *, steps: int) -> None:
        self._steps_to_healthy = max(0, self._steps_to_healthy - steps)
        if self._steps_to_healthy == 0:
            self._on_healthy()

    def _fail_all(self, code: Code, text: str) -> None:
        if self._in_flight:
            failed = [Failed(job, attempt, code, text, retryable=True) for job, attempt in self._in_flight.items()]
            self._emit(failed)
