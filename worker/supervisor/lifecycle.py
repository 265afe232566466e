"""What to do about an engine process: when to start it, how long to wait, when to give up on it for a while.

Pure: events and times go in, instructions come out. It must never sleep, read a clock or touch a process.
"""

import signal
from collections import deque
from typing import assert_never

import msgspec

from protocol.messages import Watch
from worker.supervisor.restart_policy import RestartPolicy as RestartPolicy
from worker.supervisor.wording import EXIT_MEMORY, describe_death, describe_span

EXIT_CONFIG = 2
"""Exit code of an engine that can't serve with these settings; trying again soon would change nothing."""


# ---------------------------------------------------------------------------
# Events


class Begin(msgspec.Struct, frozen=True):
    """The supervisor is up."""


class Spawned(msgspec.Struct, frozen=True):
    """`Start` worked: engine process `worker` exists."""

    worker: str
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True):
    """`Start` did not work; the system says why."""

    reason: str


class BecameReady(msgspec.Struct, frozen=True):
    """The engine process `worker` takes jobs."""

    worker: str


class BecameHealthy(msgspec.Struct, frozen=True):
    """The engine process `worker` has done work."""

    worker: str


class Exited(msgspec.Struct, frozen=True):
    """The engine process `worker` is gone; negative codes are signals. `last_line` is the end of its stderr."""

    worker: str
    code: int
    last_line: str = ""


class KillAsked(msgspec.Struct, frozen=True):
    """The gateway wants engine process `worker` gone: it no longer makes progress."""

    worker: str
    reason: str


class EndAsked(msgspec.Struct, frozen=True):
    """The gateway told engine process `worker` to drain; `again`: a fresh one follows, else none until `WakeAsked`."""

    worker: str
    grace_s: float
    again: bool
    reason: str


class WakeAsked(msgspec.Struct, frozen=True):
    """Start an engine where none was wanted."""


class StopAsked(msgspec.Struct, frozen=True):
    """A signal, or the end of whoever started us, tells the supervisor to leave."""

    reason: str


class Tick(msgspec.Struct, frozen=True):
    """Time has passed, maybe as far as `deadline`."""


Event = (
    Begin
    | Spawned
    | SpawnFailed
    | BecameReady
    | BecameHealthy
    | Exited
    | KillAsked
    | EndAsked
    | WakeAsked
    | StopAsked
    | Tick
)


# ---------------------------------------------------------------------------
# Instructions


class Start(msgspec.Struct, frozen=True):
    """Start an engine process; answer with `Spawned` or `SpawnFailed`."""


class Terminate(msgspec.Struct, frozen=True):
    """Ask the engine process to drain (SIGTERM)."""


class Kill(msgspec.Struct, frozen=True):
    """End the engine process now (SIGKILL)."""


class Report(msgspec.Struct, frozen=True):
    """Something that the gateway should know has changed."""


class Log(msgspec.Struct, frozen=True):
    """A line for the log."""

    text: str
    bad: bool = False


class Leave(msgspec.Struct, frozen=True):
    """The supervisor's work is done."""


Instruction = Start | Terminate | Kill | Report | Log | Leave
"""Lines for the log come behind what matters: whoever reads them may have stopped reading."""


