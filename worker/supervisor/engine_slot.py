"""One engine after the other: carries out what its `EngineWatch` decides, and reports. For one thread."""

import logging
import os
import time
from collections.abc import Callable
from typing import assert_never

from protocol.messages import Supervision
from worker.config import WorkerConfig
from worker.supervisor.child import Child
from worker.supervisor.lifecycle import (
    EngineLifecycle,
    Event,
    Instruction,
    Kill,
    Leave,
    Log,
    Report,
    RestartPolicy,
    Spawned,
    SpawnFailed,
    Start,
    Terminate,
)
from worker.supervisor.spare_pool import SparePool
from worker.work import ProcessWork

log = logging.getLogger("worker.supervisor.supervisor")

BEAT_S = 1.0
RETRY_S = 0.1
"""How soon to speak again while no gateway is connected."""


class EngineSlot:
    """One engine process after the other. `tell` sends a report to the gateway, and says whether there is one."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        tell: Callable[[Supervision], bool],
        reserve: SparePool,
        policy: RestartPolicy | None,
    ) -> None:
        self.left = False
        self.watch = EngineLifecycle(config.served_name, policy)
        self._config = config
        self._tell = tell
        self._reserve = reserve
        self._child: Child | None = None
        self._work: ProcessWork | None = None
        self._next_beat = 0.0

    @property
    def due(self) -> float:
        """When something is to be done, at the latest."""
        return self._next_beat if self.watch.deadline is None else min(self._next_beat, self.watch.deadline)

    def report_if_due(self) -> None:
        """Report, if it is time to."""
        if time.monotonic() >= self._next_beat:
            self.report_now()

    def report_now(self) -> None:
        """Tell the gateway how things are."""
        now = time.monotonic()
        watch = self.watch
        report = Supervision(
            model=self._config.served_name,
            kind=self._config.kind,
            watch=watch.phase,
            pid=os.getpid(),
            engine=watch.worker,
            engine_pid=watch.pid,
            restarts=max(0, watch.restarts),
            exit_code=watch.exit_code,
            delay_s=watch.delay_s(now),
            parked=watch.parked,
            work=self._work.count_work() if self._work and watch.pid else 0,
            ended=watch.ended,
        )
        self._next_beat = now + (BEAT_S if self._tell(report) else RETRY_S)

    def on_event(self, event: Event) -> None:
        """Take an event in, and do what follows."""
        for instruction in self.watch.handle(event, time.monotonic()) if not self.left else ():
            self._do(instruction)

    def _do(self, instruction: Instruction) -> None:
        match instruction:
            case Start():
                self.on_event(self._start())
            case Terminate():
                if self._child:
                    self._child.terminate()
            case Kill():
                if self._child:
                    self._child.kill()
            case Report():
                self.report_now()
            case Log():
                log.log(logging.ERROR if instruction.bad else logging.INFO, "%s", instruction.text)
            case Leave():
                self.left = True
            case _:
                assert_never(instruction)

    def _start(self) -> Spawned | SpawnFailed:
        try:
            process = self._reserve.process_for(self)
        except OSError as error:
            return SpawnFailed(str(error))
        self._child = process.child
        self._work = ProcessWork(process.child.pid)
        return Spawned(process.uid, process.child.pid)
