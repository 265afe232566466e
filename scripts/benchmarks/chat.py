"""Chat through HTTP against mlx-lm, in process and as a server, on the same tiny model, in turn."""

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.client import Load, Server, Stream, load, stream
from benchmarks.processes import Direct, Pool
from benchmarks.table import Table, median, ratio

TOKENS = 256
WORDS = [
    "river",
    "stone",
    "light",
    "under",
    "morning",
    "quiet",
    "field",
    "often",
    "carry",
    "small",
    "before",
    "window",
    "paper",
    "garden",
]


def bodies(streams: int, tokens: int, *, mixed: bool = False, **more: Any) -> list[dict[str, Any]]:
    """Make one request a stream; `mixed` gives each sampling of its own."""
    made = []
    for i in range(streams):
        sampling = {"temperature": 0.5 + i / 40, "top_p": 0.8 + i / 200, "top_k": 20 + i, "seed": i}
        made.append(
            {
                "messages": [{"role": "user", "content": f"hello there number {i}"}],
                "max_tokens": tokens,
                **(sampling if mixed else {"temperature": 0}),
                **more,
            }
        )
    return made


def throughput(
    table: Table, pool: Pool, rivals: Sequence[Server], direct: Direct, folder: Path, *, rounds: int
) -> None:
    """Measure tokens a second with 1, 8 and 32 streams, and times to the first one."""
    for streams, wanted in ((1, 0.9), (8, 1.0), (32, 2.0)):
        ours: list[Load] = []
        others: list[list[Load]] = [[] for _ in rivals]
        plain: list[float] = []
        for _ in range(rounds + 1):
            ours.append(uvloop.run(load(pool.server, bodies(streams, TOKENS, ignore_eos=True))))
            plain.append(direct.measure(folder=str(folder), streams=streams, tokens=TOKENS, mixed=False))
            for rival, found in zip(rivals, others, strict=True):
                found.append(uvloop.run(load(rival, bodies(streams, TOKENS))))
        # The first round warms all of them up.
        mine = [one.tokens_per_s for one in ours[1:]]
        name = f"greedy, {streams} streams"
        table.add(f"{name}: pool over HTTP, tokens/s", f"{median(mine):,.0f}")
        table.add(f"{name}: mlx-lm BatchGenerator in process", f"{median(plain[1:]):,.0f}")
        quotient = ratio(mine, plain[1:])
        table.add(f"{name}: pool / in process", f"{quotient:.2f} x", f">= {wanted} x", quotient >= wanted)
        for rival, found in zip(rivals, others, strict=True):
            _beside(table, name, ours[1:], rival.name, found[1:], promised=streams == 32)


def _beside(
    table: Table, name: str, ours: Sequence[Load], rival: str, theirs: Sequence[Load], *, promised: bool
) -> None:
    mine, other = [one.tokens_per_s for one in ours], [one.tokens_per_s for one in theirs]
    table.add(f"{name}: {rival} over HTTP", f"{median(other):,.0f}")
    quotient = ratio(mine, other)
    holds = quotient >= 3 if promised else None
    table.add(f"{name}: pool / {rival}", f"{quotient:.2f} x", ">= 3 x" if promised else "", holds)
    first, later = [median(one.first_s) for one in ours], [median(one.first_s) for one in theirs]
    quotient = ratio(first, later)
    figure = f"{median(first) * 1e3:.0f} ms / {median(later) * 1e3:.0f} ms = {quotient:.2f}"
    holds = quotient <= 0.5 if promised else None
    table.add(f"{name}: first token p50, pool / {rival}", figure, "<= 0.5" if promised else "", holds)


def mixed_sampling(
    table: Table, pool: Pool, rivals: Sequence[Server], direct: Direct, folder: Path, *, rounds: int
) -> None:
    """Measure requests that each have a temperature, top-p, top-k and seed of their own."""
    mine, plain = [], []
    others: list[list[float]] = [[] for _ in rivals]
    for _ in range(rounds + 1):
        mine.append(uvloop.run(load(pool.server, bodies(32, TOKENS, mixed=True, ignore_eos=True))).tokens_per_s)
        plain.append(direct.measure(folder=str(folder), streams=32, tokens=32, mixed=True))
        for rival, found in zip(rivals, others, strict=True):
            found.append(uvloop.run(load(rival, bodies(32, 32, mixed=True))).tokens_per_s)
    for name, theirs, wanted in (
        ("in process", plain, 8.0),
        *((rival.name, found, 0.0) for rival, found in zip(rivals, others, strict=True)),
    ):
        quotient = ratio(mine[1:], theirs[1:])
        figure = f"{median(mine[1:]):,.0f} / {median(theirs[1:]):,.0f} = {quotient:.1f} x"
        promise, holds = (f">= {wanted:g} x", quotient >= wanted) if wanted else ("", None)
        table.add(f"own sampling each, 32 streams: pool / {name}", figure, promise, holds)


