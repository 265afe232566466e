"""The dispatcher put together: what routes and the application see of everything behind the socket."""

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.jobs.errors import shutting_down
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.link import WorkerLink
from gateway.dispatch.receiver import Receiver
from gateway.dispatch.state import JobState, ModelState, WorkerState
from gateway.dispatch.stats import ERRORS, PoolStats, Snapshot, WorkerSnapshot, model_snapshot
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.dispatch.workers.liveness import Liveness
from gateway.dispatch.workers.lookup import everybody
from gateway.dispatch.workers.registry import Registry
from gateway.dispatch.workers.scaling import Scaling
from gateway.job_failure import JobFailed
from protocol.codec import encode
from protocol.messages import GenerateJob, Job, Kind

log = logging.getLogger(__name__)

DRAIN_LOOK_S = 0.02
LAST_WORDS_S = 0.05


class Share(Protocol):
    """What holds the memory of a request, until it was closed as often as it was kept, and once more."""

    def add_user(self) -> None:
        """Keep it."""

    def close(self) -> None:
        """Let go of it."""


class Pool:
    """Every served model, behind one socket in `run_dir`.

    `run_dir` is a folder private to this pool (made if missing); `aliases` maps further names to served names;
    `clock` counts monotonic seconds. `told` hears of every job that is over, in the context of whoever asked for it.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        aliases: Mapping[str, str] | None = None,
        limits: PoolTimeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
        told: Callable[[JobState], None] | None = None,
    ) -> None:
        limits = limits or PoolTimeouts()
        # 63 random bits: no two runs of a gateway share an epoch, and 0 is for workers that know none.
        epoch = secrets.randbelow(2**63 - 1) + 1
        self._clock = clock
        self._limits = limits
        self._born = clock()
        self.stats = PoolStats(told)
        self._registry = Registry(aliases=aliases or {})
        self._link = WorkerLink(
            run_dir,
            probe=encode([], epoch=epoch),
            receive=self._on_frame,
            gone=self._on_gone,
            peers=self._registry.list_identities,
        )
        self._dispatcher = Dispatcher(epoch=epoch, transport=self._link, clock=clock, limits=limits, stats=self.stats)
        self._receiver = Receiver(
            epoch=epoch,
            pid=os.getpid(),
            transport=self._link,
            clock=clock,
            limits=limits,
            registry=self._registry,
            dispatcher=self._dispatcher,
            stats=self.stats,
        )
        self._liveness = Liveness(self._registry, limits, clock())
        self.scaling = Scaling(epoch=epoch, transport=self._link, clock=clock, registry=self._registry)
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and start receiving. Raises `protocol.address.AddressError`."""
        await self._link.open()
        self._born = self._clock()
        self._liveness.note_time(self._born)
        self._registry.in_startup_grace = True
        self._ticker = asyncio.create_task(self._tick_for_ever(), name="pool-tick")

    async def drain(self, timeout_s: float) -> None:
        """Wait until nobody listens to a job any more, then fail what still runs (`shutting_down`).

        A handler that is cancelled can't tell its client anything; one whose job fails ends its stream in good order.
        """
        deadline = self._clock() + timeout_s
        while self._dispatcher.listeners and self._clock() < deadline:  # noqa: ASYNC110 - leaving must stay cheap
            await asyncio.sleep(DRAIN_LOOK_S)
        self._dispatcher.fail_all(shutting_down())
        # A worker's socket drops what it has not read yet when its gateway disconnects: let the cancellations be read.
        await asyncio.sleep(LAST_WORDS_S)

    async def close(self) -> None:
        """Fail what still runs (`shutting_down`), stop every task, close the socket, free the lock."""
        self._dispatcher.fail_all(shutting_down())
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker
        await self._link.close()

    def find_model(
        self,
        name: str | None,
        kind: Kind | None,
        capability: str = "",
        *,
        usable: Callable[[ModelState], bool] = everybody,
    ) -> ModelState:
        """Find the model for a request. Raises `JobFailed`: `model_not_found`, `model_not_ready`, `invalid_request`.

        Where none is named, one with the `capability` is preferred. A `kind` of None: any. Models, and models with
        adapters, that are not `usable` are not there.
        """
        return self._registry.find_model(
            name, kind, capability, in_startup_grace=self._registry.in_startup_grace, usable=usable
        )

    def models(self) -> list[ModelState]:
        """All models that were ever announced and not forgotten, by name."""
        return [*self._registry]

    def forget_model(self, model: ModelState) -> None:
        """Know no more of a model that is gone. Raises `JobFailed` (`model_in_use`)."""
        self._registry.forget_model(model)

    def run_job(
        self,
        model: ModelState,
        job: Job,
        buffers: Sequence[bytes] = (),
        *,
        cache_key: str | None = None,
        share: Share | None = None,
    ) -> AbstractAsyncContextManager[JobStream]:
        """Run a job (its `job` and `attempt` are set here) for as long as the block lasts.

        `buffers` are what the job's images point into; each has to fit `MAX_FRAME_BYTES`. Jobs with the same
        `cache_key` go to the same worker, where that has room. A job that nobody waits for any more is kept until its
        worker has stopped it, and with it the `share` that holds its memory.

        Entering never waits and never raises: a full queue, too, is told by the stream. Leaving the block
        before the end cancels the job, without waiting.
        """
        return _Run(self._dispatcher, model, job, buffers, cache_key, share)

    def find_worker(self, uid: str) -> WorkerState:
        """Return the worker of that `uid`, as snapshots show it. Raises `JobFailed` (`not_found`)."""
        worker = self._registry.find_worker(uid)
        if worker is None:
            raise JobFailed("not_found", f"There is no worker {uid[:64]!r}.", param="worker")
        return worker

    def count_embeddings(self, model: ModelState, *, inputs: int, tokens: int) -> None:
        """Count what a request to embed was answered with, computed or cached."""
        self.stats.throughput[model.name].count_request(self._clock(), inputs=inputs, tokens=tokens)

    def take_snapshot(self) -> Snapshot:
        """Everything countable, now."""
        stats, now = self.stats, self._clock()
        by_type = stats.count_types()
        workers = [
            WorkerSnapshot(
                uid=worker.uid,
                model=worker.model.name,
                state=worker.state.value,
                pid=worker.announce.pid,
                rows=worker.rows,
                slots=worker.slots,
                silent_s=now - worker.last_seen,
                moved_s=now - worker.moved_at,
                revision=worker.ready.commit if worker.ready else "",
                beat=worker.beat,
                adapters=sorted(worker.announce.adapters.keys() & worker.model.adapters.keys()),
                unserved_adapters={
                    name: why for name, why in worker.model.unserved.items() if name in worker.announce.adapters
                },
            )
            for worker in self._registry.workers.values()
        ]
        return Snapshot(
            models=[model_snapshot(model) for model in self._registry],
            workers=workers,
            supervisors=[supervisor.report for supervisor in self._registry.supervisors.values()],
            total_requests=sum(by_type.values()),
            total_tokens=sum(stats.tokens.values()),
            prompt_tokens=stats.sum_tokens("prompt"),
            completion_tokens=stats.sum_tokens("completion"),
            tokens=dict(stats.tokens),
            total_time_s=stats.total_time_s,
            request_types=by_type,
            requests=dict(stats.requests),
            error_count=sum(map(stats.count_outcome, ERRORS)),
            cancelled=stats.count_outcome("cancelled"),
            performance=stats.performance(),
            wire={**stats.wire, "stale": self._dispatcher.table.stale},
            continued=stats.continued,
            refused=self._dispatcher.quarantine.refused,
            embedded={name: throughput.read_rates(now) for name, throughput in stats.throughput.items()},
            times_s=dict(stats.times_s),
            speeds={name: [*recent] for name, recent in stats.speeds.items()},
        )

    # -- inside ------------------------------------------------------------

    def _on_frame(self, identity: bytes, frames: Sequence[bytes]) -> None:
        self._receiver.on_frame(identity, frames)

    def _on_gone(self, identity: bytes, frozen: bool) -> None:
        self._receiver.on_gone(identity, frozen=frozen)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._limits.tick_s)
            try:
                self._tick()
            except Exception:
                log.exception("the check of silent workers and queue timeouts failed")

    def _tick(self) -> None:
        if self._registry.in_startup_grace and self._clock() - self._born >= self._limits.settle_s:
            self._registry.end_startup_grace()
        self.scaling.reconcile()
        self._dispatcher.report_continued()
        self._liveness.note_time(self._clock())
        if self._liveness.silent_workers(self._clock()) or self._liveness.silent_supervisors(self._clock()):
            # Perhaps we are late, not they: what has arrived counts.
            self._link.receive_pending()
        for worker in self._liveness.silent_workers(self._clock()):
            self._receiver.remove_worker(worker, "nothing was heard of it for too long", kill=True)
        for supervisor in self._liveness.silent_supervisors(self._clock()):
            self._receiver.remove_supervisor(supervisor)
        for worker in self._liveness.stalled_workers(self._clock()):
            self._receiver.remove_worker(worker, "its engine made no progress", kill=True)
        for worker in self._liveness.stuck_workers(self._clock()):
            self._receiver.remove_worker(worker, f"its engine made no progress while {worker.state.value}", kill=True)
        for supervisor in self._liveness.stuck_starts(self._clock()):
            self._receiver.order_kill(supervisor, "its engine made no progress before it could speak")
        for model in self._registry:
            model.restarts.forget_old(self._clock())
            self._dispatcher.expire_waiting(model)
            # Time alone can end hope: see `Model.in_startup_grace`.
            self._dispatcher.assign_waiting(model)


class _Run:
    """One job's time in the pool. Neither end awaits, so a handler's cancellation can't interrupt it."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        model: ModelState,
        job: Job,
        buffers: Sequence[bytes],
        cache_key: str | None,
        share: Share | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._model = model
        self._job = job
        self._buffers = buffers
        self._cache_key = cache_key
        self._share = share
        self._state: JobState | None = None

    async def __aenter__(self) -> JobStream:
        stream = JobStream(self._job.n if isinstance(self._job, GenerateJob) else 1)
        self._state = self._dispatcher.submit_job(
            self._model, self._job, stream, self._buffers, cache_key=self._cache_key
        )
        return stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state is not None:
            self._dispatcher.release_job(self._state)
            if self._share is not None and self._state.id in self._dispatcher.table.jobs:
                self._share.add_user()
                self._state.on_closed = self._share.close
