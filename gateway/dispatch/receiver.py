"""Reads what peers send and applies it: registrations to the registry, job frames to the dispatcher.

Nothing a peer sends can raise out of here; what can't be used is counted and logged once per peer.
A peer counts only in the epoch of this gateway: any other is greeted, and its frame ignored.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar, assert_never

from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.state import WorkerState
from gateway.dispatch.stats import PoolStats
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.dispatch.transport import Transport
from gateway.dispatch.workers.registry import Registry
from gateway.dispatch.workers.supervisor_state import SupervisorState
from protocol.codec import BadFrame, decode_to_gateway, encode
from protocol.messages import (
    Accepted,
    Announce,
    Beat,
    Bye,
    Cancel,
    Delta,
    Done,
    Failed,
    Hello,
    KillEngine,
    Progress,
    Ready,
    Scores,
    State,
    Supervision,
    Text,
    ToGateway,
    Tokens,
    Vectors,
    Watch,
)

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

STOPPED = State.STOPPED.value
"""The reason that a worker gives which ends as it was told to."""
REMEMBERED_PEERS = 1024
"""Strangers and lost workers are remembered by name; this bounds how many."""


class Receiver:
    """Frames in, effects on registry and dispatcher out."""

    def __init__(
        self,
        *,
        epoch: int,
        pid: int,
        transport: Transport,
        clock: Callable[[], float],
        limits: PoolTimeouts,
        registry: Registry,
        dispatcher: Dispatcher,
        stats: PoolStats,
    ) -> None:
        self._epoch = epoch
        self._transport = transport
        self._clock = clock
        self._limits = limits
        self._registry = registry
        self._dispatcher = dispatcher
        self._stats = stats
        self._hello = encode([Hello(pid)], epoch=epoch)
        self._greeted: dict[bytes, float] = {}
        self._logged: dict[bytes, float] = {}
        self._orphans: dict[str, list[Cancel]] = {}

    def on_frame(self, identity: bytes, frames: Sequence[bytes]) -> None:
        """Take in one multipart message (frame 0: an envelope)."""
        try:
            envelope = decode_to_gateway(frames[0] if frames else b"")
        except BadFrame as error:
            self._log_once(identity, "bad_frame", str(error))
            return
        now = self._clock()
        if envelope.epoch != self._epoch:
            self._send_hello(identity, now)
            return
        worker = self._registry.workers.get(identity)
        if worker is None:
            self._from_others(identity, envelope.messages, now)
        else:
            worker.last_seen = now
            self._from_worker(worker, envelope.messages)

    def on_gone(self, identity: bytes, *, frozen: bool) -> None:
        """Take in that a peer can't be reached any more; `frozen`: it is still there, but reads nothing."""
        worker = self._registry.workers.get(identity)
        supervisor = self._registry.supervisors.get(identity)
        if worker is not None:
            self.remove_worker(worker, "it reads nothing" if frozen else "its connection is gone", kill=frozen)
        elif supervisor is not None and supervisor.retiring:
            self.remove_supervisor(supervisor)
        elif supervisor is not None:
            # Not for good yet: jobs hope for an engine as long as there is a supervisor, and a connection that
            # was only interrupted is back with its next beat. Its silence will tell.
            grace_s = self._limits.supervisor_grace_s
            supervisor.last_seen = min(supervisor.last_seen, self._clock() - self._limits.beat_timeout_s + grace_s)

    def remove_supervisor(self, supervisor: SupervisorState) -> None:
        """Remove a supervisor that has left, or has been silent for too long."""
        if supervisor.retiring or supervisor.report.parked:
            log.info("supervisor of %s left", supervisor.report.model)
        else:
            log.warning("supervisor of %s lost", supervisor.report.model)
        self._dispatcher.assign_waiting(self._registry.remove_peer(supervisor))

    def remove_worker(self, worker: WorkerState, why: str, *, kill: bool, told: bool = False) -> None:
        """Remove a worker and pass its jobs on; `kill` has its supervisor end a process that may still be there.

        `told`: it left because somebody wanted it to, which is no loss.
        """
        in_flight = [*worker.in_flight.values()]
        supervisor = self._registry.supervisor_of(worker.uid)
        leaving = supervisor is not None and supervisor.leaving
        told = told or leaving or worker.state is State.DRAINING
        log.log(
            logging.INFO if told else logging.WARNING,
            "worker %s of %s %s, %d jobs in flight: %s",
            worker.uid,
            worker.model.name,
            "left" if told else "lost",
            len(in_flight),
            why,
        )
        self._stats.wire["lost_workers"] += 1
        # Should it come back to life, it still works on these.
        _remember(self._orphans, worker.uid, [Cancel(job.id, job.attempt) for job in in_flight])
        model = self._registry.remove_peer(worker)
        if kill and supervisor is not None:
            self.order_kill(supervisor, why)
        # One that was leaving anyway, or has already said that it died, proves nothing against its jobs.
        crashed = worker.state not in (State.DRAINING, State.STOPPED) and not leaving
        # What we end ourselves did not die of a request that it had not begun.
        suspects = [job for job in in_flight if job.begun or not kill] if crashed else None
        self._dispatcher.on_worker_lost(model, in_flight, suspects=suspects)

    def order_kill(self, supervisor: SupervisorState, why: str) -> None:
        """Have a supervisor end its engine process."""
        uid = supervisor.report.engine
        log.warning("the engine process %s of %s is to be killed: %s", uid, supervisor.report.model, why)
        # It gets its full time before it is told again.
        supervisor.worked_at = self._clock()
        self._transport.send_frame(supervisor.identity, encode([KillEngine(uid, why)], epoch=self._epoch))

    # -- inside ------------------------------------------------------------

    def _from_worker(self, worker: WorkerState, messages: Sequence[ToGateway]) -> None:
        on_delta = self._dispatcher.on_delta
        others, room = 0, False
        for message in messages:
            if type(message) is Delta:
                on_delta(worker, message)
            else:
                others += 1
                self._apply(worker, message)
                room = room or not isinstance(message, Accepted | Progress)
        if room:
            self._dispatcher.assign_waiting(worker.model)
        # What one step of an engine brings comes in one frame.
        if rows := len(messages) - others:
            self._stats.steps.count_step(worker.model.name, "decode", rows)

    def _apply(self, worker: WorkerState, message: ToGateway) -> None:
        match message:
            case Delta():
                self._dispatcher.on_delta(worker, message)
            case Accepted() | Progress():
                self._dispatcher.on_progress(worker, message)
            case Done() | Tokens() | Text() | Vectors() | Scores() | Failed():
                self._dispatcher.on_terminal(worker, message)
                if isinstance(message, Vectors) and message.batch_size > 0:
                    self._stats.steps.count_step(worker.model.name, "embed", message.batch_size)
            case Beat():
                worker.take_beat(message, self._clock())
            case Announce():
                if self._registry.register_worker(worker.identity, message, self._clock()) is None:
                    self._log_once(worker.identity, "contradiction", f"{worker.uid} now calls itself {message.worker}")
            case Ready():
                self._registry.mark_ready(worker, message, self._clock())
            case Bye():
                self.remove_worker(
                    worker, f"it left: {message.reason[:200]}", kill=False, told=message.reason == STOPPED
                )
            case Supervision():
                self._log_once(worker.identity, "contradiction", "a worker that reports as a supervisor")
            case _:
                assert_never(message)

    def _from_others(self, identity: bytes, messages: Sequence[ToGateway], now: float) -> None:
        """Take in the first words of a worker, or any of a supervisor."""
        for at, message in enumerate(messages):
            if isinstance(message, Announce):
                worker = self._announced(identity, message, now)
                if worker is not None:
                    self._from_worker(worker, messages[at + 1 :])
                    return
            elif isinstance(message, Supervision):
                self._supervised(identity, message, now)
        if identity not in self._registry.supervisors:
            self._send_hello(identity, now)

    def _announced(self, identity: bytes, announce: Announce, now: float) -> WorkerState | None:
        worker = self._registry.register_worker(identity, announce, now)
        if worker is None:
            self._log_once(identity, "contradiction", f"worker {announce.worker!r} of {announce.model!r} can't join")
            return None
        self._greeted.pop(identity, None)
        for cancel in self._orphans.pop(worker.uid, []):
            self._dispatcher.send_message(worker, cancel)
        return worker

    def _supervised(self, identity: bytes, report: Supervision, now: float) -> None:
        supervisor: SupervisorState | None = self._registry.register_supervisor(identity, report, now)
        if supervisor is None:
            self._log_once(identity, "contradiction", f"a supervisor of {report.model!r} can't join")
            return
        supervisor.last_seen = now
        self._greeted.pop(identity, None)
        if _ended(report):
            if (worker := self._registry.find_worker(report.engine)) is not None:
                self.remove_worker(worker, f"its process ended ({report.exit_code})", kill=False)
            self._log_death(supervisor, report)
        self._dispatcher.assign_waiting(self._registry.models[report.model])

    def _log_death(self, supervisor: SupervisorState, report: Supervision) -> None:
        """Say once how an engine ended that nobody had told to, and what follows."""
        if not report.ended or supervisor.logged_end == (report.engine, report.restarts):
            return
        supervisor.logged_end = (report.engine, report.restarts)
        looping = report.watch is Watch.CRASH_LOOP
        soon = f"in {report.delay_s:.3g} s" if report.delay_s else "once somebody asks" if looping else "at once"
        what = "crash loop, the next try is" if looping else "it is started again"
        log.warning("engine %s of %s ended: %s; %s %s", report.engine, report.model, report.ended, what, soon)

    def _send_hello(self, identity: bytes, now: float) -> None:
        """Ask a peer who it is, not at its own rate."""
        self._stats.wire["stranger"] += 1
        if now - self._greeted.get(identity, float("-inf")) < self._limits.hello_interval_s:
            return
        _remember(self._greeted, identity, now)
        self._transport.send_frame(identity, self._hello)

    def _log_once(self, identity: bytes, kind: str, why: str) -> None:
        self._stats.wire[kind] += 1
        if identity not in self._logged:
            _remember(self._logged, identity, self._clock())
            log.warning("peer %r: %s; more of the kind goes unmentioned", identity[:64], why[:300])


def _ended(report: Supervision) -> bool:
    """Whether the engine that a report names is dead. Its exit code says nothing: it may be its predecessor's."""
    return report.engine_pid == 0 or report.watch in (Watch.BACKOFF, Watch.CRASH_LOOP)


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    while len(memory) >= REMEMBERED_PEERS:
        del memory[next(iter(memory))]
    memory[key] = value
