"""Restarts of a model's engines that nobody asked for."""

from collections import deque

from protocol.messages import Supervision

RESTARTS_S = 600.0
"""How long a restart is told of."""


class RestartLog:
    """When an engine was started again that had ended unasked, and how that one had ended."""

    def __init__(self) -> None:
        self._restarts: deque[tuple[float, str]] = deque(maxlen=1000)

    def count_restarts(self, before: Supervision, report: Supervision, now: float) -> None:
        """Note the restarts that a supervisor tells of, but for those that it was asked for."""
        if report.ended:
            self._restarts.extend([(now, report.ended)] * (report.restarts - before.restarts))

    def forget_old(self, now: float) -> None:
        """Leave out those of long ago."""
        while self._restarts and now - self._restarts[0][0] > RESTARTS_S:
            self._restarts.popleft()

    @property
    def reason(self) -> str | None:
        """What is wrong with engines that are started again and again."""
        if len(self._restarts) < 2:
            return None
        return f"restarted {len(self._restarts)} times in {RESTARTS_S / 60:.0f} minutes: {self._restarts[-1][1]}"
