"""Who has gone silent, and whose engine stands still; pure. The verdicts are carried out elsewhere."""

from gateway.dispatch.limits import Limits
from gateway.dispatch.model import Supervisor, Worker
from gateway.dispatch.roster import Roster
from protocol.messages import State

PAUSE_S = 1.0
"""A look that comes later than this says more about us than about our peers."""


class Liveness:
    """Looks at last signs of life. `look` has to be called every fraction of a second."""

    def __init__(self, roster: Roster, limits: Limits, now: float) -> None:
        self._roster = roster
        self._limits = limits
        self._last_look = now

    def look(self, now: float) -> None:
        """Note that time has passed. If we were held up ourselves (a suspended machine), nobody is blamed for it."""
        gap_s, self._last_look = now - self._last_look, now
        if gap_s > PAUSE_S:
            for worker in self._roster.workers.values():
                worker.last_seen += gap_s
            for supervisor in self._roster.supervisors.values():
                supervisor.last_seen += gap_s

    def silent_workers(self, now: float) -> list[Worker]:
        """Workers of which nothing has come for too long."""
        return [worker for worker in self._roster.workers.values() if now - worker.last_seen > self._patience_s(worker)]

    def silent_supervisors(self, now: float) -> list[Supervisor]:
        """The same of supervisors."""
        patience_s = self._limits.beat_timeout_s
        return [found for found in self._roster.supervisors.values() if now - found.last_seen > patience_s]

    def stalled_workers(self) -> list[Worker]:
        """Workers whose beats go on while their engine, with work to do, does not."""
        return [worker for worker in self._roster.workers.values() if self._stalled(worker)]

    def _patience_s(self, worker: Worker) -> float:
        if worker.state in (State.LOADING, State.WARMING):
            return self._limits.load_beat_timeout_s
        return self._limits.beat_timeout_s

    def _stalled(self, worker: Worker) -> bool:
        beat = worker.beat
        return (
            beat is not None
            and beat.busy
            and beat.state in (State.READY, State.DRAINING)
            and beat.step_age_s > self._limits.stall_s
        )
