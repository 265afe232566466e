"""Engines that are slow, or fail, before they serve."""

import time

from worker.engines.base import EngineLoadError
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
