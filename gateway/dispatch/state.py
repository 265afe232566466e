"""Records of what the dispatcher knows: jobs, workers, their supervisors, and models with the queues before them.

Records and the questions one asks of them. Who joins and leaves is the registry's business, who goes where the
dispatcher's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from gateway.dispatch.crash_record import CrashRecord
from gateway.dispatch.jobs.fair_queue import FairQueue
from gateway.dispatch.jobs.outcome import Outcome
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.prefix_affinity import PrefixAffinity
from gateway.dispatch.workers.restart_log import RestartLog
from gateway.dispatch.workers.supervisor_state import SupervisorState
from protocol.messages import Announce, Beat, EmbedJob, GenerateJob, Job, Kind, Ready, State, Watch

DEFAULT_QUEUE_SIZE = 100
DEFAULT_QUEUE_TIMEOUT_S = 300.0
LIFE = tuple(State)
PREPARING = frozenset({State.LOADING, State.WARMING})
COMING = frozenset({*PREPARING, State.READY})
RESTARTING = frozenset({Watch.STARTING, Watch.RUNNING, Watch.BACKOFF})
MAX_ATTEMPTS_WITHOUT_PROGRESS = 24
"""However often its workers left without fault of its own, a job that gets no further is not sent again. Where a busy
machine's engines live for a second or two, a job comes back ten times before its next token."""
UNBEGUN = 6
"""As so many returns counts one from an engine that was killed before the job began: what stops engines while it is
prepared never begins, and must not stop them for ever."""


class Attempt(NamedTuple):
    """One attempt at a job: which worker it went to, and when. Seconds of the pool's clock."""

    worker: str
    pid: int
    queued_at: float
    assigned_at: float


class JobState:
    """A job from the moment it is asked for until its slot is free again.

    `message` is what is sent, `buffers` are the raw frames that go with it. `worker` is None while it queues. It is
    `open` until its client has its answer, or has left: then `outcome` and `over_at` are set, but it may still hold its
    slot until the worker says that it has stopped. `keys` are those of its prompt's beginnings (see `prefix_affinity`).
    `begun`: its worker has said so. `compiling`: it may still wait there for its grammar.

    A job that lost its worker goes on elsewhere. `attempts_without_progress` counts how often it came back without
    having got beyond `reached` tokens. `wait_limit_s` is how long its client will be kept waiting. `crash_record` says
    whether it may be what ended the worker, `trial_began_at` when it brought output since. `on_closed` is called once
    the job is forgotten, where that is later than its request's end.
    """

    __slots__ = (
        "assigned_at",
        "attempt",
        "attempts",
        "attempts_without_progress",
        "began_at",
        "begun",
        "buffers",
        "compiling",
        "crash_record",
        "id",
        "keys",
        "message",
        "model",
        "on_closed",
        "outcome",
        "output_at",
        "over_at",
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
        job_id: int,
        model: "ModelState",
        message: Job,
        stream: JobStream,
        now: float,
        buffers: Sequence[bytes] = (),
    ) -> None:
        self.id = job_id
        self.attempt = 1
        self.model = model
        self.message = message
        self.buffers = buffers
        self.stream = stream
        self.slotless = not isinstance(message, GenerateJob | EmbedJob)
        self.worker: WorkerState | None = None
        self.rows = self.attempts_without_progress = self.reached = 0
        self.begun = self.compiling = False
        self.keys: list[int] = []
        self.wait_limit_s = float("inf")
        self.crash_record: CrashRecord | None = None
        self.trial_began_at: float | None = None
        self.outcome: Outcome | None = None
        self.began_at = self.queued_at = self.assigned_at = self.over_at = now
        self.sent_at: float | None = None
        self.output_at: float | None = None
        self.attempts: list[Attempt] = []
        self.on_closed: Callable[[], None] | None = None

    @property
    def open(self) -> bool:
        """Whether its client still waits for something."""
        return self.outcome is None

    @property
    def name(self) -> str:
        """What its client calls the model: that, or one of its adapters."""
        return (self.message.adapter if isinstance(self.message, GenerateJob) else "") or self.model.name

    @property
    def tenant(self) -> str:
        """Whose it is; callers take turns."""
        return self.message.tenant

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return self.message.priority if isinstance(self.message, GenerateJob) else 0

    @property
    def suspect(self) -> bool:
        """Whether an engine died while an equal job ran, and nothing since has cleared it."""
        return self.crash_record is not None and self.crash_record.deaths > 0

    @property
    def choices(self) -> int:
        """How many rows the job asks for."""
        return self.message.n if isinstance(self.message, GenerateJob) else 1

    def count_return(self, weight: int) -> bool:
        """Note that it came back from a worker; returns whether it may be sent again."""
        reached = self.stream.reached
        self.attempts_without_progress = weight if reached > self.reached else self.attempts_without_progress + weight
        self.reached = reached
        return self.attempts_without_progress <= MAX_ATTEMPTS_WITHOUT_PROGRESS


