"""Who is there: workers and supervisors by socket identity, models by name.

Knows nothing of jobs. A model, once heard of, stays known until it is forgotten on request.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping

from gateway.dispatch.state import ModelState, WorkerState
from gateway.dispatch.workers.adapter_names import aliases_of, settle_names
from gateway.dispatch.workers.lookup import SERVES, default_of, everybody, named
from gateway.dispatch.workers.supervisor_state import SupervisorState
from gateway.job_failure import JobFailed
from protocol.errors import Code
from protocol.messages import Announce, Kind, Ready, State, Supervision, Watch

log = logging.getLogger(__name__)


class Registry:
    """All peers that have said who they are in this epoch."""

    def __init__(self, *, aliases: Mapping[str, str], wall: Callable[[], float] = time.time) -> None:
        self.workers: dict[bytes, WorkerState] = {}
        self.supervisors: dict[bytes, SupervisorState] = {}
        self.models: dict[str, ModelState] = {}
        self.in_startup_grace = False
        self._aliases = aliases
        self._wall = wall

    def list_identities(self) -> list[bytes]:
        """Everyone who can be written to."""
        return [*self.workers, *self.supervisors]

    def end_startup_grace(self) -> None:
        """Whoever was there before the gateway has registered by now."""
        self.in_startup_grace = False
        for model in self.models.values():
            model.in_startup_grace = False

    def register_worker(self, identity: bytes, announce: Announce, now: float) -> WorkerState | None:
        """Register or update a worker; None if it contradicts what is known (then it is ignored)."""
        worker = self.workers.get(identity)
        if worker is not None:
            if (worker.uid, worker.model.name) != (announce.worker, announce.model):
                return None
            worker.announce = announce
            worker.advance_to(announce.state, now)
            worker.model.resize_queues()
            self._name_adapters(worker.model)
            return worker
        if identity in self.supervisors or self.find_worker(announce.worker) is not None:
            return None
        model = self._model(announce.model, announce.kind, created=announce.created)
        if model is None:
            return None
        worker = WorkerState(identity, announce, model, now)
        model.retired = False
        model.source = announce.source
        self.workers[identity] = model.workers[identity] = worker
        model.resize_queues()
        self._name_adapters(model)
        log.info("worker %s of %s connected (pid %d, %s)", worker.uid, model.name, announce.pid, announce.state.value)
        return worker

    def mark_ready(self, worker: WorkerState, ready: Ready, now: float) -> None:
        """Note that a worker takes jobs from now on."""
        worker.up_at = now
        worker.ready = worker.model.ready = ready
        worker.advance_to(State.READY, now)

    def register_supervisor(self, identity: bytes, report: Supervision, now: float) -> SupervisorState | None:
        """Register or update a supervisor; None if it contradicts what is known."""
        supervisor = self.supervisors.get(identity)
        if supervisor is not None:
            if supervisor.report.model != report.model:
                return None
            before = supervisor.runs_engine
            self.models[report.model].restarts.count_restarts(supervisor.report, report, now)
            supervisor.take_report(report, now)
            if report.parked:
                supervisor.ending = ""
            if supervisor.runs_engine and not before:
                _count_started(self.models[report.model], supervisor)
            return supervisor
        if identity in self.workers or self._model(report.model, report.kind) is None:
            return None
        supervisor = SupervisorState(identity, report, now)
        model = self.models[report.model]
        model.retired = False
        self.supervisors[identity] = model.supervisors[identity] = supervisor
        if supervisor.runs_engine:
            _count_started(model, supervisor)
        return supervisor

    def remove_peer(self, member: WorkerState | SupervisorState) -> ModelState:
        """Strike a peer off; return the model that it was for."""
        model = member.model if isinstance(member, WorkerState) else self.models[member.report.model]
        self.workers.pop(member.identity, None)
        self.supervisors.pop(member.identity, None)
        model.workers.pop(member.identity, None)
        if model.supervisors.pop(member.identity, None) is member:
            model.retired = not model.supervisors and member.report.watch is Watch.DRAINING
        self._settle_names()
        return model

    def forget_model(self, model: ModelState) -> None:
        """Strike off a model. Raises `JobFailed` (`model_in_use`) where a worker or a supervisor is here for it."""
        if model.present:
            message = f"The model {model.name!r} is {model.state}: end its workers before it can be forgotten."
            raise JobFailed("model_in_use", message, param="name")
        del self.models[model.name]
        self._settle_names()
        log.info("%s is forgotten", model.name)

    def find_worker(self, uid: str) -> WorkerState | None:
        """Return the worker of that uid."""
        return next((worker for worker in self.workers.values() if worker.uid == uid), None)

    def supervisor_of(self, uid: str) -> SupervisorState | None:
        """Return the supervisor whose engine is the worker of that uid."""
        return next((found for found in self.supervisors.values() if found.report.engine == uid), None)

    def running_engines(self, model: ModelState) -> list[SupervisorState]:
        """Return the supervisors of a model that run an engine, or are about to, and were not told to end it."""
        return [found for found in model.supervisors.values() if found.runs_engine]

    def __iter__(self) -> Iterator[ModelState]:
        return iter(sorted(self.models.values(), key=lambda model: model.name))

    def find_model(
        self,
        name: str | None,
        kind: Kind | None,
        capability: str = "",
        *,
        in_startup_grace: bool,
        usable: Callable[[ModelState], bool] = everybody,
    ) -> ModelState:
        """Find the model for a request of that kind.

        Raises `JobFailed`: `model_not_found`, `model_not_ready`, or `invalid_request` where the model exists but
        cannot do that. `in_startup_grace` says that workers may still be registering. What is not `usable` is not
        there.
        """
        models = self.models.values()
        if name is None:
            model = default_of(filter(usable, models), kind, capability)
        else:
            model = named(models, name, kind, capability, usable)
        if model is None:
            if in_startup_grace or not models:
                raise JobFailed(
                    "model_not_ready", "No such model is up yet.", param="model", retryable=True, retry_after_s=1.0
                )
            if name is None:
                needed = f"{kind.value} model" if kind else "model"
                raise JobFailed(Code.INVALID_REQUEST, f"No {needed} is served here.", param="model")
            raise JobFailed("model_not_found", f"The model {name[:100]!r} does not exist.", param="model")
        if kind is not None and model.kind not in SERVES[kind]:
            raise JobFailed(
                Code.INVALID_REQUEST,
                f"The model {model.name!r} is for {model.kind.value} requests, not for {kind.value} ones.",
                param="model",
            )
        return model

    def _name_adapters(self, model: ModelState) -> None:
        """Take a model's adapters from the workers that it has now."""
        workers = model.workers.values()
        model.offered = {name: source for worker in workers for name, source in worker.announce.adapters.items()}
        self._settle_names()

    def _settle_names(self) -> None:
        settle_names(self.models.values(), self._aliases, in_startup_grace=self.in_startup_grace)

    def _model(self, name: str, kind: Kind, *, created: int | None = None) -> ModelState | None:
        model = self.models.get(name)
        if model is None:
            aliases = aliases_of(name, self._aliases)
            born = int(self._wall()) if created is None else created
            model = self.models[name] = ModelState(name, kind, created=born, aliases=aliases)
            model.in_startup_grace = self.in_startup_grace
            self._settle_names()
        elif model.kind is not kind:
            if model.workers or model.supervisors:
                return None
            model.kind = kind
        return model


def _count_started(model: ModelState, supervisor: SupervisorState) -> None:
    """Take in that a supervisor runs an engine and did not before."""
    if supervisor.ending:
        # It was never parked: its engine died and was replaced before the order to end it came.
        supervisor.ending = ""
    elif model.starting:
        del model.starting[0]
