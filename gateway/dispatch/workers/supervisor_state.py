"""A supervisor as the gateway knows it."""

from protocol.messages import Supervision, Watch


class SupervisorState:
    """The process that watches over one engine process, with the last that it said."""

    def __init__(self, identity: bytes, report: Supervision, now: float) -> None:
        self.identity = identity
        self.report = report
        self.last_seen = self.worked_at = now
        """When it was last heard of, and when its engine process was last seen to work."""
        self.asked = 0
        """How many engines it was asked to start."""
        self.ending = ""
        """The engine that it was told to end, with none to follow."""
        self.logged_end = ("", 0)
        """The last death that was logged: which engine, after how many restarts."""

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
    def retiring(self) -> bool:
        """Whether it was told to leave for good."""
        return self.report.watch is Watch.DRAINING and not self.report.parked

    @property
    def stopped(self) -> bool:
        """Whether it runs no engine because it was told so, or soon will not."""
        return self.report.parked or self.ending == self.report.engine != ""

    @property
    def runs_engine(self) -> bool:
        """Whether it runs an engine, or is about to, that nobody has told to end."""
        return not self.stopped and self.report.watch is not Watch.DRAINING
