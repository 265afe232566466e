"""kill -9 of engines, again and again, under clients that must not notice."""

import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from running_pool import RunningPool, until

from calamities.crowd import Crowd, Make, Verdict


@dataclass
class Report:
    """What a run of kills came to. Times in seconds."""

    verdict: Verdict
    kills: int
    noticed_s: list[float]
    continued: int
    same_gateway: bool
    at_rest: bool

    @property
    def fine(self) -> bool:
        """Whether nobody noticed anything."""
        return not self.verdict.faults and self.same_gateway and self.at_rest

    def quantile(self, share: float) -> float:
        """Of the times in which deaths were noticed."""
        ordered = sorted(self.noticed_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run(
    workers: Sequence[Sequence[str]], make: Make, *, clients: int, kills: int, seed: int, pause_s: tuple[float, float]
) -> Report:
    """Kill an engine at random `kills` times, waiting a random time between; then let everything come to rest."""
    pool = RunningPool(*workers, environment={"POOL_SPARE": "true"})
    try:
        pool.wait_healthy(120)
        until(lambda: pool.replicas() == len(workers), timeout_s=120)
        gateway = pool.gateway.pid
        crowd = Crowd(pool, make, clients=clients, seed=seed)
        noticed_s = _kill(pool, kills, random.Random(seed), pause_s)
        verdict = crowd.stop()
        with suppress(AssertionError):
            until(pool.idle, timeout_s=10)
        report = Report(
            verdict=verdict,
            kills=kills,
            noticed_s=noticed_s,
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


def _kill(pool: RunningPool, kills: int, chance: random.Random, pause_s: tuple[float, float]) -> list[float]:
    noticed_s: list[float] = []
    while len(noticed_s) < kills:
        # Never one that only loads: a model that never gets up is another story.
        until(lambda: pool.replicas() > 0, timeout_s=120)
        time.sleep(chance.uniform(*pause_s))
        up = {worker for worker in range(len(pool.supervisors)) if _ready(pool, worker)}
        pid = pool.engine_pid(chance.choice(sorted(up))) if up else 0
        if not pid:
            continue
        killed_at = time.time()
        os.kill(pid, signal.SIGKILL)
        noticed_s.append(_noticed_at(pool, killed_at) - killed_at)
    return noticed_s


def _noticed_at(pool: RunningPool, killed_at: float) -> float:
    """When the gateway says that it noticed: by its own clock, since looking for it often would slow it down."""

    def noticed() -> float:
        events = pool.get("/admin/events").json()["data"]
        times = [event["time"] for event in events if "is lost with" in event["message"]]
        return min((time for time in times if time >= killed_at), default=0.0)

    return until(noticed, every_s=0.05)


def _ready(pool: RunningPool, worker: int) -> bool:
    """Whether a supervisor's present engine has said that it is ready."""
    text = pool.supervisors[worker].text()
    return text.rfind(" is ready: ") > text.rfind("engine started as process")
