"""`scripts/soak`: a hundred thousand mixed requests through one gateway, whose memory and handles must not grow."""

import argparse
import asyncio
import csv
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import aiohttp
import uvloop
from benchmarks.table import Table, median

from stress.mixture import EXPECTED, Mixture
from stress.plot import plot
from stress.running_pool import FAKE, ROOT, RunningPool

EMBEDDING = (*FAKE, "--model-type", "embedding", "--served-name", "vectors")
MASTER = "the-operator-of-the-soak"
KEYS = (
    {"name": "unbound", "permissions": ["*"], "limits": {"burst": 0, "rpm": 0, "rph": 0, "rpd": 0}},
    {
        "name": "bound",
        "permissions": ["chat", "embed:text"],
        "limits": {"burst": 1000, "rpm": 10_000, "rph": 0, "rpd": 0, "tpm": 10**9, "tpd": 10**9},
    },
)
"""What requests are sent with. A bound on requests takes a log of its length; this one is never met, and soon full."""
SAMPLES = 75
WARM_UP = 1 / 3
"""The share of the run that comes before and is not judged: what is bounded by its number fills, and tables that forget
as much as they learn grow once more after that. How full they are then is told."""
SIDE_BY_SIDE = 32
EVENTS = 1000
"""The operator does so much before: the ring of events is full then."""


@dataclass(frozen=True)
class SoakSample:
    """The gateway after so many requests. `objects` are blocks of Python's own allocator, after a collection."""

    requests: int
    resident_mb: float
    objects: int
    open_files: int
    threads: int
    tasks: int
    prompts: int
    """Beginnings of prompts that are remembered."""
    vectors_mb: float
    events: int


class Soak:
    """Sends requests of all kinds, `SIDE_BY_SIDE` at a time."""

    def __init__(self, pool: RunningPool, session: aiohttp.ClientSession, *, requests: int, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.samples: list[SoakSample] = []
        self._pool = pool
        self._session = session
        self._requests = requests
        self._chance = random.Random(seed)
        self._sent = 0
        self._operator = {"Authorization": f"Bearer {MASTER}"}

    async def run(self) -> None:
        """Run all of it; every now and then everybody pauses, and the gateway is looked at."""
        self._mixture = Mixture(self._session, self._pool.url, keys=await self._keys(), chance=self._chance)
        for _ in range(EVENTS):
            await self._operate("/admin/cache/clear")
        batch = max(1, self._requests // SAMPLES)
        while self._sent < self._requests:
            goal = min(self._requests, self._sent + batch)
            async with asyncio.TaskGroup() as group:
                for _ in range(SIDE_BY_SIDE):
                    group.create_task(self._client(goal))
            self.samples.append(await self._look())

    async def _keys(self) -> list[str]:
        return [(await self._operate("/admin/api-keys", key))["key"] for key in KEYS]

    async def _operate(self, path: str, body: object = None) -> dict[str, str]:
        async with self._session.post(f"{self._pool.url}{path}", json=body, headers=self._operator) as response:
            response.raise_for_status()
            answer: dict[str, str] = await response.json()
            return answer

    async def _client(self, goal: int) -> None:
        while self._sent < goal:
            self._sent += 1
            if self._sent % max(1, self._requests // 20) == 0:
                self._kill()
            self.outcomes[await self._mixture.one(self._sent)] += 1

    def _kill(self) -> None:
        """Kill an engine, as whatever kills engines does."""
        if pid := self._pool.engine_pid():
            os.kill(pid, signal.SIGKILL)

    async def _look(self) -> SoakSample:
        # Handlers whose clients have left end within this time, and connections are closed.
        await asyncio.sleep(0.2)
        async with self._session.get(f"{self._pool.url}/test/memory", headers=self._operator) as response:
            inside = await response.json()
        return look(self._pool.gateway.pid, requests=self._sent, inside=inside)


def look(pid: int, *, requests: int, inside: dict[str, float]) -> SoakSample:
    """Return what the system says of a process, and what it says itself."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return SoakSample(
        requests=requests,
        resident_mb=int(status["VmRSS"].split()[0]) / 1024,
        objects=int(inside["objects"]),
        open_files=len([*Path(f"/proc/{pid}/fd").iterdir()]),
        threads=int(status["Threads"]),
        tasks=int(inside["tasks"]),
        prompts=int(inside["prompts"]),
        vectors_mb=inside["vector_bytes"] / 2**20,
        events=int(inside["events"]),
    )


def slope(samples: list[SoakSample], name: str) -> float:
    """Return how much of `name` comes for 100,000 requests, by least squares."""
    xs, ys = [sample.requests / 1e5 for sample in samples], [getattr(sample, name) for sample in samples]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


async def _soak(pool: RunningPool, *, requests: int, seed: int) -> Soak:
    connector = aiohttp.TCPConnector(limit=SIDE_BY_SIDE)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        soak = Soak(pool, session, requests=requests, seed=seed)
        await soak.run()
    return soak


def main() -> int:
    """Run, write `soak.csv` and `soak.svg`, judge."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="that are judged; half as many come before")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for soak.csv and soak.svg")
    options = parser.parse_args()
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}",
        "POOL_ENV": "production",
        "POOL_API_KEY": MASTER,
    }
    flags = ("--plugins", "stress.fleet_routes", "--cache-bytes", "1MB")
    pool = RunningPool(FAKE, EMBEDDING, gateway=flags, environment=environment)
    try:
        pool.wait_healthy()
        soak = uvloop.run(_soak(pool, requests=round(options.requests / (1 - WARM_UP)), seed=options.seed))
    finally:
        pool.stop()
        pool.remove()
    with (options.out / "soak.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(SoakSample)])
        writer.writerows(astuple(sample) for sample in soak.samples)
    series = {field.name: [getattr(sample, field.name) for sample in soak.samples] for field in fields(SoakSample)}
    (options.out / "soak.svg").write_text(plot(series.pop("requests"), series))
    return _judge(soak)


def _judge(soak: Soak) -> int:
    table = Table()
    for outcome, count in sorted(soak.outcomes.items()):
        fine = outcome in EXPECTED
        table.add(outcome, f"{count:,}", "" if fine else "0", None if fine else False)
    settled = soak.samples[int(WARM_UP * len(soak.samples)) :]
    first, settled_at, last = soak.samples[0], settled[0], soak.samples[-1]
    full = ", ".join(f"{s.prompts:,} prompts {s.vectors_mb:.2f} MB {s.events} events" for s in (settled_at, last))
    table.add("what is bounded: settled, last", full, "full", settled_at.prompts >= last.prompts)
    sizes = ", ".join(f"{sample.resident_mb:.1f}" for sample in (first, settled_at, last))
    table.add("memory of the gateway: first, settled, last", f"{sizes} MB", "< 150 MB", last.resident_mb < 150)
    growth = slope(settled, "resident_mb")
    table.add("its growth for each 100,000 requests", f"{growth:+.2f} MB", "< 1 MB", growth < 1)
    table.add("Python objects more for each 100,000", f"{slope(settled, 'objects'):+,.0f} of {last.objects:,}")
    quarter = max(1, len(settled) // 4)
    for name in ("open_files", "threads", "tasks"):
        values = [getattr(sample, name) for sample in settled]
        begin, end = median(values[:quarter]), median(values[-quarter:])
        # Connections that clients have just closed, and a worker that is being replaced, make it waver.
        table.add(f"its {name}, first and last quarter", f"{begin:g}, {end:g}", "the same", abs(end - begin) <= 1)
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
