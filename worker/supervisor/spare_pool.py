"""Engine processes as a supervisor makes them, and the spare one that shortens the next start.

A spare has imported what an engine needs and waits; it is used once. One is made only while an engine is ready, so that
it takes nothing from a start, and it never outlives its supervisor.
"""

import logging
import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from worker.config import WorkerConfig, engine_environment
from worker.lifeline import GO, IS_HEALTHY, IS_READY, IS_SPARE
from worker.logs import WorkerJsonLines
from worker.supervisor.blas import Blas
from worker.supervisor.child import Child
from worker.supervisor.lifecycle import BecameHealthy, BecameReady, Event, Exited

log = logging.getLogger("worker.supervisor.supervisor")

SPARE_DELAYS_S = (0.0, 1.0, 5.0, 30.0, 300.0)
"""Waits before a spare is made again, by how many in a row have died unused."""

Command = Callable[..., Sequence[str]]
"""Makes an engine's argument list: see `worker.process.launch.engine_command`."""


class SpareOwner(Protocol):
    """Whose engine a process is."""

    def on_event(self, event: Event) -> None:
        """Take in what became of it."""


class EngineProcess:
    """An engine process, or one that may become it. `owner` is None as long as it is a spare."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        command: Command,
        blas: Blas | None,
        owner: SpareOwner | None,
        on_event: "Callable[[EngineProcess, Event], None]",
    ) -> None:
        """Start it. `on_event` is called on threads of the child's own. Raises `OSError`."""
        self.uid = uuid.uuid4().hex
        self.owner = owner
        options = {} if owner is not None else {"spare": True}
        self.child = Child(
            lambda lifeline_fd: command(config, self.uid, lifeline_fd, **options),
            environment=engine_environment(blas.environment if blas else {}),
            on_exit=lambda code, last_line: on_event(self, Exited(self.uid, code, last_line)),
            on_word=lambda word: self._on_word(word, on_event),
            encode_output=WorkerJsonLines(config.served_name).encode_output if config.log_json else None,
        )

    def _on_word(self, word: bytes, on_event: "Callable[[EngineProcess, Event], None]") -> None:
        if word == IS_READY:
            on_event(self, BecameReady(self.uid))
        elif word == IS_HEALTHY:
            on_event(self, BecameHealthy(self.uid))
        elif word == IS_SPARE and self.owner is None:
            log.info("process %d is ready to take over from the engine", self.child.pid)


class SparePool:
    """At most one spare process, for whichever engine dies first."""

    def __init__(self, make: Callable[[SpareOwner | None], EngineProcess], *, wanted: bool) -> None:
        self._make = make
        self._wanted = wanted
        self.due = math.inf
        """When one is to be made."""
        self._spare: EngineProcess | None = None
        self._losses = 0

    def engine_ready(self) -> None:
        """Make a spare soon: what is imported now takes no time from the start of an engine, for one is ready."""
        if self._wanted and self._spare is None:
            self.due = min(self.due, time.monotonic())

    def start_spare(self) -> None:
        """Make one, if it is due."""
        if time.monotonic() < self.due:
            return
        self.due = math.inf
        try:
            self._spare = self._make(None)
        except OSError as error:
            self._retry_later(f"could not be started ({error})")

    def process_for(self, owner: SpareOwner) -> EngineProcess:
        """Return the spare, if it is still there, else a new process. Raises `OSError`."""
        spare, self._spare = self._spare, None
        self.due = math.inf
        if spare is not None and spare.child.send_word(GO):
            self._losses = 0
            spare.owner = owner
            return spare
        return self._make(owner)

    def spare_died(self, spare: EngineProcess, code: int) -> None:
        """Make another one later: this one is gone, and nobody had needed it."""
        if spare is self._spare and self._wanted:
            self._spare = None
            self._retry_later(f"ended with code {code}")

    def close(self) -> None:
        """Make no more of them."""
        self._wanted = False
        self.due = math.inf
        if self._spare is not None:
            self._spare.child.kill()

    def _retry_later(self, how: str) -> None:
        delay_s = SPARE_DELAYS_S[min(self._losses, len(SPARE_DELAYS_S) - 1)]
        self._losses += 1
        self.due = time.monotonic() + delay_s
        log.warning("the spare process %s; another one is made in %g s", how, delay_s)
