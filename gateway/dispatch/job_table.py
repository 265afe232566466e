"""The jobs in flight, by id, and the filter that keeps everything else out.

A frame counts only if its job is known, its attempt the current one, and its sender the worker that has it.
"""

from collections.abc import Sequence

from gateway.dispatch.flight import Attempt, JobState
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.model import ModelState, WorkerState
from protocol.messages import GenerateJob, Job


class JobTable:
    """All flights that are queued, running, or leaving; `stale` counts the frames that were for none of them."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobState] = {}
        self.stale = 0
        self._last = 0

    def open_job(
        self, model: ModelState, job: Job, stream: JobStream, now: float, buffers: Sequence[bytes] = ()
    ) -> JobState:
        """Enter a new job under an id of its own."""
        self._last += 1
        flight = JobState(self._last, model, job, stream, now, buffers)
        self.jobs[flight.id] = flight
        return flight

    def find_job(self, worker: WorkerState, job: int, attempt: int) -> JobState | None:
        """Return the flight that such a frame from `worker` belongs to; None, and counted, if it is stale."""
        flight = self.jobs.get(job)
        if flight is None or flight.attempt != attempt or flight.worker is not worker:
            self.stale += 1
            return None
        return flight

    def assign_job(self, flight: JobState, worker: WorkerState, now: float) -> None:
        """Put a flight aboard a worker, where it takes its room."""
        flight.worker = worker
        # Speeds and durations of a job that is resumed count from its first attempt.
        flight.sent_at = flight.sent_at or now
        flight.boarded_at = now
        flight.begun = False
        flight.attempts.append(Attempt(worker.uid, worker.announce.pid, flight.queued_at, now))
        flight.trial_began_at = None
        flight.rows = worker.slots_needed(flight)
        worker.in_flight[flight.id] = flight
        worker.rows += flight.rows
        worker.light += flight.slotless
        flight.compiling = isinstance(flight.job, GenerateJob) and flight.job.ruled
        if flight.compiling:
            worker.compiling[flight.tenant] += flight.rows

    def mark_begun(self, flight: JobState) -> None:
        """A flight that is aboard waits for no grammar any more: from now on its room is taken from everybody."""
        if flight.compiling and flight.worker is not None:
            compiling = flight.worker.compiling
            compiling[flight.tenant] -= flight.rows
            if not compiling[flight.tenant]:
                del compiling[flight.tenant]
        flight.compiling = False

    def release_job(self, flight: JobState) -> None:
        """Take a flight off its worker, if it has one, and give the room back."""
        self.mark_begun(flight)
        worker, flight.worker = flight.worker, None
        if worker is None:
            return
        del worker.in_flight[flight.id]
        worker.rows -= flight.rows
        worker.light -= flight.slotless
        flight.rows = 0

    def close_job(self, flight: JobState) -> None:
        """Forget a flight; whatever still comes for it is stale."""
        self.release_job(flight)
        self.jobs.pop(flight.id, None)
        on_closed, flight.on_closed = flight.on_closed, None
        if on_closed is not None:
            on_closed()
        flight.stream.close_stream()
