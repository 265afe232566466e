"""Engines that are slow, or fail, before they serve or behind the back of what serves."""

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
