"""The other end of `hostility.monitor_process`: starts it, and makes figures of what it saw."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hostility import machine
from hostility.pool import ROOT, AttackedPool

MB = 1 << 20
QUIET = 0.1
"""Where others took no larger share of the machine, the pool's waiting for a processor is its own doing."""

REQUESTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("chat", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello, #!"}], "max_tokens": 4}),
    ("embedding", "/v1/embeddings", {"input": "cat #"}),
    ("chat", "/v1/tokenize", {"prompt": "cat #"}),
)
"""What a client who does nothing wrong asks for: the model that it needs, path, body, where # is a number."""


@dataclass(kw_only=True)
class Observation:
    """What was seen between two moments. `control`: times that an idle process slept too long."""

    began: float
    ended: float
    gaps: dict[str, list[tuple[float, float, float]]]
    control: list[tuple[float, float]]
    elsewhere: float
    """The share of the machine that was spent on others than the pool and this harness."""
    memory: list[tuple[float, str, int]] = field(default_factory=list)
    workers: list[tuple[float, str, int, float, int | None]] = field(default_factory=list)
    requests: list[tuple[float, float, str, str]] = field(default_factory=list)
    streams: list[tuple[float, str]] = field(default_factory=list)
    lost_pings: list[tuple[float, str]] = field(default_factory=list)

    def longest_s(self, *names: str, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the longest gap, without what is the machine's fault: see `held_s`."""
        row = self._longest(names, since, until)
        return self.held_s(row) if row else 0.0

    def described(self, *names: str) -> str:
        """Return the longest gap as it was, and what of it was the machine's fault."""
        row = self._longest(names, 0.0, float("inf"))
        if row is None:
            return ""
        begin, end, starved = row
        return f"{end - begin:.2f} s in all, {starved:.2f} s of it ready to run"

    def _longest(self, names: Sequence[str], since: float, until: float) -> tuple[float, float, float] | None:
        rows = [row for name in names for row in self.gaps.get(name, []) if row[1] > since and row[0] < until]
        return max(rows, key=self.held_s, default=None)

    def held_s(self, row: tuple[float, float, float]) -> float:
        """Return a gap without the time in which an idle process slept on, too.

        Where others keep the machine busy, also without the time in which the gateway was ready and did not get to run.
        """
        begin, end, starved = row
        late = sum(max(0.0, min(end, after) - max(begin, before)) for before, after in self.control)
        taken = max(late, starved) if self.elsewhere > QUIET else late
        return max(0.0, end - begin - taken)

    def grown_bytes(self, name: str, before: int) -> int:
        """Return how much more than `before` the processes of `name` held at most."""
        return max((held for _, named, held in self.memory if named == name), default=before) - before

    def silent_s(self) -> float:
        """Return the longest that any engine was not heard of."""
        return max((silent for _, _, _, silent, _ in self.workers), default=0.0)

    def failures(self) -> list[str]:
        """Return what went wrong for those who did nothing wrong."""
        streams = [f"stream: {fault}" for _, fault in self.streams if fault]
        return streams + [f"{name}: {fault}" for _, _, name, fault in self.requests if fault]

    def latencies_s(self, name: str) -> list[float]:
        """Return how long such requests took that were answered."""
        return [end - begin for begin, end, named, fault in self.requests if named == name and not fault]


class PoolMonitor:
    """Watches a pool for as long as its block lasts. `streams`: also read long answers, which takes a core."""

    def __init__(self, pool: AttackedPool, *, streams: bool = False, requests: bool = True) -> None:
        self._pool = pool
        self._roots = {"gateway": pool.gateway.pid, **{kind: one.pid for kind, one in pool.supervisors.items()}}
        told = {
            "what": "pool",
            "port": pool.address.port,
            "tls": pool.address.tls,
            "gateway": pool.gateway.pid,
            "roots": self._roots,
            "victim": pool.keys.victim,
            "master": pool.keys.master,
            "streams": streams,
            "requests": [
                {"name": f"{kind} {path}", "path": path, "body": {"model": kind, **body}}
                for kind, path, body in REQUESTS
                if requests and kind in pool.supervisors
            ],
        }
        self._watchers = [_start(told), _start({"what": "idle"})]
        self._began = time.monotonic()
        self._busy = self._spent()

    def __enter__(self) -> "PoolMonitor":
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.kill()
            watcher.wait()
            for pipe in (watcher.stdin, watcher.stdout):
                if pipe is not None:
                    pipe.close()

    @contextmanager
    def looking(self) -> Iterator[list[Observation]]:
        """Observe for as long as the block lasts: what is seen stands in the list afterwards."""
        self.take()
        found: list[Observation] = []
        yield found
        found.append(self.take())

    def take(self) -> Observation:
        """Return what was seen since the last time."""
        seen, idle = (_read(watcher) for watcher in self._watchers)
        (machine_s, ours_s), (machine_before, ours_before) = self._spent(), self._busy
        began, self._began = self._began, time.monotonic()
        self._busy = machine_s, ours_s
        room = max(0.01, (self._began - began) * (os.cpu_count() or 1))
        elsewhere = max(0.0, (machine_s - machine_before - max(0.0, ours_s - ours_before)) / room)
        late = [tuple(row) for row in idle.get("late", [])]
        gaps = {name: [tuple(row) for row in rows] for name, rows in seen.pop("gaps").items()}
        rest = {name: [tuple(row) for row in rows] for name, rows in seen.items()}
        return Observation(began=began, ended=self._began, gaps=gaps, control=late, elsewhere=elsewhere, **rest)

    def memory(self) -> dict[str, int]:
        """Return what the gateway and each model's processes hold now."""
        return {name: sum(map(machine.memory_bytes, machine.family(pid))) for name, pid in self._roots.items()}

    def _spent(self) -> tuple[float, float]:
        """Return the processor time of the machine, and of the pool and this harness."""
        ours = {*self._pool.processes(), os.getpid(), *(watcher.pid for watcher in self._watchers)}
        return machine.machine_busy_s(), sum(map(machine.processor_s, ours))


def _start(told: dict[str, Any]) -> subprocess.Popen[str]:
    paths = f"{ROOT}:{ROOT / 'scripts'}"
    started = subprocess.Popen(
        [sys.executable, "-m", "hostility.monitor_process"],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if started.stdin is None:
        raise RuntimeError("started without pipes")
    started.stdin.write(json.dumps(told) + "\n")
    started.stdin.flush()
    return started


def _read(watcher: subprocess.Popen[str]) -> dict[str, Any]:
    if watcher.stdin is None or watcher.stdout is None:
        raise RuntimeError("started without pipes")
    watcher.stdin.write("take\n")
    watcher.stdin.flush()
    found: dict[str, Any] = json.loads(watcher.stdout.readline())
    return found


def settled_bytes(watch: PoolMonitor, name: str, most: int, patience_s: float) -> int:
    """Return what the processes of `name` hold once that is no more than `most`, or when `patience_s` are over."""
    deadline = time.monotonic() + patience_s
    while (held := watch.memory()[name]) > most and time.monotonic() < deadline:
        time.sleep(0.5)
    return held


def median(values: Sequence[float]) -> float:
    """Return the middle one; 0 of none."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0
