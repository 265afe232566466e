"""Signs of life: what the engine thread shows the IO thread (state and step counter), and the supervisor.

Plain attributes, one writer each; a reader may see a value one step old, never a torn one.
"""

import time
from collections.abc import Callable

from protocol.messages import State

IS_READY, IS_PROVEN, IS_SPARE = b"r", b"p", b"s"
"""What an engine says on its lifeline: that it takes jobs; that it has done work since; that it waits to be needed."""
GO = b"g"
"""The one word that it is told there: a spare is to be an engine from now on."""


class Pulse:
    """Proof of life: a beat that carries it can't hide a dead engine loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.state = State.LOADING
        self.step = 0
        self.busy = True
        self._moved_at = clock()

    def woke(self) -> None:
        """There is work again. A first step that never ends must show, and idle time must not count against it."""
        self._moved_at = self._clock()
        self.busy = True

    def stepped(self, *, busy: bool) -> None:
        """The engine loop went round once."""
        self.step += 1
        self.busy = busy
        self._moved_at = self._clock()

    @property
    def age_s(self) -> float:
        """Seconds since the loop last went round."""
        return self._clock() - self._moved_at
