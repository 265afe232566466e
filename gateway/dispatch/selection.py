"""Which worker a job goes to, and which job of a queue goes next. Pure."""

from collections.abc import Sequence

from gateway.dispatch.jobs.fair_queue import FairQueue
from gateway.dispatch.state import JobState, ModelState, WorkerState


def has_room(worker: WorkerState, job: JobState, slotless_jobs: int) -> bool:
    """Return whether a job may be sent now: one row above the slots, so that a freed slot never waits for us.

    Jobs that wait for their grammars take no step yet: their room is taken from their own tenant alone. Of those
    without a slot, `slotless_jobs` may run at once.
    """
    if job.slotless:
        return worker.slotless < slotless_jobs
    others = worker.compiling.total() - worker.compiling[job.tenant] if worker.compiling else 0
    return worker.rows - others + worker.slots_needed(job) <= worker.slots + 1


def select_worker(
    model: ModelState, job: JobState, slotless_jobs: int, *, among: Sequence[WorkerState] | None = None
) -> WorkerState | None:
    """Return the least loaded worker that has room, taking turns among equals; None if none has.

    One that has computed the beginning of the prompt goes before, unless it is much more loaded.
    """
    room = [worker for worker in (model.up if among is None else among) if has_room(worker, job, slotless_jobs)]
    if not room:
        return None
    worker = min(room, key=lambda worker: (worker.slotless if job.slotless else worker.rows, worker.turn))
    if job.keys and len(room) > 1:
        uid = model.affinity.find_holder(job.keys, {found.uid for found in room})
        holder = next((found for found in room if found.uid == uid), worker)
        # A cached prefix is worth some waiting for slots, but not a crowd at one worker while another idles.
        if holder.rows - worker.rows <= max(2, holder.slots // 4):
            worker = holder
    model.turns += 1
    worker.turn = model.turns
    return worker


def select_job(
    model: ModelState, queue: FairQueue[JobState], slotless_jobs: int
) -> tuple[JobState, WorkerState] | None:
    """Return which job of a queue is to be sent now, and where to; None if none can be.

    Where there is room, but not for the tenant whose turn it is (its jobs wait for their grammars), others pass.
    """
    for job in queue.in_turn():
        worker = select_worker(model, job, slotless_jobs)
        if worker is not None:
            return job, worker
        if not any(worker.compiling[job.tenant] for worker in model.up):
            return None
    return None
