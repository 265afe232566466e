"""One job in flight: where it is, which attempt this is, who listens. A record; the dispatcher moves it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from gateway.dispatch.crash_record import CrashRecord
from gateway.dispatch.jobs.stream import JobStream
from protocol.messages import EmbedJob, GenerateJob, Job

if TYPE_CHECKING:
    from gateway.dispatch.jobs.queue import Queue
    from gateway.dispatch.model import ModelState, WorkerState


MAX_RETURNS = 24
"""However often its workers left without fault of its own, a job that gets no further is not sent again. Where a busy
machine's engines live for a second or two, a job comes back ten times before its next token."""
UNBEGUN = 6
"""As so many returns counts one from an engine that was killed before the job had begun there. That is not held against
it; but what stops engines while it is prepared never begins, and must not stop them for ever."""

Outcome = Literal["done", "failed", "cancelled"]


class Attempt(NamedTuple):
    """One attempt at a job: which worker it went to, how long it had waited for it. Seconds of the pool's clock."""

    worker: str
    pid: int
    queued_at: float
    boarded_at: float


class JobState:
    """A job from the moment it is asked for until its slot is free again.

    `buffers` are the raw frames that go with the job. `worker` is None while it queues. It is `open` until its client
    has its answer, or has left: then `outcome` and `over_at` are set, but it may still hold its slot until the worker
    says that it has stopped.

    `keys` are those of its prompt's beginnings (see `affinity`). `begun`: the worker that has it has said so.
    `compiling`: it is aboard, and may still wait there for its grammar.

    A job that lost its worker goes on elsewhere: `attempts_without_progress` counts how often it came back without
    having got any further than `reached` tokens, `wait_limit_s` is how long its client will be kept waiting,
    `crash_record` says whether it may be what ended the worker. `attempts` are those so far; `trial_began_at` is when
    the present one brought output, for a job with a record. `on_closed` is called once the job is forgotten, where
    that is later than its request's end.
    """

    __slots__ = (
        "attempt",
        "attempts",
        "attempts_without_progress",
        "began_at",
        "begun",
        "boarded_at",
        "buffers",
        "compiling",
        "crash_record",
        "id",
        "job",
        "keys",
        "model",
        "on_closed",
        "outcome",
        "output_at",
        "over_at",
        "queue",
        "queued_at",
        "reached",
        "rows",
        "sent_at",
        "slotless",
        "stream",
        "trial_began_at",
        "wait_limit_s",
        "worker",
    )

    def __init__(
        self,
        flight_id: int,
        model: "ModelState",
        job: Job,
        stream: JobStream,
        now: float,
        buffers: Sequence[bytes] = (),
    ) -> None:
        self.id = flight_id
        self.attempt = 1
        self.model = model
        self.job = job
        self.buffers = buffers
        self.stream = stream
        self.slotless = not isinstance(job, GenerateJob | EmbedJob)
        self.worker: WorkerState | None = None
        self.rows = 0
        self.begun = False
        self.compiling = False
        self.keys: list[int] = []
        self.queue: Queue | None = None
        self.attempts_without_progress = 0
        self.reached = 0
        self.wait_limit_s = float("inf")
        self.crash_record: CrashRecord | None = None
        self.trial_began_at: float | None = None
        self.outcome: Outcome | None = None
        self.began_at = now
        self.queued_at = now
        self.sent_at: float | None = None
        self.boarded_at = now
        self.output_at: float | None = None
        self.attempts: list[Attempt] = []
        self.over_at = now
        self.on_closed: Callable[[], None] | None = None

    @property
    def open(self) -> bool:
        """Whether its client still waits for something."""
        return self.outcome is None

    @property
    def name(self) -> str:
        """What its client calls the model: that, or one of its adapters."""
        return (self.job.adapter if isinstance(self.job, GenerateJob) else "") or self.model.name

    @property
    def tenant(self) -> str:
        """Whose it is; callers take turns."""
        return self.job.tenant

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return self.job.priority if isinstance(self.job, GenerateJob) else 0

    @property
    def suspect(self) -> bool:
        """Whether an engine died while an equal job ran, and nothing since has cleared it."""
        return self.crash_record is not None and self.crash_record.deaths > 0

    @property
    def choices(self) -> int:
        """How many rows the job asks for."""
        return self.job.n if isinstance(self.job, GenerateJob) else 1

    def count_return(self, weight: int) -> bool:
        """Note that it came back from a worker; returns whether it may be sent again."""
        reached = self.stream.reached
        self.attempts_without_progress = weight if reached > self.reached else self.attempts_without_progress + weight
        self.reached = reached
        return self.attempts_without_progress <= MAX_RETURNS
