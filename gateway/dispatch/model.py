"""A served model as the gateway sees it: its workers, their supervisors, the line in front of it.

Records and the questions one asks of them; who joins and leaves is the roster's business, who goes where the
dispatcher's.
"""

import copy
from collections import Counter, deque
from collections.abc import Iterator, Sequence

import msgspec

from gateway.dispatch.flight import JobState
from gateway.dispatch.jobs.queue import Queue
from gateway.dispatch.prefix_affinity import PrefixAffinity
from protocol.messages import Announce, Beat, Kind, Ready, State, Supervision, Watch

DEFAULT_QUEUE_SIZE = 100
DEFAULT_QUEUE_TIMEOUT_S = 300.0
RESTARTS_S = 600.0
"""How long a restart that nobody asked for is told of."""
LIFE = tuple(State)
PREPARING = frozenset({State.LOADING, State.WARMING})
COMING = frozenset({*PREPARING, State.READY})
RESTARTING = frozenset({Watch.STARTING, Watch.RUNNING, Watch.BACKOFF})


class WorkerState:
    """One engine process, from its `Announce` until it is lost.

    `rows` and `light` are the room its unfinished jobs take, `compiling` what of `rows` belongs to jobs that may still
    wait for a grammar to be compiled, by tenant; `suspect` marks one that could not be sent to and is about to be
    declared lost; `turn` orders equally loaded workers. `moved_at` is when it was last seen to get on, by the proof of
    its phase: progress while it prepares, steps (or nothing to do) once it is ready.
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
        self.suspect = False
        self.turn = 0
        self.rows = 0
        self.light = 0
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
        return self.state is State.READY and self.ready is not None and not self.suspect

    def slots_needed(self, flight: JobState) -> int:
        """The room that `flight` would take here: a job with more choices than slots fills them all."""
        return 0 if flight.slotless else min(max(1, flight.choices), self.slots)

    def has_room(self, flight: JobState, light_jobs: int) -> bool:
        """Whether `flight` may be sent now: one row above the slots, so that a freed slot never waits for us.

        Jobs that wait for their grammars take no step yet: their room is taken from their own tenant alone.
        """
        if flight.slotless:
            return self.light < light_jobs
        others = self.compiling.total() - self.compiling[flight.tenant] if self.compiling else 0
        return self.rows - others + self.slots_needed(flight) <= self.slots + 1


class SupervisorState:
    """The process that watches over one engine process, with the last that it said."""

    def __init__(self, identity: bytes, report: Supervision, now: float) -> None:
        self.identity = identity
        self.report = report
        self.last_seen = now
        self.worked_at = now
        """When its engine process was last seen to work."""
        self.asked = 0
        """How many engines it was asked to start."""
        self.ending = ""
        """The engine that it was told to end, with none to follow; empty once there is none."""

    def take_report(self, report: Supervision, now: float) -> None:
        """Take in what it says now."""
        before, self.report = self.report, report
        if report.work > before.work or report.engine != before.engine:
            self.worked_at = now

    @property
    def leaving(self) -> bool:
        """Whether it ends its engine, or was told to."""
        return self.report.watch is Watch.DRAINING or self.ending == self.report.engine != ""

    @property
    def wanted(self) -> bool:
        """Whether it runs an engine, or is about to, that nobody has told to end."""
        report = self.report
        leaving = report.parked or report.watch is Watch.DRAINING
        return not leaving and (not self.ending or report.engine != self.ending)


class AdapterState(msgspec.Struct, frozen=True):
    """A LoRA adapter that a model's workers have: the tail of the path it came from, further names for it."""

    source: str
    aliases: tuple[str, ...] = ()


