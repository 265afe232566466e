"""Signs of life: what the engine thread shows the IO thread (phase and step counter), and the supervisor.

Preparing (loading, warming) and serving are phases with proofs of their own: a process that prepares shows work,
counted by `worker.work`; one that serves shows steps. There is one writer and one immutable tuple: a reader never sees
two moments mixed.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from protocol.messages import State

PREPARING = (State.LOADING, State.WARMING)


class StepReading(NamedTuple):
    """The engine thread at one moment. `busy`: its steps should go on; `moved_at`: when it last stepped or woke."""

    state: State
    step: int
    busy: bool
    moved_at: float


class StepClock:
    """Proof of life of the engine's thread: a beat that carries it can't hide a dead engine loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now = StepReading(State.LOADING, 0, False, clock())

    def enter_state(self, state: State) -> None:
        """Enter another phase; its clock starts anew, so nothing that took long before counts in it."""
        self._now = StepReading(state, self._now.step, self._now.busy, self._clock())

    def mark_busy(self) -> None:
        """Note that there is work again, so that idle time does not count against its first step."""
        self._now = StepReading(self._now.state, self._now.step, True, self._clock())

    def mark_step(self, *, busy: bool) -> None:
        """Count a round of the engine loop."""
        self._now = StepReading(self._now.state, self._now.step + 1, busy, self._clock())

    def read_state(self) -> StepReading:
        """Return all of it, as it was at one moment."""
        return self._now

    def age_s(self, reading: StepReading) -> float:
        """Return the seconds since the loop had last gone round by then."""
        return max(0.0, self._clock() - reading.moved_at)

    @property
    def state(self) -> State:
        """The phase."""
        return self._now.state

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        return self._now.busy

    @property
    def step(self) -> int:
        """How often the loop went round."""
        return self._now.step