class EngineLifecycle:
    """One engine's life, start after start."""

    def __init__(self, name: str, policy: RestartPolicy | None = None) -> None:
        self.phase = Watch.STARTING
        self.worker = ""
        self.pid = 0
        self.restarts = -1
        self.exit_code: int | None = None
        self.ended = ""
        """How the last engine ended, fit to be shown to anybody; empty: as asked, or none has."""
        self.parked = False
        """Told to run no engine, until told otherwise."""
        self.deadline: float | None = None
        """When to call with a `Tick`, at the latest."""
        self._name = name
        self._policy = policy or RestartPolicy()
        self._started_at = 0.0
        self._ready_at: float | None = None
        self._failures = 0
        self._unloadable = 0
        self._config_failures = 0
        self._crashes: deque[float] = deque()
        self._on_trial = False
        self._killed_for: str | None = None
        self._kill_sent = False
        self._ending: EndAsked | None = None

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take one event at monotonic time `now` (seconds); returns what to do, in order."""
        match event:
            case Begin():
                return self._start()
            case Spawned():
                return self._spawned(event, now)
            case SpawnFailed():
                self.ended = "it could not be started"
                return self._failed(f"could not be started ({event.reason})", now)
            case BecameReady():
                if event.worker == self.worker:
                    self._ready_at = now
                return []
            case BecameHealthy():
                if event.worker == self.worker:
                    self._recovered()
                return []
            case Exited():
                return self._exited(event, now)
            case KillAsked() | EndAsked() | WakeAsked() | StopAsked():
                return self._handle_order(event, now)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    def _handle_order(self, order: KillAsked | EndAsked | WakeAsked | StopAsked, now: float) -> list[Instruction]:
        match order:
            case KillAsked():
                return self._kill(order)
            case EndAsked():
                return self._end(order, now)
            case WakeAsked():
                return self._wake()
            case StopAsked():
                return self._stop(order, now)
            case _:
                assert_never(order)

    def delay_s(self, now: float) -> float:
        """Seconds until the next start; 0 where none is planned."""
        if self.deadline is None or self.phase not in (Watch.BACKOFF, Watch.CRASH_LOOP):
            return 0.0
        return max(0.0, self.deadline - now)

    def _start(self) -> list[Instruction]:
        self.phase = Watch.STARTING
        self.deadline = None
        self.restarts += 1
        return [Start()]

    def _spawned(self, event: Spawned, now: float) -> list[Instruction]:
        self.phase = Watch.RUNNING
        self.worker, self.pid = event.worker, event.pid
        self._started_at = now
        self._ready_at = None
        self._killed_for = None
        self._ending = None
        trial = " on trial: if it dies before it has done any work, the pause is repeated" if self._on_trial else ""
        return [Report(), Log(f"{self._name}: engine started as process {event.pid}{trial}")]

    def _exited(self, event: Exited, now: float) -> list[Instruction]:
        if event.worker != self.worker or not self.pid:
            return []
        pid, self.pid, self.exit_code, self.ended = self.pid, 0, event.code, ""
        if self.phase is Watch.DRAINING:
            return [Report(), Log(f"{self._name}: engine process {pid} has ended; leaving"), Leave()]
        if self._ending is not None:
            return self._ended_as_asked(self._ending)
        ran_s = now - self._started_at
        if self._ready_at is not None and now - self._ready_at >= self._policy.healthy_s:
            self._recovered()
        if event.code == EXIT_CONFIG:
            return self._refused(event, now)
        self._config_failures = 0
        self._unloadable = self._unloadable + 1 if event.code == EXIT_MEMORY and self._ready_at is None else 0
        if event.code == 0 and ran_s >= self._policy.settled_s:
            return [Log(f"{self._name}: engine process {pid} has ended as asked; starting a fresh one"), *self._start()]
        self.ended = self._killed_for or f"it {describe_death(event.code, None).strip(',')}"
        if self._unloadable >= self._policy.memory_tries:
            return self._give_up(event)
        what = f"process {pid} {describe_death(event.code, self._killed_for)} after {describe_span(ran_s)}"
        if event.last_line and event.code != -signal.SIGKILL:
            what += f" (its last line: {event.last_line})"
        return self._failed(what, now)

    def _recovered(self) -> None:
        """Whatever came before is forgotten."""
        self._failures = 0
        self._crashes.clear()
        self._on_trial = False

    def _refused(self, event: Exited, now: float) -> list[Instruction]:
        self._config_failures += 1
        self.ended = "it can't serve with these settings"
        what = f"can't serve with these settings: {event.last_line or 'see its lines above'}"
        if (tries := self._config_failures - self._policy.config_tries) >= 0:
            # Until somebody does something about it nothing changes: less and less is said of it.
            return self._pause(what, now, min(self._policy.config_pause_s, self._policy.crash_pause_s * 2**tries))
        return self._failed(what, now)

    def _failed(self, what: str, now: float) -> list[Instruction]:
        """Wait, or give up for a while: the engine is not there."""
        if self.phase is Watch.DRAINING:
            return [Leave()]
        self._crashes.append(now)
        while self._crashes and now - self._crashes[0] > self._policy.crash_window_s:
            self._crashes.popleft()
        if self._on_trial:
            return self._pause(what, now)
        if len(self._crashes) >= self._policy.crash_limit:
            return self._pause(
                f"{what}; that was number {len(self._crashes)} in {describe_span(now - self._crashes[0])}", now
            )
        delay_s = self._policy.delays_s[min(self._failures, len(self._policy.delays_s) - 1)]
        self._failures += 1
        self.phase = Watch.BACKOFF
        self.deadline = now + delay_s
        when = f"in {delay_s:g} s" if delay_s else "at once"
        done: list[Instruction] = [Report(), Log(f"{self._name}: engine {what}; starting it again {when}", bad=True)]
        return done if delay_s else done + self._start()

    def _give_up(self, event: Exited) -> list[Instruction]:
        """Start none until somebody asks: each try reads the whole model, and takes memory from those that serve."""
        self.phase = Watch.CRASH_LOOP
        self.deadline = None
        self.ended = f"it ran out of memory while it loaded, {self._unloadable} times"
        self._unloadable = 0
        cure = "free memory or choose a smaller model, then restart it or load it over /admin"
        said = event.last_line and f" (its last line: {event.last_line})"
        return [Report(), Log(f"{self._name}: engine given up, as {self.ended}{said}; {cure}", bad=True)]

    @property
    def given_up(self) -> bool:
        """Whether no start is planned, and nobody wanted that."""
        return self.phase is Watch.CRASH_LOOP and self.deadline is None

    def _pause(self, what: str, now: float, pause_s: float | None = None) -> list[Instruction]:
        pause_s = pause_s or self._policy.crash_pause_s
        self.phase = Watch.CRASH_LOOP
        self.deadline = now + pause_s
        self._crashes.clear()
        pause = f"no more starts for {pause_s:g} s, then one on trial"
        return [Report(), Log(f"{self._name}: engine {what}; {pause}", bad=True)]

    def _kill(self, event: KillAsked) -> list[Instruction]:
        if event.worker != self.worker or not self.pid:
            return []
        self._killed_for = event.reason
        return [Kill(), Log(f"{self._name}: killing engine process {self.pid}: {event.reason}", bad=True)]

    def _end(self, event: EndAsked, now: float) -> list[Instruction]:
        if event.worker != self.worker or self.phase is Watch.DRAINING:
            return []
        self._ending = event
        if not self.pid:
            return self._ended_as_asked(event)
        self.deadline = now + event.grace_s + self._policy.end_extra_s
        after = "a fresh one follows" if event.again else "none follows"
        return [
            Log(
                f"{self._name}: engine process {self.pid} is to end within {event.grace_s:g} s, {after}: {event.reason}"
            )
        ]

    def _ended_as_asked(self, asked: EndAsked) -> list[Instruction]:
        if asked.again:
            return [
                Report(),
                *self._start(),
                Log(f"{self._name}: the engine has ended as asked; a fresh one is started"),
            ]
        self.phase = Watch.DRAINING
        self.parked = True
        self.deadline = None
        return [Report(), Log(f"{self._name}: the engine has ended as asked; none runs until one is asked for")]

    def _wake(self) -> list[Instruction]:
        if not (self.parked or self.given_up):
            return []
        self.parked = False
        self._recovered()
        return self._start()

    def _stop(self, event: StopAsked, now: float) -> list[Instruction]:
        if self.parked:
            return [Leave()]
        if self.phase is Watch.DRAINING:
            self._kill_sent = True
            self.deadline = now + self._policy.kill_s
            return [Kill(), Log(f"{self._name}: {event.reason} again; killing the engine")]
        self.phase = Watch.DRAINING
        self.deadline = None
        if not self.pid:
            return [Report(), Log(f"{self._name}: {event.reason}; no engine runs, leaving"), Leave()]
        self.deadline = now + self._policy.drain_s
        self._killed_for = event.reason
        said = f"{self._name}: {event.reason}; the engine may finish what it can within {self._policy.drain_s:g} s"
        return [Terminate(), Report(), Log(said)]

    def _tick(self, now: float) -> list[Instruction]:
        if self.deadline is None or now < self.deadline:
            return []
        match self.phase:
            case Watch.BACKOFF:
                return self._start()
            case Watch.CRASH_LOOP:
                self._on_trial = True
                return self._start()
            case Watch.DRAINING:
                return self._overdue(now)
            case Watch.STARTING:
                return []
            case Watch.RUNNING:
                self.deadline = None
                self._killed_for = "it did not end in its grace"
                return [Kill(), Log(f"{self._name}: engine process {self.pid} is not done; killing it")]
            case _:
                assert_never(self.phase)

    def _overdue(self, now: float) -> list[Instruction]:
        """End the drain. A process that survives even its kill is stuck in the kernel and beyond us."""
        if self._kill_sent:
            return [Log(f"{self._name}: engine process {self.pid} ignores SIGKILL; leaving it to the system"), Leave()]
        self._kill_sent = True
        self.deadline = now + self._policy.kill_s
        return [Kill(), Log(f"{self._name}: engine process {self.pid} is not done; killing it")]
