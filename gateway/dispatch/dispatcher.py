"""Moves jobs: into the queue, onto workers, back after a loss, out to their streams. Never waits, reads no socket.

At most `slots + 1` rows are aboard one worker; the rest queue here, where they can still be given to another.
A job keeps its room until its worker says that it has ended. One that loses its worker goes on at another.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from gateway.dispatch import failures
from gateway.dispatch.flight import UNBEGUN, JobState, Outcome
from gateway.dispatch.job_table import JobTable
from gateway.dispatch.jobs.stream import JobFailed, JobStream
from gateway.dispatch.model import ModelState, WorkerState
from gateway.dispatch.prefix_affinity import keys_of
from gateway.dispatch.quarantine import Quarantine, trial_order
from gateway.dispatch.stats import PoolStats
from gateway.dispatch.timeouts import PoolTimeouts
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


class Transport(Protocol):
    """The way out."""

    def send_frame(self, identity: bytes, frame: bytes, buffers: Sequence[bytes] = ()) -> bool:
        """Send a frame, with raw buffers behind it, without waiting.

        False if the peer can't take it (the line then reports it gone by itself).
        """


class Dispatcher:
    """All jobs in flight and where they go."""

    def __init__(
        self, *, epoch: int, line: Transport, clock: Callable[[], float], limits: PoolTimeouts, stats: PoolStats
    ) -> None:
        self.ledger = JobTable()
        self.quarantine = Quarantine()
        self.listeners = 0
        """Jobs whose handlers have not left yet."""
        self._epoch = epoch
        self._line = line
        self._clock = clock
        self._limits = limits
        self._stats = stats

    # -- the client's side -------------------------------------------------

    def submit_job(
        self,
        model: ModelState,
        job: Job,
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
            if isinstance(job, GenerateJob):
                job = msgspec.structs.replace(job, adapter=model.name)
            model = model.base
        flight = self.ledger.open_job(model, job, stream, now, buffers)
        flight.keys = keys_of(job, cache_key)
        self.quarantine.find_record(flight, now)
        line = model.queue_for(flight)
        if self.quarantine.is_blocked(flight):
            self._refuse(flight)
        elif not model.may_become_ready:
            self._fail(flight, failures.not_ready(model))
        elif line.full and (line or not self._room(flight)) and not self._displace(flight):
            self._fail(flight, failures.queue_full(model))
        else:
            line.push(flight, now)
            self.assign_waiting(model)
        return flight

    def release_job(self, flight: JobState) -> None:
        """The client is gone, or has all it wanted: stop the job if it still runs."""
        self.listeners -= 1
        if flight.open:
            self._over(flight, "cancelled")
            self._abandon(flight)
        # Only now is it known how the answer was read.
        self._stats.count_ended(flight)

    def fail_all(self, failure: JobFailed) -> None:
        """End every job, because the gateway stops."""
        for flight in [*self.ledger.jobs.values()]:
            if flight.worker is not None:
                self.send_message(flight.worker, Cancel(flight.id, flight.attempt))
            self._dequeue(flight)
            self._fail(flight, failure)

    # -- the worker's side -------------------------------------------------

    def on_delta(self, worker: WorkerState, delta: Delta) -> None:
        """Hand a delta to its stream. The hot path: once per generated token."""
        flight = self.ledger.jobs.get(delta.job)
        if flight is None or flight.attempt != delta.attempt or flight.worker is not worker:
            self.ledger.stale += 1
        elif flight.outcome is None:
            if flight.output_at is None:
                flight.output_at = self._clock()
                self._stats.time_first_output(flight, flight.output_at)
            if flight.crash_record is not None and self.quarantine.on_output(flight, self._clock()):
                self.assign_waiting(flight.model)
            if not flight.stream.feed_delta(delta):
                self._drop_slow_reader(flight)

    def on_progress(self, worker: WorkerState, news: Accepted | Progress) -> None:
        """A job came further, without output."""
        flight = self.ledger.find_job(worker, news.job, news.attempt)
        if flight is None:
            return
        flight.begun = True
        if not flight.open:
            return
        if isinstance(news, Accepted):
            flight.stream.mark_accepted(news)
            if flight.compiling:
                self.ledger.mark_begun(flight)
        else:
            flight.stream.progress = news

    def on_terminal(self, worker: WorkerState, terminal: Terminal) -> None:
        """A job ended at its worker: its room is free."""
        flight = self.ledger.find_job(worker, terminal.job, terminal.attempt)
        if flight is None:
            return
        if isinstance(terminal, Failed) and terminal.code == Code.WORKER_LOST:
            # The last words of a dying engine, one for each job; the next job would die with it.
            worker.state = State.STOPPED
            aboard = [*worker.in_flight.values()]
            self.on_worker_lost(flight.model, aboard, suspects=aboard)
            return
        self.ledger.release_job(flight)
        if isinstance(terminal, Done | Failed):
            flight.stream.spent = terminal.usage
        if not isinstance(terminal, Failed):
            self.quarantine.on_finish(flight, self._clock())
        elif terminal.code not in UNDECIDED:
            self.quarantine.clear(flight, self._clock())
        if flight.open:
            self._conclude(flight, worker, terminal)
        if not flight.open:
            self.ledger.close_job(flight)
        self.assign_waiting(flight.model)

    def on_worker_lost(
        self, model: ModelState, aboard: Sequence[JobState], *, suspects: Sequence[JobState] | None
    ) -> None:
        """Send jobs whose worker takes no more of them elsewhere. It died of one of `suspects`, or for a reason of its
        own; None: it was told to leave.
        """
        if suspects is not None:
            self.quarantine.on_crash(model.name, suspects, self._clock())
        spared = suspects is not None and len(suspects) < len(aboard)
        for flight in sorted(aboard, key=lambda flight: flight.id, reverse=True):
            self.ledger.release_job(flight)
            if flight.open:
                self._again(flight, UNBEGUN if spared and not flight.begun else 1)
            if not flight.open:
                self.ledger.close_job(flight)
        self.assign_waiting(model)

    def assign_waiting(self, model: ModelState) -> None:
        """Send what can be sent, in order; fail what waits for nothing."""
        if not model.may_become_ready:
            for line in model.queues:
                for waiting in line.remove_all():
                    self._fail(waiting, failures.lost(model) if waiting.stream.begun else failures.not_ready(model))
            return
        if model.suspects:
            self._try_suspects(model)
        for line in (model.slotless_queue, model.queue):
            while (found := model.next_job(line, self._limits.light_jobs)) is not None:
                flight, worker = found
                line.take_job(flight)
                if not self._send(flight, worker):
                    line.push_front(flight, flight.queued_at)

    def expire_waiting(self, model: ModelState) -> None:
        """Fail who has waited too long."""
        now = self._clock()
        for line in model.queues:
            for flight in line.find_expired(now):
                line.remove(flight)
                self._fail(flight, failures.lost(model) if flight.stream.begun else failures.too_late())

    def send_message(self, worker: WorkerState, message: ToWorker) -> None:
        """Send one message; a worker that can't take it is not sent to again."""
        if not self._line.send_frame(worker.identity, encode([message], epoch=self._epoch)):
            worker.suspect = True

    # -- inside ------------------------------------------------------------

    def _send(self, flight: JobState, worker: WorkerState) -> bool:
        """Put a queued flight aboard; False if the worker turned out to be gone."""
        now = self._clock()
        job: Job = msgspec.structs.replace(flight.job, job=flight.id, attempt=flight.attempt)
        if isinstance(job, GenerateJob) and flight.attempt > 1:
            job = msgspec.structs.replace(job, delivered=flight.stream.delivered)
        try:
            frame = encode([job], epoch=self._epoch)
        except (ValueError, OverflowError, TypeError) as error:
            # Half a surrogate pair, an integer beyond 64 bits: this request's fault alone, it must not stop the line.
            log.warning("a job that can't be encoded: %s", error)
            self._fail(flight, JobFailed(Code.INVALID_REQUEST, "The request holds a value that can't be passed on."))
            return True
        if len(frame) > MAX_FRAME_BYTES:
            self._fail(flight, JobFailed(Code.INVALID_REQUEST, "The request is too large."))
            return True
        if not self._line.send_frame(worker.identity, frame, flight.buffers):
            worker.suspect = True
            return False
        self._stats.count_sent(flight, now)
        self._stats.continued += flight.attempt > 1
        flight.model.affinity.record_prompt(flight.keys, worker.uid)
        self.ledger.assign_job(flight, worker, now)
        return True

    def _conclude(self, flight: JobState, worker: WorkerState, terminal: Terminal) -> None:
        match terminal, flight.job:
            case (Done(usage=usage), GenerateJob()):
                self._finish(flight, usage)
            case (Vectors() as vectors, EmbedJob()):
                self._finish(flight, vectors)
            case (Tokens() as tokens, TokenizeJob()):
                self._finish(flight, tokens)
            case (Text() as text, DetokenizeJob()):
                self._finish(flight, text)
            case (Scores() as scores, SimilarityJob()):
                self._finish(flight, scores)
            case (Failed() as failed, _):
                self._failed(flight, worker, failed)
            case _:
                self._fail(flight, JobFailed(Code.ENGINE_ERROR, f"answered with {type(terminal).__name__}"))

    def _room(self, flight: JobState) -> bool:
        return flight.model.select_worker(flight, self._limits.light_jobs) is not None

    def _displace(self, newcomer: JobState) -> bool:
        """Give a full line's last place to a caller that holds fewer, at the cost of one that holds many."""
        line = newcomer.model.queue_for(newcomer)
        loser = line.eviction_candidate(newcomer)
        if loser is None:
            return False
        line.remove(loser)
        self._fail(loser, failures.queue_full(newcomer.model))
        return True

    def _abandon(self, flight: JobState) -> None:
        """Stop a job that nobody waits for any more."""
        if flight.worker is not None:
            self.send_message(flight.worker, Cancel(flight.id, flight.attempt))
            return
        self.ledger.close_job(flight)
        self._dequeue(flight)
        # The next in line may fit where this one did not.
        self.assign_waiting(flight.model)

    def _failed(self, flight: JobState, worker: WorkerState, failed: Failed) -> None:
        match failed.code:
            case Code.DRAINING:
                # Its beat will say so too, but perhaps after the next job was sent.
                worker.state = State.DRAINING
                self._again(flight)
            case Code.CANCELLED:
                # Nobody asked for it, or the flight would not be open.
                self._again(flight)
            case _:
                failure = JobFailed(failed.code, failed.message, param=failed.param, retryable=failed.retryable)
                self._fail(flight, failure)

    def _again(self, flight: JobState, weight: int = 1) -> None:
        """Queue a job that came back, in front of those that have not had their turn."""
        if not flight.count_return(weight):
            self._fail(flight, failures.lost(flight.model))
            return
        flight.attempt += 1
        flight.stream.progress = None
        # Who has read half an answer waits for the rest of it, but not as long as somebody who queues.
        flight.wait_limit_s = self._limits.resume_s if flight.stream.begun else float("inf")
        flight.model.queue_for(flight).push_front(flight, self._clock())

    def _dequeue(self, flight: JobState) -> None:
        if flight.queue is not None:
            flight.queue.remove(flight)

    def _try_suspects(self, model: ModelState) -> None:
        """Refuse suspects that killed often enough; send the others to workers where they may be tried."""
        now = self._clock()
        while (guilty := self.quarantine.find_guilty(model, now)) is not None:
            model.suspects.remove(guilty)
            self._refuse(guilty)
        for flight in sorted(model.suspects, key=trial_order):
            free = [worker for worker in model.up if self.quarantine.may_start(flight, worker, now)]
            worker = model.select_worker(flight, self._limits.light_jobs, among=free)
            if worker is not None:
                model.suspects.remove(flight)
                if not self._send(flight, worker):
                    model.suspects.push(flight, flight.queued_at)

    def _refuse(self, flight: JobState) -> None:
        self.quarantine.refuse(flight)
        self._fail(flight, failures.crashed())

    def _drop_slow_reader(self, flight: JobState) -> None:
        failure = JobFailed("slow_reader", "The client read too slowly.")
        flight.stream.fail(failure, keep_unread=False)
        self._over(flight, "failed")
        self._abandon(flight)

    def _finish(self, flight: JobState, outcome: Usage | Result) -> None:
        flight.stream.finish(outcome)
        if flight.sent_at is not None and not flight.slotless:
            flight.model.record_duration(self._clock() - flight.sent_at)
        self._over(flight, "done")

    def _fail(self, flight: JobState, failure: JobFailed) -> None:
        if flight.open:
            flight.stream.fail(failure)
            self._over(flight, "failed")
        self.ledger.close_job(flight)

    def _over(self, flight: JobState, outcome: Outcome) -> None:
        flight.outcome = outcome
        # It is not sent again: what a worker is slow to let go of need not keep its images in memory here.
        flight.buffers = ()
        flight.over_at = self._clock()
