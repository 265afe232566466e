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
from types import MappingProxyType

import aiohttp
import uvloop
from benchmarks.table import Table, median
from running_pool import FAKE, ROOT, RunningPool, chat_body, children, until

from calamities.plot import plot

EMBEDDING = (*FAKE, "--model-type", "embedding", "--served-name", "vectors")
SAMPLES = 50
WARM_UP = 0.5
"""The share of the run that is not judged: what is bounded by its number (prompt beginnings, vectors) fills."""
SIDE_BY_SIDE = 32
MIX = MappingProxyType({"stream": 50, "whole": 19, "vectors": 15, "leave": 10, "bad": 5, "refused": 1})
"""Per cent of the requests."""


@dataclass(frozen=True)
class Sample:
    """The gateway after so many requests."""

    requests: int
    resident_mb: float
    open_files: int
    threads: int
    tasks: int


class Soak:
    """Sends requests of all kinds, `SIDE_BY_SIDE` at a time."""

    def __init__(self, pool: RunningPool, session: aiohttp.ClientSession, *, requests: int, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self._pool = pool
        self._session = session
        self._requests = requests
        self._chance = random.Random(seed)
        self._sent = 0

    async def run(self) -> None:
        """All of it; every now and then everybody pauses, and the gateway is looked at."""
        batch = max(1, self._requests // SAMPLES)
        while self._sent < self._requests:
            goal = min(self._requests, self._sent + batch)
            async with asyncio.TaskGroup() as group:
                for _ in range(SIDE_BY_SIDE):
                    group.create_task(self._client(goal))
            self.samples.append(await self._look())

    async def _client(self, goal: int) -> None:
        while self._sent < goal:
            self._sent += 1
            if self._sent % max(1, self._requests // 20) == 0:
                self._kill()
            kind = self._chance.choices(
                ["stream", "whole", "vectors", "leave", "bad", "refused"], [50, 19, 15, 10, 5, 1]
            )[0]
            self.outcomes[f"{kind} {await self._one(kind)}"] += 1

    async def _one(self, kind: str) -> str:
        number = f"{self._sent} {self._chance.random()}"
        path = "/v1/embeddings" if kind == "vectors" else "/v1/chat/completions"
        body = chat_body(f"tell me {number}", max_tokens=12, stream=kind in ("stream", "leave"))
        match kind:
            case "vectors":
                body = {"input": [number, "known"], "encoding_format": "base64"}
            case "leave":
                body = chat_body(f"fake: slow@0.005 tokens@200 {number}", stream=True)
            case "bad":
                body["temperature"] = 9
            case "refused":
                body = chat_body(f"fake: oom@0 {number}")
        async with self._session.post(f"{self._pool.url}{path}", json=body) as response:
            if kind == "leave":
                await response.content.readany()
                response.close()
                return "left"
            data = await response.read()
        if kind == "stream" and not data.endswith(b"data: [DONE]\n\n"):
            return "cut off"
        return str(response.status)

    def _kill(self) -> None:
        """An engine, as whatever kills engines does."""
        for pid in children(self._pool.supervisors[0].pid):
            os.kill(pid, signal.SIGKILL)

    async def _look(self) -> Sample:
        await asyncio.sleep(0.2)
        async with self._session.get(f"{self._pool.url}/test/tasks") as response:
            tasks = int(await response.text())
        return look(self._pool.gateway.pid, requests=self._sent, tasks=tasks)


def look(pid: int, *, requests: int, tasks: int) -> Sample:
    """What the system says of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Sample(
        requests=requests,
        resident_mb=int(status["VmRSS"].split()[0]) / 1024,
        open_files=len([*Path(f"/proc/{pid}/fd").iterdir()]),
        threads=int(status["Threads"]),
        tasks=tasks,
    )


def slope(samples: list[Sample]) -> float:
    """Megabytes per 100,000 requests, by least squares."""
    xs, ys = [sample.requests / 1e5 for sample in samples], [sample.resident_mb for sample in samples]
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
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for soak.csv and soak.svg")
    options = parser.parse_args()
    plugin = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    pool = RunningPool(
        FAKE, EMBEDDING, gateway=("--plugins", "fleet_routes", "--cache-bytes", "1MB"), environment=plugin
    )
    try:
        pool.wait_healthy()
        soak = uvloop.run(_soak(pool, requests=options.requests, seed=options.seed))
        until(pool.idle)
    finally:
        pool.stop()
        pool.remove()
    with (options.out / "soak.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Sample)])
        writer.writerows(astuple(sample) for sample in soak.samples)
    series = {field.name: [getattr(sample, field.name) for sample in soak.samples] for field in fields(Sample)}
    (options.out / "soak.svg").write_text(plot(series.pop("requests"), series))
    return _judge(soak)


def _judge(soak: Soak) -> int:
    table = Table()
    wanted = {"stream 200", "whole 200", "vectors 200", "leave left", "bad 400", "refused 507"}
    for outcome, count in sorted(soak.outcomes.items()):
        table.add(outcome, f"{count:,}", "" if outcome in wanted else "0", None if outcome in wanted else False)
    settled = soak.samples[int(WARM_UP * len(soak.samples)) :]
    growth = slope(settled)
    sizes = ", ".join(f"{sample.resident_mb:.1f}" for sample in (soak.samples[0], settled[0], soak.samples[-1]))
    table.add("memory of the gateway: first, settled, last", f"{sizes} MB")
    table.add("its growth for each 100,000 requests", f"{growth:+.2f} MB", "< 1 MB", growth < 1)
    quarter = max(1, len(settled) // 4)
    for name in ("open_files", "threads", "tasks"):
        values = [getattr(sample, name) for sample in settled]
        first, last = median(values[:quarter]), median(values[-quarter:])
        # Connections that clients have just closed, and a worker that is being replaced, make it waver.
        table.add(f"its {name}, first and last quarter", f"{first:g}, {last:g}", "the same", abs(last - first) <= 1)
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
