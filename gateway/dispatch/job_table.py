"""The jobs in job, by id, and the filter that keeps everything else out.

A frame counts only if its job is known, its attempt the current one, and its sender the worker that has it.
"""

from collections.abc import Sequence

from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.state import Attempt, JobState, ModelState, WorkerState
from protocol.messages import GenerateJob, Job


class JobTable:
    """All jobs that are queued, running, or leaving; `stale` counts the frames that were for none of them."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobState] = {}
        self.stale = 0
        self._last = 0

    def open_job(
        self, model: ModelState, message: Job, stream: JobStream, now: float, buffers: Sequence[bytes] = ()
    ) -> JobState:
        """Enter a new job under an id of its own."""
        self._last += 1
        job = JobState(self._last, model, message, stream, now, buffers)
        self.jobs[job.id] = job
        return job

    def find_job(self, worker: WorkerState, job_id: int, attempt: int) -> JobState | None:
        """Return the job that such a frame from `worker` belongs to; None, and counted, if it is stale."""
        job = self.jobs.get(job_id)
        if job is None or job.attempt != attempt or job.worker is not worker:
            self.stale += 1
            return None
        return job

    def assign_job(self, job: JobState, worker: WorkerState, now: float) -> None:
        """Give a job to a worker, where it takes its room."""
        job.worker = worker
        # Speeds and durations of a job that is resumed count from its first attempt.
        job.sent_at = job.sent_at or now
        job.assigned_at = now
        job.begun = False
        job.attempts.append(Attempt(worker.uid, worker.announce.pid, job.queued_at, now))
        job.trial_began_at = None
        job.rows = worker.slots_needed(job)
        worker.in_flight[job.id] = job
        worker.rows += job.rows
        worker.slotless += job.slotless
        job.compiling = isinstance(job.message, GenerateJob) and job.message.constrained
        if job.compiling:
            worker.compiling[job.tenant] += job.rows

    def mark_begun(self, job: JobState) -> None:
        """Note that a job waits for no grammar any more: from now on its room is taken from everybody."""
        if job.compiling and job.worker is not None:
            compiling = job.worker.compiling
            compiling[job.tenant] -= job.rows
            if not compiling[job.tenant]:
                del compiling[job.tenant]
        job.compiling = False

    def release_job(self, job: JobState) -> None:
        """Take a job off its worker, if it has one, and give the room back."""
        self.mark_begun(job)
        worker, job.worker = job.worker, None
        if worker is None:
            return
        del worker.in_flight[job.id]
        worker.rows -= job.rows
        worker.slotless -= job.slotless
        job.rows = 0

    def close_job(self, job: JobState) -> None:
        """Forget a job; whatever still comes for it is stale."""
        self.release_job(job)
        self.jobs.pop(job.id, None)
        on_closed, job.on_closed = job.on_closed, None
        if on_closed is not None:
            on_closed()
        job.stream.close_stream()
