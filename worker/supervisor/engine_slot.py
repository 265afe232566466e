"""One engine after the other: carries out what its `EngineLifecycle` decides, and reports. For one thread."""

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
    """One engine process after the other. `report` sends a report to the gateway; returns whether there is one."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        report: Callable[[Supervision], bool],
        spare_pool: SparePool,
        policy: RestartPolicy | None,
    ) -> None:
        self.left = False
        self.lifecycle = EngineLifecycle(config.served_name, policy)
        self._config = config
        self._report = report
        self._spare_pool = spare_pool
        self._child: Child | None = None
        self._work: ProcessWork | None = None
        self._next_beat = 0.0

    @property
    def due(self) -> float:
        """When something is to be done, at the latest."""
        return self._next_beat if self.lifecycle.deadline is None else min(self._next_beat, self.lifecycle.deadline)

    def report_if_due(self) -> None:
        """Report, if it is time to."""
        if time.monotonic() >= self._next_beat:
            self.report_now()

    def report_now(self) -> None:
        """Tell the gateway how things are."""
        now = time.monotonic()
        lifecycle = self.lifecycle
        report = Supervision(
            model=self._config.served_name,
            kind=self._config.kind,
            watch=lifecycle.phase,
            pid=os.getpid(),
            engine=lifecycle.worker,
            engine_pid=lifecycle.pid,
            restarts=max(0, lifecycle.restarts),
            exit_code=lifecycle.exit_code,
            delay_s=lifecycle.delay_s(now),
            parked=lifecycle.parked,
            work=self._work.count_work() if self._work and lifecycle.pid else 0,
            ended=lifecycle.ended,
        )
        self._next_beat = now + (BEAT_S if self._report(report) else RETRY_S)

    def on_event(self, event: Event) -> None:
        """Take an event in, and do what follows."""
        for instruction in self.lifecycle.handle(event, time.monotonic()) if not self.left else ():
            self._carry_out(instruction)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start():
                self.on_event(self._start_process())
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

    def _start_process(self) -> Spawned | SpawnFailed:
        try:
            process = self._spare_pool.process_for(self)
        except OSError as error:
            return SpawnFailed(str(error))
        self._child = process.child
        self._work = ProcessWork(process.child.pid)
        return Spawned(process.uid, process.child.pid)
