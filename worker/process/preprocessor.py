"""Where jobs are prepared before the engine sees them: rendered, tokenised and checked, off its thread.

A long prompt must not hold up running streams, so this has a thread of its own; jobs whose preparation takes long come
in pieces. Tenants take turns, and so do the jobs of each. What is done elsewhere (images are decoded in processes of
their own, long texts tokenised on another thread) nobody waits for but the job that needs it. A job that is cancelled
while it waits here never reaches the engine.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, runtime_checkable

import msgspec

from protocol.errors import Code, JobError
from protocol.messages import (
    Failed,
    GenerateJob,
    Job,
    ModelJob,
    Scores,
    SimilarityJob,
    Text,
    ToGateway,
    Tokens,
    Usage,
    Vectors,
)
from worker.turns import TenantTurns

log = logging.getLogger("worker")


class Admitted(msgspec.Struct, frozen=True):
    """A prepared job on its way to the engine loop."""

    epoch: int
    job: int
    attempt: int
    prepared: Any


DROPPED = object()
"""Came of a job that was cancelled."""


class PendingJob:
    """A job in preparation: `pieces` is what is left to do of one that takes long."""

    __slots__ = ("buffers", "epoch", "job", "pieces")

    def __init__(self, epoch: int, job: Job, buffers: Sequence[bytes]) -> None:
        self.epoch = epoch
        self.job = job
        self.buffers = buffers
        self.pieces: Iterator[Any] | None = None


@runtime_checkable
class Compiler(Protocol):
    """What an engine may have besides `worker.engines.base.Engine`: jobs that it has to compile something for."""

    def compile_job(self, job: GenerateJob, ended: Callable[[JobError | None], None], /) -> bool:
        """Return whether the job has to wait for it, seconds perhaps; `ended` is then called once, on another thread.

        Never blocks. Raises `JobError`.
        """

    def drop_job(self, job: GenerateJob, /) -> None:
        """Call `ended` no more: the job has been prepared, or never will be. What nobody waits for is given up."""


class Preprocessor:
    """Takes jobs from the link, gives prepared ones to the loop and answers to the outbox.

    What has to be compiled first waits at the compiler, so that nobody else waits for it.
    """

    def __init__(
        self,
        *,
        prepare: Callable[[ModelJob, Sequence[bytes]], Any],
        compiler: Compiler | None = None,
        admit: Callable[[Admitted], None],
        send: Callable[[int, Sequence[ToGateway]], None],
    ) -> None:
        self._prepare = prepare
        self._compiler = compiler
        self._admit = admit
        self._send = send
        self._queue: queue.SimpleQueue[PendingJob] = queue.SimpleQueue()
        self._started: TenantTurns[PendingJob] = TenantTurns()
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, int, int], Job] = {}
        self._elsewhere: dict[tuple[int, int, int], Future[Any]] = {}

    def start(self) -> None:
        """Begin to prepare what `take_job` brings."""
        threading.Thread(target=self._run, name="preprocessor", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Jobs that have not reached the engine yet."""
        return len(self._waiting)

    def take_job(self, epoch: int, job: Job, buffers: Sequence[bytes] = ()) -> None:
        """Queue a job, and the raw frames that came with it, for preparation. Never blocks."""
        with self._lock:
            self._waiting[epoch, job.job, job.attempt] = job
        pending = PendingJob(epoch, job, buffers)
        if self._compiler is None or not isinstance(job, GenerateJob):
            self._queue.put(pending)
            return
        waits = _try_work(job, partial(self._compiler.compile_job, job, partial(self._on_compiled, pending)))
        if isinstance(waits, Failed):
            self._pass_on(pending, waits)
        elif not waits:
            self._queue.put(pending)

    def cancel_job(self, epoch: int, job: int, attempt: int) -> bool:
        """Return whether the job was still here; if so it goes no further and its caller answers for it."""
        with self._lock:
            key = (epoch, job, attempt)
            found = self._waiting.pop(key, None)
            future = self._elsewhere.pop(key, None)
        if future is not None:
            future.cancel()
        if found is not None:
            self._drop_compile(found)
        return found is not None

    def drop_waiting(self) -> None:
        """Drop everything that has not reached the engine."""
        with self._lock:
            dropped = [*self._waiting.values()]
            self._waiting.clear()
            futures = list(self._elsewhere.values())
            self._elsewhere.clear()
        for future in futures:
            future.cancel()
        for job in dropped:
            self._drop_compile(job)

    def _run(self) -> None:
        while True:
            self._start_queued()
            pending = self._started.pop_next()
            outcome = self._next_outcome(pending)
            if outcome is None:
                self._started.add_item(pending.job.tenant, pending)
            elif isinstance(outcome, Future):
                self._await_future(pending, outcome)
            else:
                self._pass_on(pending, outcome)

    def _await_future(self, pending: PendingJob, future: Future[Any]) -> None:
        """Go on with a job once `future` is done; where the job is cancelled, `future` is, too."""
        key = (pending.epoch, pending.job.job, pending.job.attempt)
        with self._lock:
            wanted = key in self._waiting
            if wanted:
                self._elsewhere[key] = future

        def go_on(_done: Future[Any]) -> None:
            with self._lock:
                self._elsewhere.pop(key, None)
            self._queue.put(pending)

        future.add_done_callback(go_on)
        if not wanted:
            future.cancel()

    def _on_compiled(self, pending: PendingJob, error: JobError | None) -> None:
        """Go on with a job: what it had to wait for was compiled, or could not be."""
        if error is None:
            self._queue.put(pending)
        else:
            self._pass_on(pending, _failed_by(pending.job, error))

    def _drop_compile(self, job: Job) -> None:
        if self._compiler is not None and isinstance(job, GenerateJob) and job.constrained:
            self._compiler.drop_job(job)

    def _start_queued(self) -> None:
        """Begin with every job that is there; wait for one only when there is nothing else to do."""
        while True:
            try:
                pending = self._queue.get(block=not self._started)
            except queue.Empty:
                return
            self._started.add_item(pending.job.tenant, pending)

    def _pass_on(self, pending: PendingJob, outcome: Any) -> None:
        key = (pending.epoch, pending.job.job, pending.job.attempt)
        # Taken out and passed on under the lock: a cancel comes either before or after, never between.
        with self._lock:
            if self._waiting.pop(key, None) is None:
                return
            match outcome:
                case Tokens() | Text() | Vectors() | Scores() | Failed():
                    self._send(pending.epoch, [outcome])
                case prepared:
                    self._admit(Admitted(pending.epoch, pending.job.job, pending.job.attempt, prepared))
        self._drop_compile(pending.job)

    def _next_outcome(self, pending: PendingJob) -> Any:
        """Return what came of the next piece of a job; None: there is more to do."""
        job = pending.job
        if (pending.epoch, job.job, job.attempt) not in self._waiting:
            return DROPPED
        return _try_work(job, lambda: self._next_piece(pending))

    def _next_piece(self, pending: PendingJob) -> Any:
        if pending.pieces is None:
            prepare: Any = _compare if isinstance(pending.job, SimilarityJob) else self._prepare
            prepared = prepare(pending.job, pending.buffers)
            if not isinstance(prepared, Iterator):
                return prepared
            pending.pieces = prepared
        return next(pending.pieces)


def _try_work(job: Job, work: Callable[[], Any]) -> Any:
    """Return what comes of it, or how it failed."""
    try:
        return work()
    except JobError as error:
        return _failed_by(job, error)
    except Exception:
        # One request that the tokenizer or template chokes on must not end preparation for all.
        log.exception("job %d could not be prepared", job.job)
        return Failed(job.job, job.attempt, Code.ENGINE_ERROR, "The request could not be prepared.")


def _failed_by(job: Job, error: JobError) -> Failed:
    usage = Usage(0, 0, compile_s=error.compile_s) if error.compile_s else None
    return Failed(job.job, job.attempt, error.code, error.message, error.param, usage=usage)


def _compare(job: SimilarityJob, buffers: Sequence[bytes]) -> Iterator[Scores | None]:
    # Imported when first needed: an engine of one's own may live without numpy.
    from worker.process.similarity import compare

    return compare(job, buffers)
