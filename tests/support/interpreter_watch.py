"""How long one thread keeps all others of this process from running."""

import threading
import time
from types import TracebackType

TICK_S = 0.001


class InterpreterWatch:
    """A thread that looks at the clock every millisecond while it is entered: as an engine's beats and steps would.

    `longest_gap_s` is the longest time between two looks. It is processor time of this process: whoever holds the
    interpreter computes meanwhile, and what other processes take from it does not count.
    """

    def __init__(self) -> None:
        self.longest_gap_s = 0.0
        self._over = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="interpreter watch", daemon=True)

    def __enter__(self) -> "InterpreterWatch":
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _tick(self) -> None:
        last = time.process_time()
        self._begun.set()
        while not self._over.wait(TICK_S):
            now = time.process_time()
            self.longest_gap_s = max(self.longest_gap_s, now - last)
            last = now
        self.longest_gap_s = max(self.longest_gap_s, time.process_time() - last)
