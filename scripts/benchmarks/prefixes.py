"""How much sooner a known prompt starts: in memory, after the engine was killed, after the worker was restarted."""

import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.client import Server, Stream, load, stream
from benchmarks.processes import Pool, children, pool
from benchmarks.table import Table, median

PROMPT_TOKENS = 8000
STREAMS = 8
STREAM_TOKENS = 1500
WRITTEN_S = 20.0


def sooner(table: Table, folder: Path, *, rounds: int) -> None:
    """Measure the first token of an 8k prompt, and of the same one again; each round has its own."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as shelf:
        flags = ("--model-path", str(folder), "--prefix-disk-folder", shelf)
        first: list[float] = []
        found: dict[str, list[float]] = {"in memory": [], "engine killed": [], "worker restarted": []}
        for at in range(rounds):
            prompt = _prompt(at)
            with pool(*flags) as ours:
                first.append(_first_s(ours, prompt))
                found["in memory"].append(_first_s(ours, prompt))
                _settle(Path(shelf))
                _kill(ours)
                found["engine killed"].append(_first_s(ours, prompt))
            with pool(*flags) as ours:
                found["worker restarted"].append(_first_s(ours, prompt))
        table.add("first token of an 8k prompt, unknown", f"{median(first) * 1e3:,.0f} ms")
        for name, times in found.items():
            gain = median([a / b for a, b in zip(first, times, strict=True)])
            figure = f"{median(times) * 1e3:.0f} ms, {gain:.1f} x sooner"
            table.add(f"the same again: {name}", figure, ">= 10 x", gain >= 10)


def writing(table: Table, folder: Path, *, rounds: int) -> None:
    """Measure the largest gap in 8 streams beside a long prompt, with and without writing it to disk."""
    flags = ("--model-path", str(folder))
    found: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    with (
        tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as shelf,
        pool(*flags) as plain,
        pool(*flags, "--prefix-disk-folder", shelf) as ours,
    ):
        for at in range(rounds):
            for name, one in (("off", plain), ("on", ours)):
                found[name].append(uvloop.run(_gaps(one.server, at)))
    for name, pairs in found.items():
        worst, typical = median([gap for gap, _ in pairs]), median([gap for _, gap in pairs])
        figure = f"{worst * 1e3:.0f} ms, median {typical * 1e3:.2f} ms"
        table.add(f"largest gap beside an 8k prompt, disk {name}", figure)


def _prompt(seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(10, 2000) for _ in range(PROMPT_TOKENS)]


def _body(prompt: list[int], tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def _first_s(ours: Pool, prompt: list[int]) -> float:
    # Compilation and connections are paid by another prompt.
    uvloop.run(load(ours.server, [_body(prompt[::-1][:600], 2)], path="/completions"))
    return uvloop.run(load(ours.server, [_body(prompt, 2)], path="/completions")).first_s[0]


def _settle(shelf: Path) -> None:
    """Wait until all of the prompt is written."""
    _until(lambda: len(list(shelf.rglob("*.safetensors"))) >= PROMPT_TOKENS // 128)


def _kill(ours: Pool) -> None:
    engine = children(ours.supervisor)[0]
    os.kill(engine, signal.SIGKILL)
    _until(lambda: engine not in children(ours.supervisor))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WRITTEN_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("it took too long")
        time.sleep(0.02)


async def _gaps(server: Server, seed: int) -> tuple[float, float]:
    """Return the largest gap from the long prompt's start to half a second behind it, and the median of all."""
    bodies = [_body([seed + 5, at + 5, 7], STREAM_TOKENS) for at in range(STREAMS)]
    running = [asyncio.create_task(stream(server, body, path="/completions")) for body in bodies]
    await asyncio.sleep(0.3)
    long: Stream = await stream(server, _body(_prompt(seed), 2), path="/completions")
    streams = await asyncio.gather(*running)
    worst = 0.0
    for one in streams:
        pairs = zip(one.arrivals, one.arrivals[1:], strict=False)
        worst = max([worst, *(b - a for a, b in pairs if b >= long.sent_at and a <= long.arrivals[-1] + 0.5)])
    return worst, median([gap for one in streams for gap in one.gaps_s])