class ModelState:
    """One served model, with any number of workers; stays known when it has none.

    With `base` it is but a view: that model under the name of one of its adapters, as it was when it was asked for.
    """

    base: "ModelState | None" = None

    def __init__(self, name: str, kind: Kind, *, created: int, aliases: tuple[str, ...] = ()) -> None:
        self.name = name
        self.kind = kind
        self.source = name
        self.created = created
        self.aliases = aliases
        self.workers: dict[bytes, WorkerState] = {}
        self.supervisors: dict[bytes, SupervisorState] = {}
        self.appeared: list[SupervisorState] = []
        """Those that run an engine since the fleet last looked, and did not before."""
        self.queue = Queue(capacity=DEFAULT_QUEUE_SIZE, timeout_s=DEFAULT_QUEUE_TIMEOUT_S)
        self.slotless_queue = Queue(capacity=DEFAULT_QUEUE_SIZE, timeout_s=DEFAULT_QUEUE_TIMEOUT_S)
        self.suspects = Queue(capacity=DEFAULT_QUEUE_SIZE, timeout_s=DEFAULT_QUEUE_TIMEOUT_S)
        """Jobs that may be what an engine died of: tried one at a time, before all others."""
        self.job_s = 1.0
        """How long a job takes, averaged over the recent ones."""
        self.ready: Ready | None = None
        """What its workers last said of it once they were warm; stays while they are away."""
        self.settling = False
        """Whether the gateway has only just started, so that more peers may be about to register."""
        self.affinity = PrefixAffinity()
        self.adapters: dict[str, AdapterState] = {}
        """By the name that clients use; stay known as the model does."""
        self.offered: dict[str, str] = {}
        """All that its workers announced, each with the tail of its path, whether its name is free or not."""
        self.restarts: deque[tuple[float, str]] = deque(maxlen=1000)
        """When an engine was started again that had ended unasked, and how that one had ended."""
        self.unserved: dict[str, str] = {}
        """Those that no request can mean, each with the reason."""
        self._turns = 0

    def adapter_view(self, name: str) -> "ModelState":
        """The model with one of its adapters."""
        view = copy.copy(self)
        # Who may use the model by its hub id may not, by that, use its adapters.
        view.name = view.source = name
        view.base, view.aliases, view.adapters = self, self.adapters[name].aliases, {}
        return view

    @property
    def variants(self) -> "list[ModelState]":
        """All that clients may ask for: the bare model, and it with each of its adapters."""
        return [self, *map(self.adapter_view, sorted(self.adapters))]

    @property
    def present(self) -> bool:
        """Whether anybody is here for it: a worker, or a supervisor that may start one."""
        return bool(self.workers or self.supervisors)

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
        """The best state of any worker; without one, what a supervisor does about it; else `lost`."""
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
        return "lost"

    def count_restarts(self, before: Supervision, report: Supervision, now: float) -> None:
        """Note the restarts that a supervisor tells of, but for those that it was asked for."""
        if report.ended:
            self.restarts.extend([(now, report.ended)] * (report.restarts - before.restarts))

    def forget_restarts(self, now: float) -> None:
        """Leave out those of long ago."""
        while self.restarts and now - self.restarts[0][0] > RESTARTS_S:
            self.restarts.popleft()

    @property
    def reason(self) -> str | None:
        """What is wrong with its engines, whatever its state: that they are started again and again."""
        if len(self.restarts) < 2:
            return None
        times, minutes = len(self.restarts), RESTARTS_S / 60
        return f"restarted {times} times in {minutes:.0f} minutes: {self.restarts[-1][1]}"

    @property
    def may_become_ready(self) -> bool:
        """Whether waiting for it makes sense: a worker is up or coming, or somebody may start one."""
        return (
            self.settling
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
    def queues(self) -> tuple[Queue, Queue, Queue]:
        """All queues, in the order in which they are served."""
        return self.suspects, self.slotless_queue, self.queue

    @property
    def in_flight(self) -> Iterator[JobState]:
        """All jobs at workers."""
        return (flight for worker in self.workers.values() for flight in worker.in_flight.values())

    def queue_for(self, flight: JobState) -> Queue:
        """The queue in which `flight` waits: light jobs never wait behind generations, nor anybody behind suspects."""
        if flight.suspect:
            return self.suspects
        return self.slotless_queue if flight.slotless else self.queue

    def select_worker(
        self, flight: JobState, light_jobs: int, *, among: Sequence[WorkerState] | None = None
    ) -> WorkerState | None:
        """Return the least loaded worker that has room, taking turns among equals; None if none has.

        One that has computed the beginning of the prompt goes before, unless it is much more loaded.
        """
        room = [worker for worker in (self.up if among is None else among) if worker.has_room(flight, light_jobs)]
        if not room:
            return None
        worker = min(room, key=lambda worker: (worker.light if flight.slotless else worker.rows, worker.turn))
        if flight.keys and len(room) > 1:
            uid = self.affinity.find_holder(flight.keys, {found.uid for found in room})
            holder = next((found for found in room if found.uid == uid), worker)
            # A cached prefix is worth some waiting for slots, but not a crowd at one worker while another idles.
            if holder.rows - worker.rows <= max(2, holder.slots // 4):
                worker = holder
        self._turns += 1
        worker.turn = self._turns
        return worker

    def next_job(self, line: Queue, light_jobs: int) -> tuple[JobState, WorkerState] | None:
        """Return who of a line is to be sent now, and where to; None if nobody can be.

        Where there is room, but not for the tenant whose turn it is (its jobs wait for their grammars), others pass.
        """
        for flight in line.in_turn():
            worker = self.select_worker(flight, light_jobs)
            if worker is not None:
                return flight, worker
            if not any(worker.compiling[flight.tenant] for worker in self.up):
                return None
        return None

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
