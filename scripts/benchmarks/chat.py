"""Chat through HTTP against mlx-lm, in process and as a server, on the same tiny model, in turn."""

import asyncio
import random
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.client import Load, Stream, load, stream
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
    """One request a stream; `mixed` gives each sampling of its own."""
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


def throughput(table: Table, pool: Pool, rival: int, direct: Direct, folder: Path, *, rounds: int) -> None:
    """Tokens a second, with 1, 8 and 32 streams, then 32 with sampling of their own."""
    for streams, wanted in ((1, 0.9), (8, 1.0), (32, 2.0)):
        ours: list[Load] = []
        server: list[Load] = []
        plain: list[float] = []
        for _ in range(rounds + 1):
            ours.append(uvloop.run(load(pool.port, bodies(streams, TOKENS, ignore_eos=True))))
            plain.append(direct.measure(folder=str(folder), streams=streams, tokens=TOKENS, mixed=False))
            server.append(uvloop.run(load(rival, bodies(streams, TOKENS))))
        # The first round warms all three up.
        ours, server, plain = ours[1:], server[1:], plain[1:]
        mine, theirs = [one.tokens_per_s for one in ours], [one.tokens_per_s for one in server]
        name = f"greedy, {streams} streams"
        table.add(f"{name}: pool over HTTP, tokens/s", f"{median(mine):,.0f}")
        table.add(f"{name}: mlx-lm BatchGenerator in process", f"{median(plain):,.0f}")
        table.add(f"{name}: mlx_lm.server over HTTP", f"{median(theirs):,.0f}")
        quotient = ratio(mine, plain)
        table.add(f"{name}: pool / in process", f"{quotient:.2f} x", f">= {wanted} x", quotient >= wanted)
        if streams == 32:
            quotient = ratio(mine, theirs)
            table.add(f"{name}: pool / mlx_lm.server", f"{quotient:.2f} x", ">= 3 x", quotient >= 3)
            first = [median(one.first_s) for one in ours]
            other = [median(one.first_s) for one in server]
            figure = f"{median(first) * 1e3:.0f} ms / {median(other) * 1e3:.0f} ms = {ratio(first, other):.2f}"
            table.add(f"{name}: first token p50, pool / server", figure, "<= 0.5", ratio(first, other) <= 0.5)


def mixed_sampling(table: Table, pool: Pool, direct: Direct, folder: Path, *, rounds: int) -> None:
    """Every request with its own temperature, top-p, top-k and seed."""
    mine, plain = [], []
    for _ in range(rounds + 1):
        mine.append(uvloop.run(load(pool.port, bodies(32, TOKENS, mixed=True, ignore_eos=True))).tokens_per_s)
        plain.append(direct.measure(folder=str(folder), streams=32, tokens=32, mixed=True))
    quotient = ratio(mine[1:], plain[1:])
    figure = f"{median(mine[1:]):,.0f} / {median(plain[1:]):,.0f} = {quotient:.1f} x"
    table.add("own sampling each, 32 streams: pool / in process", figure, ">= 8 x", quotient >= 8)


def long_prompt(table: Table, pool: Pool, rival: int, *, rounds: int) -> None:
    """The largest gap in 8 running streams while a 3,000-word prompt is computed, in medians of their gaps."""
    for name, port, wanted, more in (
        ("pool", pool.port, 10.0, {"ignore_eos": True}),
        ("mlx_lm.server", rival, 0.0, {}),
    ):
        found = [uvloop.run(_worst_gap(port, seed, more)) for seed in range(rounds)]
        worst = median([gap for gap, _ in found])
        figure = f"{worst:.1f} x (first token of the long one {median([s for _, s in found]) * 1e3:.0f} ms)"
        holds = worst <= wanted if wanted else None
        table.add(
            f"largest gap beside a 3,000-word prompt: {name}", figure, f"<= {wanted:g} x" if wanted else "", holds
        )


async def _worst_gap(port: int, seed: int, more: dict[str, Any]) -> tuple[float, float]:
    source = random.Random(seed)
    text = " ".join(source.choice(WORDS) for _ in range(3000))
    running = [asyncio.create_task(stream(port, body)) for body in bodies(8, 3000, **more)]
    await asyncio.sleep(0.5)
    long: Stream = await stream(
        port, {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0, **more}
    )
    if long.error or not long.arrivals:
        raise RuntimeError(f"the long prompt failed: {long.error}")
    began, ended = long.sent_at, long.arrivals[-1] + 0.2
    streams = await asyncio.gather(*running)
    plain = median([gap for one in streams for gap in one.gaps_s])
    worst = 0.0
    for one in streams:
        pairs = zip(one.arrivals, one.arrivals[1:], strict=False)
        worst = max([worst, *(b - a for a, b in pairs if b >= began and a <= ended)])
    return worst / plain, long.first_s
