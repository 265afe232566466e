"""kill -9 of engines, again and again, under clients that must not notice."""

import os
import random
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from stress.load import LoadGenerator, LoadResult, Make
from stress.running_pool import RunningPool, wait_until


@dataclass
class KillReport:
    """What a run of kills came to. `noticed_s` and `gone_s`: from each kill until the gateway, or an onlooker, knew."""

    load: LoadResult
    kills: int
    noticed_s: list[float]
    gone_s: list[float]
    continued: int
    same_gateway: bool
    at_rest: bool

    @property
    def fine(self) -> bool:
        """Whether nobody noticed anything."""
        return not self.load.faults and self.same_gateway and self.at_rest


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of `values` is smaller than."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run(
    workers: Sequence[Sequence[str]], make: Make, *, clients: int, kills: int, seed: int, pause_s: tuple[float, float]
) -> KillReport:
    """Kill an engine at random `kills` times, waiting a random time between; then let everything come to rest."""
    pool = RunningPool(*workers, environment={"POOL_SPARE": "true"})
    try:
        pool.wait_healthy(120)
        wait_until(lambda: pool.replicas() == len(workers), timeout_s=120)
        gateway = pool.gateway.pid
        generator = LoadGenerator(pool, make, clients=clients, seed=seed)
        noticed_s, gone_s = _kill(pool, kills, random.Random(seed), pause_s)
        load = generator.stop_clients()
        with suppress(AssertionError):
            wait_until(pool.idle, timeout_s=10)
        report = KillReport(
            load=load,
            kills=len(noticed_s),
            noticed_s=noticed_s,
            gone_s=gone_s,
            continued=int(pool.metric("pool_jobs_continued_total")),
            same_gateway=pool.gateway.running and pool.gateway.pid == gateway,
            at_rest=pool.idle(),
        )
        pool.stop()
        pool.check_logs()
        return report
    finally:
        pool.stop()
        pool.remove()


def _kill(
    pool: RunningPool, kills: int, chance: random.Random, pause_s: tuple[float, float]
) -> tuple[list[float], list[float]]:
    noticed_s: list[float] = []
    gone_s: list[float] = []
    while len(noticed_s) < kills:
        # Never one that only loads: a model that never gets up is another story.
        wait_until(lambda: pool.replicas() > 0, timeout_s=120)
        time.sleep(chance.uniform(*pause_s))
        up = {worker for worker in range(len(pool.supervisors)) if _ready(pool, worker)}
        pid = pool.engine_pid(chance.choice(sorted(up))) if up else 0
        if not pid:
            continue
        killed_at = time.time()
        gone_s.append(_kill_one(pid))
        noticed_s.append(_noticed_at(pool, killed_at) - killed_at)
    return noticed_s, gone_s


def _kill_one(pid: int) -> float:
    """Send kill -9; returns how many seconds later somebody who waits for nothing else knows (0 but on Linux)."""
    if sys.platform != "linux":
        os.kill(pid, signal.SIGKILL)
        return 0.0
    watch = os.pidfd_open(pid)
    try:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        select.select([watch], [], [], 10)
        return time.monotonic() - began
    finally:
        os.close(watch)


def _noticed_at(pool: RunningPool, killed_at: float) -> float:
    """Return when the gateway noticed, by its own clock: looking for it often would slow it down."""

    def noticed() -> float:
        events = pool.get("/admin/events").json()["data"]
        times = [event["time"] for event in events if " lost, " in event["message"]]
        return min((time for time in times if time >= killed_at), default=0.0)

    return wait_until(noticed, every_s=0.05)


def _ready(pool: RunningPool, worker: int) -> bool:
    """Return whether a supervisor's present engine has said that it is ready."""
    text = pool.supervisors[worker].text()
    return text.rfind(" is ready: ") > text.rfind("engine started as process")