class WorkerState:
    """One engine process, from its `Announce` until it is lost.

    `rows` and `slotless` are the room its unfinished jobs take, `compiling` what of `rows` belongs to jobs that may
    still wait for a grammar, by tenant. `unreachable` marks one that could not be sent to and is about to be declared
    lost. `turn` orders equally loaded workers. `moved_at` is when it was last seen to get on, by the proof of its
    phase: progress while it prepares, steps (or nothing to do) once it is ready.
    """

    def __init__(self, identity: bytes, announce: Announce, model: "ModelState", now: float) -> None:
        self.identity = identity
        self.uid = announce.worker
        self.model = model
        self.announce = announce
        self.state = announce.state
        self.ready: Ready | None = None
        self.beat: Beat | None = None
        self.last_seen = self.up_at = self.moved_at = now
        self.unreachable = False
        self.turn = 0
        self.rows = 0
        self.slotless = 0
        self.compiling: Counter[str] = Counter()
        self.in_flight: dict[int, JobState] = {}

    def advance_to(self, state: State, now: float) -> None:
        """Take in how far its life is. That only goes forward: what comes from before it knew of an order is late."""
        if LIFE.index(state) > LIFE.index(self.state):
            self.state = state
            self.moved_at = now

    def take_beat(self, beat: Beat, now: float) -> None:
        """Take in a beat. How long it says that nothing moved counts no further back than what was seen here."""
        before, self.beat = self.beat, beat
        if before is None:
            moved = True
        elif beat.state in PREPARING:
            # 0: an older worker, which can't say.
            moved = beat.progress != before.progress or beat.progress == 0
        else:
            moved = beat.step != before.step or not (before.busy and beat.busy)
        if moved:
            self.moved_at = now
        self.advance_to(beat.state, now)

    @property
    def preparing(self) -> bool:
        """Whether it does not serve yet."""
        return self.state in PREPARING

    @property
    def slots(self) -> int:
        """Rows that it steps together."""
        return max(1, self.announce.slots)

    @property
    def up(self) -> bool:
        """Whether it takes jobs."""
        return self.state is State.READY and self.ready is not None and not self.unreachable

    def slots_needed(self, job: JobState) -> int:
        """Return the room that `job` would take here: with more choices than slots it fills them all."""
        return 0 if job.slotless else min(max(1, job.choices), self.slots)


class AdapterState(msgspec.Struct, frozen=True):
    """A LoRA adapter that a model's workers have: the tail of the path it came from, further names for it."""

    source: str
    aliases: tuple[str, ...] = ()


