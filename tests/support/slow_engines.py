"""Engines that are slow, or fail, before they serve or behind the back of what serves."""

import ctypes
import time

from worker.engines.base import EngineLoadError, Gauges
from worker.engines.fake import FakeEngine


class SlowToLoad(FakeEngine):
    """Loads for a minute."""

    def load(self) -> None:
        time.sleep(60)


class SlowToWarm(FakeEngine):
    """Warms for a minute."""

    def warm(self) -> None:
        time.sleep(60)


class QuickToLoad(FakeEngine):
    """Loads for three seconds."""

    def load(self) -> None:
        time.sleep(3)


class WorksToLoad(FakeEngine):
    """Computes for a minute while it loads."""

    def load(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            sum(range(10_000))


class GripsToLoad(FakeEngine):
    """Computes for minutes while it loads, and lets go of the interpreter never once."""

    def load(self) -> None:
        sum(range(10**11))


class HangsToLoad(FakeEngine):
    """Holds the interpreter for a minute, and does nothing."""

    def load(self) -> None:
        ctypes.PyDLL(None).sleep(60)


class Unservable(FakeEngine):
    """Can't be loaded."""

    def load(self) -> None:
        raise EngineLoadError("no such model: try another")


class Untold(FakeEngine):
    """Can't say how it is once it has been given work."""

    def gauges(self) -> Gauges:
        if self.busy:
            raise RuntimeError("changed while it was read")
        return super().gauges()
