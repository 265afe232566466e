"""Engines that are slow, or fail, before they serve or behind the back of what serves."""

import ctypes
import sys
import time
from collections.abc import Sequence
from typing import Any

from protocol.messages import GenerateJob, ModelJob
from worker.engines.base import EngineLoadError, Gauges
from worker.engines.fake import FakeEngine, program_of


class SlowToLoad(FakeEngine):
    """Loads for a minute."""

    def load(self) -> None:
        time.sleep(60)


class SlowToWarm(FakeEngine):
    """Warms for a minute."""

    def warm(self) -> None:
        time.sleep(60)


class QuickToLoad(FakeEngine):
    """Loads for two seconds."""

    def load(self) -> None:
        time.sleep(2)


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


class GripsToPrepare(FakeEngine):
    """Holds the interpreter for the seconds that a prompt names as `grip@S`, while it computes."""

    def prepare(self, job: ModelJob, buffers: Sequence[bytes] = ()) -> Any:
        seconds = program_of(job.prompt).get("grip", 0.0) if isinstance(job, GenerateJob) else 0.0
        if seconds:
            usual_s = sys.getswitchinterval()
            sys.setswitchinterval(3600)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass
            sys.setswitchinterval(usual_s)
        return super().prepare(job, buffers)


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