class ModelState:
    """One served model, with any number of workers; stays known when it has none."""

    base: "ModelState | None" = None
    """The model that this one is an adapter of."""

    def __init__(self, name: str, kind: Kind, *, created: int, aliases: tuple[str, ...] = ()) -> None:
        self.name = name
        self.kind = kind
        self.source = name
        self.created = created
        self.aliases = aliases
        self.workers: dict[bytes, WorkerState] = {}
        self.supervisors: dict[bytes, SupervisorState] = {}
        self.wanted: int | None = None
        """How many engines were asked for; None once supervisors report as many."""
        self.starting: list[tuple[bytes, float]] = []  # whom engines were asked of that show in no report yet; when
        self.queue = FairQueue[JobState](capacity=DEFAULT_QUEUE_SIZE, timeout_s=DEFAULT_QUEUE_TIMEOUT_S)
        self.slotless_queue = FairQueue[JobState](capacity=DEFAULT_QUEUE_SIZE, timeout_s=DEFAULT_QUEUE_TIMEOUT_S)
        self.suspects = FairQueue[JobState](capacity=DEFAULT_QUEUE_SIZE, timeout_s=DEFAULT_QUEUE_TIMEOUT_S)
        self.job_s = 1.0
        """How long a job takes, averaged over the recent ones."""
        self.ready: Ready | None = None
        """What its workers last said of it once they were warm; stays while they are away."""
        self.retired = False
        """Whether the last supervisor of it left because it was told to."""
        self.in_startup_grace = False
        """Whether the gateway has only just started, so that more peers may be about to register."""
        self.affinity = PrefixAffinity()
        self.adapters: dict[str, AdapterState] = {}
        """By the name that clients use; stay known as the model does."""
        self.offered: dict[str, str] = {}
        """All that its workers announced, each with the tail of its path, whether its name is free or not."""
        self.restarts = RestartLog()
        self.unserved: dict[str, str] = {}
        """Those that no request can mean, each with the reason."""
        self.turns = 0

    @property
    def variants(self) -> "list[ModelState]":
        """The bare model, and it with each of its adapters."""
        return [self, *(AdapterView(self, name) for name in sorted(self.adapters))]

    @property
    def present(self) -> bool:
        """Whether anybody is here for it: a worker, or a supervisor that may start one."""
        return bool(self.workers or self.supervisors)

    @property
    def expected(self) -> bool:
        """Whether it should be up: not where its engines were ended on purpose, or its supervisors told to leave."""
        if self.supervisors and self.wanted is not None:
            return self.wanted > 0
        if self.supervisors:
            return not all(supervisor.stopped for supervisor in self.supervisors.values())
        return bool(self.workers) or not self.retired

    @property
    def up(self) -> list[WorkerState]:
        """Workers that take jobs."""
        return [worker for worker in self.workers.values() if worker.up]

    @property
    def replicas(self) -> int:
        """How many workers take jobs."""
        return len(self.up)

    @property
    def slots(self) -> int:
        """Rows that all ready workers step together."""
        return sum(worker.slots for worker in self.up)

    @property
    def state(self) -> str:
        """The best state of any worker; without one, what a supervisor does about it; else `retired` or `lost`."""
        if self.up:
            return State.READY.value
        states = {worker.state for worker in self.workers.values()}
        # A worker that calls itself ready before its `Ready` came is all but there.
        for state in (State.READY, State.WARMING, State.LOADING, State.DRAINING):
            if state in states:
                return State.WARMING.value if state is State.READY else state.value
        reports = [supervisor.report for supervisor in self.supervisors.values()]
        if reports and all(report.parked for report in reports):
            return "stopped"
        watches = {report.watch for report in reports}
        for watch in (Watch.RUNNING, Watch.STARTING, Watch.BACKOFF, Watch.DRAINING, Watch.CRASH_LOOP):
            if watch in watches:
                return Watch.STARTING.value if watch is Watch.RUNNING else watch.value
        return "retired" if self.retired else "lost"

    @property
    def may_become_ready(self) -> bool:
        """Whether waiting for it makes sense: a worker is up or coming, or somebody may start one."""
        return (
            self.in_startup_grace
            or any(worker.state in COMING for worker in self.workers.values())
            or any(supervisor.report.watch in RESTARTING for supervisor in self.supervisors.values())
        )

    @property
    def retry_after_s(self) -> float:
        """When asking again makes sense, by the length of the line and the time that jobs take. 1 to 120 s."""
        if not self.may_become_ready:
            return min(120.0, max([5.0, *(supervisor.report.delay_s for supervisor in self.supervisors.values())]))
        return min(120.0, max(1.0, (len(self.queue) + 1) * self.job_s / max(1, self.slots)))

    @property
    def queues(self) -> tuple[FairQueue[JobState], ...]:
        """All queues, in the order in which they are served."""
        return self.suspects, self.slotless_queue, self.queue

    @property
    def in_flight(self) -> Iterator[JobState]:
        """All jobs at workers."""
        return (job for worker in self.workers.values() for job in worker.in_flight.values())

    def queue_for(self, job: JobState) -> FairQueue[JobState]:
        """Return where a job waits: without a slot never behind generations, and nobody behind suspects."""
        if job.suspect:
            return self.suspects
        return self.slotless_queue if job.slotless else self.queue

    def resize_queues(self) -> None:
        """Take the queue's bounds from the workers: the largest that any of them announces."""
        announces = [worker.announce for worker in self.workers.values()]
        if not announces:
            return
        capacity = max(0, *(announce.queue_size for announce in announces))
        # Not a number, or negative: as good as none given.
        timeouts = [announce.queue_timeout_s for announce in announces if announce.queue_timeout_s > 0]
        timeout_s = max(timeouts, default=DEFAULT_QUEUE_TIMEOUT_S)
        for queue in self.queues:
            queue.capacity, queue.timeout_s = capacity, timeout_s

    def record_duration(self, job_s: float) -> None:
        """Learn how long a job took."""
        self.job_s += 0.2 * (job_s - self.job_s)


class AdapterView(ModelState):
    """A model under the name of one of its adapters; all else is as the model has it."""

    def __init__(self, base: ModelState, name: str) -> None:
        self.base = base
        # Who may use the model by its hub id may not, by that, use its adapters.
        self.name = self.source = name
        self.aliases = base.adapters[name].aliases
        self.adapters = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self.base, name)
