"""Who has gone silent, and whose engine stands still; pure. The verdicts are carried out elsewhere.

A worker is judged by the proof of its phase. One that loads or warms up shows progress, and may take any time and be
silent meanwhile; one that serves shows steps. A silent process that its supervisor sees at work is not gone: something
in it holds the interpreter.
"""

from gateway.dispatch.state import WorkerState
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.dispatch.workers.registry import Registry
from gateway.dispatch.workers.supervisor_state import SupervisorState
from protocol.messages import State, Watch

PAUSE_S = 1.0
"""A look that comes later than this says more about us than about our peers."""


class Liveness:
    """Looks at last signs of life. `look` has to be called every fraction of a second."""

    def __init__(self, registry: Registry, limits: PoolTimeouts, now: float) -> None:
        self._registry = registry
        self._limits = limits
        self._last_look = now

    def note_time(self, now: float) -> None:
        """Note that time has passed. If we were held up ourselves (a suspended machine), nobody is blamed for it."""
        gap_s, self._last_look = now - self._last_look, now
        if gap_s > PAUSE_S:
            for worker in self._registry.workers.values():
                worker.last_seen += gap_s
                worker.moved_at += gap_s
            for supervisor in self._registry.supervisors.values():
                supervisor.last_seen += gap_s
                supervisor.worked_at += gap_s

    def silent_workers(self, now: float) -> list[WorkerState]:
        """Workers that serve and of which nothing has come for too long."""
        return [
            worker for worker in self._registry.workers.values() if not worker.preparing and self._gone(worker, now)
        ]

    def silent_supervisors(self, now: float) -> list[SupervisorState]:
        """Supervisors of which nothing has come for too long."""
        patience_s = self._limits.beat_timeout_s
        return [found for found in self._registry.supervisors.values() if now - found.last_seen > patience_s]

    def stalled_workers(self, now: float) -> list[WorkerState]:
        """Workers whose beats go on while their engine, with work to do, does not."""
        return [worker for worker in self._registry.workers.values() if self._stalled(worker, now)]

    def stuck_workers(self, now: float) -> list[WorkerState]:
        """Workers that load or warm up without any progress, silent or not."""
        return [
            worker
            for worker in self._registry.workers.values()
            if worker.preparing and now - self._progressed_at(worker, now) > self._limits.load_s
        ]

    def stuck_starts(self, now: float) -> list[SupervisorState]:
        """Supervisors whose engine process was never heard of, and does nothing."""
        return [
            found
            for found in self._registry.supervisors.values()
            if found.report.watch is Watch.RUNNING
            and found.report.work
            and now - found.worked_at > self._limits.load_s
            and self._registry.find_worker(found.report.engine) is None
        ]

    def _gone(self, worker: WorkerState, now: float) -> bool:
        silent_s = now - worker.last_seen
        if silent_s <= self._limits.beat_timeout_s:
            return False
        supervisor = self._registry.supervisor_of(worker.uid)
        if supervisor is None or supervisor.worked_at <= worker.last_seen:
            return True
        return now - supervisor.worked_at > self._limits.work_shown_s or silent_s > self._limits.stall_s

    def _stalled(self, worker: WorkerState, now: float) -> bool:
        beat = worker.beat
        return (
            beat is not None
            and beat.busy
            and beat.state in (State.READY, State.DRAINING)
            and min(beat.step_age_s, now - worker.moved_at) > self._limits.stall_s
        )

    def _progressed_at(self, worker: WorkerState, now: float) -> float:
        """When it was last seen to get on: by itself, or by its supervisor while it can't speak."""
        if now - worker.last_seen <= self._limits.beat_timeout_s:
            return worker.moved_at
        supervisor = self._registry.supervisor_of(worker.uid)
        return worker.moved_at if supervisor is None else max(worker.moved_at, supervisor.worked_at)
