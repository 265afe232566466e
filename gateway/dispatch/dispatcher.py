"""Moves jobs: into the queue, onto workers, back after a loss, out to their streams. Never waits, reads no socket.

At most `slots + 1` rows are at one worker; the rest queue here, where they can still be given to another.
A job keeps its room until its worker says that it has ended. One that loses its worker goes on at another.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from gateway.dispatch.job_table import JobTable
from gateway.dispatch.jobs import errors
from gateway.dispatch.jobs.outcome import Outcome, outcome_of_failure
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.prefix_affinity import keys_of
from gateway.dispatch.quarantine import Quarantine, trial_order
from gateway.dispatch.selection import select_job, select_worker
from gateway.dispatch.state import UNBEGUN, JobState, ModelState, WorkerState
from gateway.dispatch.stats import PoolStats
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.dispatch.transport import Transport
from gateway.job_failure import JobFailed
from protocol.codec import MAX_FRAME_BYTES, encode
from protocol.errors import Code
from protocol.messages import (
    Accepted,
    Cancel,
    Delta,
    DetokenizeJob,
    Done,
    EmbedJob,
    Failed,
    GenerateJob,
    Job,
    Progress,
    Result,
    Scores,
    SimilarityJob,
    State,
    Terminal,
    Text,
    TokenizeJob,
    Tokens,
    ToWorker,
    Usage,
    Vectors,
)

log = logging.getLogger(__name__)

UNDECIDED = (Code.DRAINING, Code.CANCELLED)
"""Ends that do not say whether the job would have run."""


class Dispatcher:
    """All jobs in job and where they go."""

    def __init__(
        self, *, epoch: int, transport: Transport, clock: Callable[[], float], limits: PoolTimeouts, stats: PoolStats
    ) -> None:
        self.table = JobTable()
        self.quarantine = Quarantine()
        self._continued: Counter[tuple[str, str, bool]] = Counter()
        """Jobs that went on and of which no line was written: by worker, model, and whether they had output."""
        self.listeners = 0
        """Jobs whose handlers have not left yet."""
        self._epoch = epoch
        self._transport = transport
        self._clock = clock
        self._limits = limits
        self._stats = stats

    # -- the client's side -------------------------------------------------

    def submit_job(
        self,
        model: ModelState,
        message: Job,
        stream: JobStream,
        buffers: Sequence[bytes] = (),
        *,
        cache_key: str | None = None,
    ) -> JobState:
        """Take a job in, with the raw frames that go with it. `cache_key`: see `affinity.keys_of`.

        It is on its way, queued, or has already failed when this returns; the stream tells.
        """
        now = self._clock()
        self.listeners += 1
        if model.base is not None:
            if isinstance(message, GenerateJob):
                message = msgspec.structs.replace(message, adapter=model.name)
            model = model.base
        job = self.table.open_job(model, message, stream, now, buffers)
        job.keys = keys_of(message, cache_key)
        self.quarantine.find_record(job, now)
        queue = model.queue_for(job)
        if self.quarantine.is_blocked(job):
            self._refuse(job)
        elif not model.may_become_ready:
            self._fail(job, _not_ready(model))
        elif queue.full and (queue or not self._room(job)) and not self._displace(job):
            self._fail(job, errors.queue_full(model.retry_after_s))
        else:
            queue.push(job, now)
            self.assign_waiting(model)
        return job

    def release_job(self, job: JobState) -> None:
        """Take in that a client is gone, or has all it wanted: stop its job if that still runs."""
        self.listeners -= 1
        if job.open:
            self._over(job, "cancelled")
            self._abandon(job)
        # Only now is it known how the answer was read.
        self._stats.count_ended(job)

    def fail_all(self, failure: JobFailed) -> None:
        """End every job, because the gateway stops."""
        for job in [*self.table.jobs.values()]:
            if job.worker is not None:
                self.send_message(job.worker, Cancel(job.id, job.attempt))
            self._dequeue(job)
            self._fail(job, failure)

    # -- the worker's side -------------------------------------------------

    def on_delta(self, worker: WorkerState, delta: Delta) -> None:
        """Hand a delta to its stream. The hot path: once per generated token."""
        job = self.table.jobs.get(delta.job)
        if job is None or job.attempt != delta.attempt or job.worker is not worker:
            self.table.stale += 1
        elif job.outcome is None:
            if job.output_at is None:
                job.output_at = self._clock()
                self._stats.time_first_output(job, job.output_at)
            if job.crash_record is not None and self.quarantine.on_output(job, self._clock()):
                self.assign_waiting(job.model)
            if not job.stream.feed_delta(delta):
                self._drop_slow_reader(job)

    def on_progress(self, worker: WorkerState, news: Accepted | Progress) -> None:
        """Take in that a job came further, without output."""
        job = self.table.find_job(worker, news.job, news.attempt)
        if job is None:
            return
        job.begun = True
        if not job.open:
            return
        if isinstance(news, Accepted):
            job.stream.mark_accepted(news)
            if job.compiling:
                self.table.mark_begun(job)
        else:
            job.stream.progress = news

    def on_terminal(self, worker: WorkerState, terminal: Terminal) -> None:
        """Take in that a job ended at its worker, which frees its room; `assign_waiting` is the caller's to call."""
        job = self.table.find_job(worker, terminal.job, terminal.attempt)
        if job is None:
            return
        if isinstance(terminal, Failed) and terminal.code == Code.WORKER_LOST:
            # The last words of a dying engine, one for each job; the next job would die with it.
            worker.state = State.STOPPED
            in_flight = [*worker.in_flight.values()]
            self.on_worker_lost(job.model, in_flight, suspects=in_flight)
            return
        self.table.release_job(job)
        if isinstance(terminal, Done | Failed):
            job.stream.spent = terminal.usage
        if not isinstance(terminal, Failed):
            self.quarantine.on_finish(job, self._clock())
        elif terminal.code not in UNDECIDED:
            self.quarantine.clear(job, self._clock())
        if job.open:
            self._conclude(job, worker, terminal)
        if not job.open:
            self.table.close_job(job)

    def on_worker_lost(
        self, model: ModelState, in_flight: Sequence[JobState], *, suspects: Sequence[JobState] | None
    ) -> None:
        """Send jobs whose worker takes no more of them elsewhere.

        It died of one of `suspects`, or for a reason of its own; None: it was told to leave.
        """
        if suspects is not None:
            self.quarantine.on_crash(model.name, suspects, self._clock())
        spared = suspects is not None and len(suspects) < len(in_flight)
        for job in sorted(in_flight, key=lambda job: job.id, reverse=True):
            self.table.release_job(job)
            if job.open:
                self._again(job, UNBEGUN if spared and not job.begun else 1)
            if not job.open:
                self.table.close_job(job)
        self.assign_waiting(model)

    def assign_waiting(self, model: ModelState) -> None:
        """Send what can be sent, in order; fail what waits for nothing."""
        if not model.may_become_ready:
            for queue in model.queues:
                for waiting in queue.remove_all():
                    self._fail(waiting, errors.lost(model.retry_after_s) if waiting.stream.begun else _not_ready(model))
            return
        if model.suspects:
            self._try_suspects(model)
        for queue in (model.slotless_queue, model.queue):
            while queue and (found := select_job(model, queue, self._limits.slotless_jobs)) is not None:
                job, worker = found
                queue.take(job)
                if not self._send(job, worker):
                    queue.push_front(job, job.queued_at)

    def expire_waiting(self, model: ModelState) -> None:
        """Fail who has waited too long."""
        now = self._clock()
        for queue in model.queues:
            for job in queue.find_expired(now):
                queue.remove(job)
                self._fail(job, errors.lost(model.retry_after_s) if job.stream.begun else errors.too_late())

    def report_continued(self) -> None:
        """Log how many jobs went on lately, and where."""
        for (uid, model, begun), count in self._continued.items():
            what = f"{count} stream{'s' * (count > 1)} continued" if begun else f"{count} jobs begun again"
            log.info("%s on worker %s of %s", what if begun or count > 1 else "1 job begun again", uid, model)
        self._continued.clear()

    def send_message(self, worker: WorkerState, message: ToWorker) -> None:
        """Send one message; a worker that can't take it is not sent to again."""
        if not self._transport.send_frame(worker.identity, encode([message], epoch=self._epoch)):
            worker.unreachable = True

    # -- inside ------------------------------------------------------------

    def _send(self, job: JobState, worker: WorkerState) -> bool:
        """Send a queued job to a worker; return False if that turned out to be gone."""
        now = self._clock()
        message: Job = msgspec.structs.replace(job.message, job=job.id, attempt=job.attempt)
        if isinstance(message, GenerateJob) and job.attempt > 1:
            message = msgspec.structs.replace(message, delivered=job.stream.delivered)
        try:
            frame = encode([message], epoch=self._epoch)
        except (ValueError, OverflowError, TypeError) as error:
            # Half a surrogate pair, an integer beyond 64 bits: this request's fault alone, it must not stop the queue.
            log.warning("a job that can't be encoded: %s", error)
            self._fail(job, JobFailed(Code.INVALID_REQUEST, "The request holds a value that can't be passed on."))
            return True
        if len(frame) > MAX_FRAME_BYTES:
            self._fail(job, JobFailed(Code.INVALID_REQUEST, "The request is too large."))
            return True
        if not self._transport.send_frame(worker.identity, frame, job.buffers):
            worker.unreachable = True
            return False
        self._stats.count_sent(job, now)
        if job.attempt > 1:
            self._stats.continued += 1
            self._continued[worker.uid, worker.model.name, job.stream.begun] += 1
        job.model.affinity.record_prompt(job.keys, worker.uid)
        self.table.assign_job(job, worker, now)
        return True

    def _conclude(self, job: JobState, worker: WorkerState, terminal: Terminal) -> None:
        match terminal, job.message:
            case (Done(usage=usage), GenerateJob()):
                self._finish(job, usage)
            case (Vectors() as vectors, EmbedJob()):
                self._finish(job, vectors)
            case (Tokens() as tokens, TokenizeJob()):
                self._finish(job, tokens)
            case (Text() as text, DetokenizeJob()):
                self._finish(job, text)
            case (Scores() as scores, SimilarityJob()):
                self._finish(job, scores)
            case (Failed() as failed, _):
                self._failed(job, worker, failed)
            case _:
                self._fail(job, JobFailed(Code.ENGINE_ERROR, f"answered with {type(terminal).__name__}"))

    def _room(self, job: JobState) -> bool:
        return select_worker(job.model, job, self._limits.slotless_jobs) is not None

    def _displace(self, newcomer: JobState) -> bool:
        """Give a full queue's last place to a caller that holds fewer, at the cost of one that holds many."""
        queue = newcomer.model.queue_for(newcomer)
        loser = queue.eviction_candidate(newcomer)
        if loser is None:
            return False
        queue.remove(loser)
        self._fail(loser, errors.queue_full(newcomer.model.retry_after_s))
        return True

    def _abandon(self, job: JobState) -> None:
        """Stop a job that nobody waits for any more."""
        if job.worker is not None:
            self.send_message(job.worker, Cancel(job.id, job.attempt))
            return
        self.table.close_job(job)
        self._dequeue(job)
        # The next in queue may fit where this one did not.
        self.assign_waiting(job.model)

    def _failed(self, job: JobState, worker: WorkerState, failed: Failed) -> None:
        match failed.code:
            case Code.DRAINING:
                # Its beat will say so too, but perhaps after the next job was sent.
                worker.state = State.DRAINING
                self._again(job)
            case Code.CANCELLED:
                # Nobody asked for it, or the job would not be open.
                self._again(job)
            case _:
                failure = JobFailed(failed.code, failed.message, param=failed.param, retryable=failed.retryable)
                self._fail(job, failure)

    def _again(self, job: JobState, weight: int = 1) -> None:
        """Queue a job that came back, in front of those that have not had their turn."""
        if not job.count_return(weight):
            self._fail(job, errors.lost(job.model.retry_after_s))
            return
        job.attempt += 1
        job.stream.progress = None
        # Who has read half an answer waits for the rest of it, but not as long as somebody who queues.
        job.wait_limit_s = self._limits.resume_s if job.stream.begun else float("inf")
        job.model.queue_for(job).push_front(job, self._clock())

    def _dequeue(self, job: JobState) -> None:
        for queue in job.model.queues:
            queue.remove(job)

    def _try_suspects(self, model: ModelState) -> None:
        """Refuse suspects that killed often enough; send the others to workers where they may be tried."""
        now = self._clock()
        while (guilty := self.quarantine.find_guilty(model, now)) is not None:
            model.suspects.remove(guilty)
            self._refuse(guilty)
        for job in sorted(model.suspects, key=trial_order):
            free = [worker for worker in model.up if self.quarantine.may_start(job, worker, now)]
            worker = select_worker(model, job, self._limits.slotless_jobs, among=free)
            if worker is not None:
                model.suspects.remove(job)
                if not self._send(job, worker):
                    model.suspects.push(job, job.queued_at)

    def _refuse(self, job: JobState) -> None:
        self.quarantine.refuse(job)
        self._fail(job, errors.crashed())

    def _drop_slow_reader(self, job: JobState) -> None:
        failure = JobFailed("slow_reader", "The client read too slowly.")
        job.stream.fail(failure, keep_unread=False)
        self._over(job, outcome_of_failure(failure.code))
        self._abandon(job)

    def _finish(self, job: JobState, outcome: Usage | Result) -> None:
        job.stream.finish(outcome)
        if job.sent_at is not None and not job.slotless:
            job.model.record_duration(self._clock() - job.sent_at)
        self._over(job, "done")

    def _fail(self, job: JobState, failure: JobFailed) -> None:
        if job.open:
            job.stream.fail(failure)
            stopped = failure.code == "model_not_ready" and not job.model.expected
            self._over(job, "client_error" if stopped else outcome_of_failure(failure.code))
        self.table.close_job(job)

    def _over(self, job: JobState, outcome: Outcome) -> None:
        job.outcome = outcome
        # It is not sent again: what a worker is slow to let go of need not keep its images in memory here.
        job.buffers = ()
        job.over_at = self._clock()


def _not_ready(model: ModelState) -> JobFailed:
    return errors.not_ready(model.name, model.state, model.retry_after_s)
