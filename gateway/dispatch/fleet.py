"""Engines on request: more of a model, fewer, or fresh ones in place of old ones. Never loses a job by it.

What a worker does not finish in its grace goes on at another one, or at the engine that follows it.
"""

import asyncio
import logging
from collections.abc import Callable

from gateway.dispatch.dispatcher import Line
from gateway.dispatch.model import Model, Supervisor, Worker
from gateway.dispatch.roster import Roster
from gateway.dispatch.stream import JobFailed
from protocol.codec import encode
from protocol.errors import Code
from protocol.messages import Drain, EndEngine, StartEngine, State

log = logging.getLogger(__name__)

MOST_REPLICAS = 64
LOOK_S = 0.02
SHOWN_S = 2.0
"""A start that was asked for shows in a supervisor's reports within this time, or it was not heard."""


class Fleet:
    """Tells supervisors what to run."""

    def __init__(self, *, epoch: int, line: Line, clock: Callable[[], float], roster: Roster) -> None:
        self._epoch = epoch
        self._line = line
        self._clock = clock
        self._roster = roster
        self._targets: dict[str, tuple[int, float]] = {}

    def end(self, worker: Worker, *, grace_s: float, again: bool, reason: str) -> None:
        """Drain a worker; `again`: a fresh engine follows. Raises `JobFailed` where nobody supervises it."""
        supervisor = self._roster.supervisor_of(worker.uid)
        if supervisor is None:
            raise JobFailed(Code.INVALID_REQUEST, f"The worker {worker.uid!r} has no supervisor.", param="worker")
        log.info("worker %s of %s is to end within %g s: %s", worker.uid, worker.model.name, grace_s, reason)
        self._tell(supervisor, EndEngine(worker.uid, grace_s, again, reason))
        # Not by its next beat: nothing more is to be sent to it from now on.
        worker.state = State.DRAINING
        self._line.send(worker.identity, encode([Drain(grace_s)], epoch=self._epoch))

    def scale(self, model: Model, replicas: int, *, grace_s: float) -> None:
        """Have so many engines of a model. Raises `JobFailed` for a number out of bounds or without supervisors."""
        if not 0 <= replicas <= MOST_REPLICAS:
            message = f"The number of replicas is from 0 to {MOST_REPLICAS}."
            raise JobFailed(Code.INVALID_REQUEST, message, param="replicas")
        if not model.supervisors:
            raise JobFailed("model_not_ready", f"No supervisor of {model.name!r} is here.", retryable=True)
        wanted = self._roster.wanted(model)
        log.info("%s is scaled from %d to %d", model.name, len(wanted), replicas)
        target, asked_at = self._targets.get(model.name, (0, 0.0))
        coming = target if self._clock() - asked_at < SHOWN_S else 0
        for _ in range(replicas - max(len(wanted), coming)):
            self._start_one(model)
        self._targets[model.name] = (replicas, self._clock())
        workers = {worker.uid: worker for worker in model.workers.values()}
        # Those without a running engine first, then those with the least to hand over.
        wanted.sort(key=lambda found: workers[found.report.engine].rows if found.report.engine in workers else -1)
        for supervisor in wanted[: max(0, len(wanted) - replicas)]:
            worker = workers.get(supervisor.report.engine)
            if worker is not None:
                self.end(worker, grace_s=grace_s, again=False, reason=f"scaled to {replicas}")
            else:
                self._tell(supervisor, EndEngine(supervisor.report.engine, grace_s, False, f"scaled to {replicas}"))

    async def roll(self, model: Model, *, grace_s: float, patience_s: float) -> None:
        """Replace every engine of a model by a fresh one, one after the other.

        Raises `JobFailed` (`model_not_ready`) if one is not up again within `patience_s`; the others are left alone.
        """
        for worker in [*model.up]:
            replicas = model.replicas
            if worker.identity not in model.workers:
                continue
            self.end(worker, grace_s=grace_s, again=True, reason="replaced by a fresh one")
            deadline = self._clock() + grace_s + patience_s
            while worker.identity in model.workers or model.replicas < replicas:
                if self._clock() > deadline:
                    message = f"A fresh engine of {model.name!r} is not up yet; the others were left alone."
                    raise JobFailed("model_not_ready", message, retryable=True)
                await asyncio.sleep(LOOK_S)

    def _start_one(self, model: Model) -> None:
        """At a parked engine's place, else beside the others: by the supervisor process that runs fewest."""
        crew = [*model.supervisors.values()]
        sizes = {found.report.pid: 0 for found in crew}
        for found in self._roster.wanted(model):
            sizes[found.report.pid] += 1
        # Equal sizes: they change only with the next report, so each call takes the next one in turn.
        supervisor = min(crew, key=lambda found: (sizes[found.report.pid] + found.asked, found.asked))
        supervisor.asked += 1
        self._tell(supervisor, StartEngine())

    def _tell(self, supervisor: Supervisor, order: EndEngine | StartEngine) -> None:
        self._line.send(supervisor.identity, encode([order], epoch=self._epoch))
