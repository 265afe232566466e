"""Engines on request: more of a model, fewer, or fresh ones in place of old ones. Never loses a job by it.

What a worker does not finish in its grace goes on at another one, or at the engine that follows it.
"""

import asyncio
import logging
from collections.abc import Callable

from gateway.dispatch.state import ModelState, WorkerState
from gateway.dispatch.transport import Transport
from gateway.dispatch.workers.registry import Registry
from gateway.dispatch.workers.supervisor_state import SupervisorState
from gateway.job_failure import JobFailed
from protocol.codec import encode
from protocol.errors import Code
from protocol.messages import ClearCaches, Drain, EndEngine, StartEngine, State

log = logging.getLogger(__name__)

MOST_REPLICAS = 64
LOOK_S = 0.02
SHOWN_S = 10.0
"""A start that was asked for shows in a supervisor's reports within this time, or it was not heard."""


class Scaling:
    """Tells supervisors what to run.

    `ModelState.wanted` is how many engines were asked for last. It is compared with what supervisors report until
    nothing is missing, too much or under way: reports come late, and orders may be lost.
    """

    def __init__(self, *, epoch: int, transport: Transport, clock: Callable[[], float], registry: Registry) -> None:
        self._epoch = epoch
        self._transport = transport
        self._clock = clock
        self._registry = registry

    def end_worker(self, worker: WorkerState, *, grace_s: float, again: bool, reason: str) -> None:
        """Let a worker finish what it runs, give it no more, then end its engine.

        Returns at once. `again`: a fresh engine of the same settings follows; else none until asked for. What is not
        finished in `grace_s` goes on elsewhere. Raises `JobFailed` (`invalid_request`) where nobody supervises it.
        """
        supervisor = self._registry.supervisor_of(worker.uid)
        if supervisor is None:
            raise JobFailed(Code.INVALID_REQUEST, f"The worker {worker.uid!r} has no supervisor.", param="worker")
        log.info("worker %s of %s is to end within %g s: %s", worker.uid, worker.model.name, grace_s, reason)
        model = worker.model
        if model.wanted is not None and not again:
            model.wanted = max(0, model.wanted - 1)
        self._drain(supervisor, worker, grace_s=grace_s, again=again, reason=reason)

    def _drain(
        self, supervisor: SupervisorState, worker: WorkerState, *, grace_s: float, again: bool, reason: str
    ) -> None:
        self._tell(supervisor, EndEngine(worker.uid, grace_s, again, reason))
        supervisor.ending = "" if again else worker.uid
        # Not by its next beat: nothing more is to be sent to it from now on.
        worker.state = State.DRAINING
        self._transport.send_frame(worker.identity, encode([Drain(grace_s)], epoch=self._epoch))

    def scale_model(self, model: ModelState, replicas: int, *, grace_s: float) -> None:
        """Have so many engines of a model: supervisors start siblings, or drain the least busy ones.

        Returns at once. Raises `JobFailed`: `invalid_request` for a number out of bounds, `model_not_ready` where no
        supervisor of the model is here.
        """
        if not 0 <= replicas <= MOST_REPLICAS:
            message = f"The number of replicas is from 0 to {MOST_REPLICAS}."
            raise JobFailed(Code.INVALID_REQUEST, message, param="replicas")
        if not model.supervisors:
            raise JobFailed("model_not_ready", f"No supervisor of {model.name!r} is here.", retryable=True)
        log.info("%s is scaled from %d to %d", model.name, self.count_replicas(model), replicas)
        model.wanted = replicas
        self._reconcile(model, grace_s, f"scaled to {replicas}")

    def load_model(self, model: ModelState, *, grace_s: float) -> int:
        """Have one engine of a model at least; return how many there are, or will be. Raises as `scale_model`."""
        replicas = max(1, self.count_replicas(model))
        self.scale_model(model, replicas, grace_s=grace_s)
        return replicas

    def count_replicas(self, model: ModelState) -> int:
        """Return how many engines a model has, or will have once every order was obeyed."""
        return len(self._registry.running_engines(model)) if model.wanted is None else model.wanted

    def reconcile(self) -> None:
        """Start engines that are missing, end those that came although they are not wanted any more."""
        for model in self._registry:
            self._reconcile(model, 0.0, "not wanted any more")

    async def replace_engines(self, model: ModelState, *, grace_s: float = 3.0, patience_s: float = 300.0) -> None:
        """Replace every engine of a model by a fresh one, one after the other.

        Raises `JobFailed` (`model_not_ready`) if one is not up again within `patience_s`; the others are left alone.
        """
        for worker in [*model.up]:
            replicas = model.replicas
            if worker.identity not in model.workers:
                continue
            self.end_worker(worker, grace_s=grace_s, again=True, reason="replaced by a fresh one")
            deadline = self._clock() + grace_s + patience_s
            while worker.identity in model.workers or model.replicas < replicas:
                if self._clock() > deadline:
                    message = f"A fresh engine of {model.name!r} is not up yet; the others were left alone."
                    raise JobFailed("model_not_ready", message, retryable=True)
                await asyncio.sleep(LOOK_S)

    def clear_caches(self) -> list[WorkerState]:
        """Have every worker forget what it kept of earlier jobs, on disk too. Return those that were told."""
        told = [worker for model in self._registry for worker in model.workers.values()]
        for worker in told:
            self._transport.send_frame(worker.identity, encode([ClearCaches()], epoch=self._epoch))
        return told

    def _reconcile(self, model: ModelState, grace_s: float, reason: str) -> None:
        if model.wanted is None or not model.supervisors:
            return
        now = self._clock()
        model.starting = [
            (identity, at) for identity, at in model.starting if identity in model.supervisors and now - at < SHOWN_S
        ]
        running = self._registry.running_engines(model)
        for _ in range(model.wanted - len(running) - len(model.starting)):
            model.starting.append((self._start_one(model), now))
        workers = {worker.uid: worker for worker in model.workers.values()}
        # Those without a running engine first, then those with the least to hand over.
        running.sort(key=lambda found: workers[found.report.engine].rows if found.report.engine in workers else -1)
        for supervisor in running[: max(0, len(running) - model.wanted)]:
            self._end_engine_of(supervisor, grace_s, reason)
        if not model.starting and not any(found.ending for found in model.supervisors.values()):
            model.wanted = None

    def _end_engine_of(self, supervisor: SupervisorState, grace_s: float, reason: str) -> None:
        uid = supervisor.report.engine
        worker = self._registry.find_worker(uid)
        if worker is not None:
            self._drain(supervisor, worker, grace_s=grace_s, again=False, reason=reason)
            return
        # It has nothing to hand over.
        self._tell(supervisor, EndEngine(uid, 0.0, False, reason))
        supervisor.ending = uid

    def _start_one(self, model: ModelState) -> bytes:
        """At a parked engine's place, else beside the others: by the supervisor process that runs fewest."""
        crew = [*model.supervisors.values()]
        sizes = {found.report.pid: 0 for found in crew}
        for found in self._registry.running_engines(model):
            sizes[found.report.pid] += 1
        # Equal sizes: they change only with the next report, so each call takes the next one in turn.
        supervisor = min(crew, key=lambda found: (sizes[found.report.pid] + found.asked, found.asked))
        supervisor.asked += 1
        self._tell(supervisor, StartEngine())
        return supervisor.identity

    def _tell(self, supervisor: SupervisorState, order: EndEngine | StartEngine) -> None:
        self._transport.send_frame(supervisor.identity, encode([order], epoch=self._epoch))