def long_prompt(table: Table, pool: Pool, rivals: Sequence[Server], *, rounds: int) -> None:
    """Measure the largest gap in 8 streams beside a prompt of 3,000 words, in medians of their gaps."""
    for server in (pool.server, *rivals):
        ours = server is pool.server
        found = [uvloop.run(_worst_gap(server, seed, {"ignore_eos": True} if ours else {})) for seed in range(rounds)]
        worst = median([gap for gap, _ in found])
        figure = f"{worst:.1f} x (first token of the long one {median([s for _, s in found]) * 1e3:.0f} ms)"
        promise, holds = ("<= 10 x", worst <= 10) if ours else ("", None)
        table.add(f"largest gap beside a 3,000-word prompt: {server.name}", figure, promise, holds)


async def _worst_gap(server: Server, seed: int, more: dict[str, Any]) -> tuple[float, float]:
    running = [asyncio.create_task(stream(server, body)) for body in bodies(8, 3000, **more)]
    await asyncio.sleep(0.5)
    long = await _ask(server, random.Random(seed), 3000, **more)
    streams = await asyncio.gather(*running)
    return _worst(streams, long.sent_at, long.arrivals[-1] + 0.2), long.first_s


def row_of_long_prompts(table: Table, pool: Pool, *, rounds: int) -> None:
    """Measure 8 streams and short requests beside five 3,000-word prompts, one after the other."""
    gaps, first = [], []
    for seed in range(rounds):
        gap, alone, beside = uvloop.run(_beside_long_prompts(pool.server, seed))
        gaps.append(gap)
        first.append((alone, beside))
    worst = median(gaps)
    table.add("largest gap beside five long prompts in a row", f"{worst:.1f} x", "<= 10 x", worst <= 10)
    alone, beside = median([one for one, _ in first]), median([other for _, other in first])
    figure = f"{beside * 1e3:.1f} ms / {alone * 1e3:.1f} ms = {beside / alone:.1f} x"
    table.add("first token of a short request meanwhile / alone", figure, "<= 3 x", beside <= 3 * alone)


async def _beside_long_prompts(server: Server, seed: int) -> tuple[float, float, float]:
    """Return the largest gap in medians, and the median TTFT of a short request, alone and beside long prompts."""
    source = random.Random(seed)
    alone = [(await _ask(server, source, 4)).first_s for _ in range(10)]
    streams = [Stream(0.0) for _ in range(8)]
    endless = zip(bodies(8, 8000, ignore_eos=True), streams, strict=True)
    running = [asyncio.create_task(stream(server, body, into=into)) for body, into in endless]
    await asyncio.sleep(0.5)
    began = time.perf_counter()
    long = asyncio.create_task(_one_after_the_other(server, source))
    beside = []
    while not long.done():
        await asyncio.sleep(0.03)
        beside.append((await _ask(server, source, 4)).first_s)
    ended = await long
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    if min(one.arrivals[-1] for one in streams) < ended:
        raise RuntimeError("the streams ended before the long prompts did")
    return _worst(streams, began, ended), median(alone), median(beside)


async def _one_after_the_other(server: Server, source: random.Random) -> float:
    """Send five long prompts. Return when the last one had its answer."""
    for _ in range(5):
        await _ask(server, source, 3000)
    return time.perf_counter()


async def _ask(server: Server, source: random.Random, words: int, **more: Any) -> Stream:
    text = " ".join(source.choice(WORDS) for _ in range(words))
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0, **more}
    answer = await stream(server, body)
    if answer.error or not answer.arrivals:
        raise RuntimeError(f"a prompt of {words} words failed: {answer.error}")
    return answer


def _worst(streams: Sequence[Stream], began: float, ended: float) -> float:
    """Return the largest gap between these times, in medians of all gaps."""
    plain = median([gap for one in streams for gap in one.gaps_s])
    pairs = [pair for one in streams for pair in zip(one.arrivals, one.arrivals[1:], strict=False)]
    return max((b - a for a, b in pairs if b >= began and a <= ended), default=0.0) / plain
