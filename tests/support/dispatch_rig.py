"""The dispatcher without a socket or a clock: frames go in by hand, what would be sent is looked at."""

from collections.abc import Callable, Sequence

import msgspec

from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.receiver import Receiver
from gateway.dispatch.state import JobState, ModelState, WorkerState
from gateway.dispatch.stats import PoolStats
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.dispatch.workers.liveness import Liveness
from gateway.dispatch.workers.registry import Registry
from protocol.codec import decode_to_worker, encode
from protocol.messages import (
    Accepted,
    Announce,
    Delta,
    Done,
    GenerateJob,
    Job,
    Kind,
    Ready,
    Sampling,
    State,
    Supervision,
    TextPrompt,
    ToGateway,
    ToWorker,
    Usage,
    Watch,
)

EPOCH = 7


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Line:
    """Remembers what was sent; peers in `dead` take nothing."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, list[ToWorker]]] = []
        self.dead: set[bytes] = set()
        self.buffers: list[Sequence[bytes]] = []

    def send_frame(self, identity: bytes, frame: bytes, buffers: Sequence[bytes] = ()) -> bool:
        if identity in self.dead:
            return False
        self.buffers.append(buffers)
        self.sent.append((identity, decode_to_worker(frame).messages))
        return True


def generate(**changes: object) -> GenerateJob:
    """A small job as a route would make it."""
    job = GenerateJob(0, 0, "request", "tenant", TextPrompt("hello"), Sampling(1))
    return msgspec.structs.replace(job, **changes)


def announcement(uid: str = "w1", model: str = "m", **changes: object) -> Announce:
    """A ready chat worker with two slots."""
    announce = Announce(uid, model, f"org/{model}", Kind.CHAT, State.READY, 1, 2, 100, 300.0, 5)
    return msgspec.structs.replace(announce, **changes)


def readiness(**changes: object) -> Ready:
    """What a small model says once it is up."""
    return msgspec.structs.replace(Ready(512, 100, "qwen3", "", [], [], 1, 0.1, True, 0.1), **changes)


def supervision(engine: str = "w1", model: str = "m", watch: Watch = Watch.RUNNING, **changes: object) -> Supervision:
    """The report of a supervisor whose engine runs."""
    report = Supervision(model, Kind.CHAT, watch, 2, engine=engine, engine_pid=3)
    return msgspec.structs.replace(report, **changes)


class Rig:
    """Everything of the pool but its socket and its tasks."""

    def __init__(
        self,
        limits: PoolTimeouts | None = None,
        aliases: dict[str, str] | None = None,
        *,
        clock: Clock | None = None,
        told: Callable[[JobState], None] | None = None,
    ) -> None:
        limits = limits or PoolTimeouts()
        self.clock = clock or Clock()
        self.line = Line()
        self.stats = PoolStats(told)
        self.registry = Registry(aliases=aliases or {}, wall=lambda: 42.0)
        self.dispatcher = Dispatcher(
            epoch=EPOCH, transport=self.line, clock=self.clock, limits=limits, stats=self.stats
        )
        self.receiver = Receiver(
            epoch=EPOCH,
            pid=1,
            transport=self.line,
            clock=self.clock,
            limits=limits,
            registry=self.registry,
            dispatcher=self.dispatcher,
            stats=self.stats,
        )
        self.liveness = Liveness(self.registry, limits, self.clock())
        self._asked = 0

    def feed(self, identity: bytes, *messages: ToGateway, epoch: int = EPOCH) -> None:
        """A peer sends one envelope."""
        self.receiver.on_frame(identity, [encode(messages, epoch=epoch)])

    def join(self, uid: str = "w1", model: str = "m", *, ready: bool = True, **changes: object) -> WorkerState:
        """A worker registers; its identity is its uid."""
        identity = uid.encode()
        self.feed(identity, announcement(uid, model, **changes), *([readiness()] if ready else []))
        return self.registry.workers[identity]

    def supervise(self, report: Supervision, identity: bytes = b"sup") -> None:
        """A supervisor reports."""
        self.feed(identity, report)

    @property
    def model(self) -> ModelState:
        return self.registry.models["m"]

    def submit(
        self, job: Job | None = None, model: ModelState | None = None, buffers: Sequence[bytes] = ()
    ) -> JobState:
        """A handler asks for a job; unless given, one that nobody has asked for before."""
        if job is None:
            self._asked += 1
            job = generate(prompt=TextPrompt(f"hello {self._asked}"))
        stream = JobStream(job.n if isinstance(job, GenerateJob) else 1)
        return self.dispatcher.submit_job(model or self.model, job, stream, buffers)

    def sent(self, kind: type | None = None) -> list[tuple[str, ToWorker]]:
        """What was sent since the last look: (worker uid, message)."""
        sent = [
            (identity.decode(), message)
            for identity, messages in self.line.sent
            for message in messages
            if kind is None or isinstance(message, kind)
        ]
        self.line.sent.clear()
        return sent

    def accept(self, flight: JobState) -> None:
        """Its worker takes the job."""
        assert flight.worker is not None
        self.feed(flight.worker.identity, Accepted(flight.id, flight.attempt, 3))

    def output(self, flight: JobState, text: str = "x", **changes: object) -> None:
        """Its worker generates one token."""
        assert flight.worker is not None
        delta = Delta(flight.id, flight.attempt, 0, [1], text)
        self.feed(flight.worker.identity, msgspec.structs.replace(delta, **changes))

    def done(self, flight: JobState) -> None:
        """Its worker is done with the job."""
        assert flight.worker is not None
        self.feed(flight.worker.identity, Done(flight.id, flight.attempt, Usage(3, 1)))

    def lose(self, worker: WorkerState) -> None:
        """Its connection goes."""
        self.receiver.on_gone(worker.identity, frozen=False)

    def lose_supervisor(self) -> None:
        """The supervisor's connection breaks, and it is not heard of again."""
        self.receiver.on_gone(b"sup", frozen=False)
        self.clock.now += 2.1
        for supervisor in self.liveness.silent_supervisors(self.clock()):
            self.receiver.remove_supervisor(supervisor)


def failure_code(flight: JobState) -> str | None:
    """Why a job failed, without waiting; None if it has not."""
    failure = flight.stream.failure
    return None if failure is None else str(failure.code)
