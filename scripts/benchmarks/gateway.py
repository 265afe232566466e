"""The gateway alone: the fake engine behind it, so that nothing but HTTP, dispatch and the wire is measured."""

import asyncio
import time

import uvloop

from benchmarks.client import Server, load, stream
from benchmarks.processes import Pool, resident_bytes
from benchmarks.table import Table, median

STREAMS = 64
TOKENS = 4000


def throughput(table: Table, pool: Pool, *, rounds: int) -> None:
    """Measure 64 streams of an engine of 1,500 steps a second: tokens, and how many events carried them."""
    figures = []
    for _ in range(rounds + 1):
        bodies = [
            {"messages": [{"role": "user", "content": f"fake: slow@0.0004 stream {i}"}], "max_tokens": TOKENS}
            for i in range(STREAMS)
        ]
        done = uvloop.run(load(pool.server, bodies))
        events = sum(one.events for one in done.streams) / sum(one.tokens for one in done.streams)
        figures.append((done.tokens_per_s, events))
    rate, events = (median(column) for column in zip(*figures[1:], strict=True))
    table.add(
        f"gateway alone, {STREAMS} streams",
        f"{rate:,.0f} tokens/s, {events:.2f} events each",
        ">= 60,000",
        rate >= 60_000,
    )


def first_token(table: Table, pool: Pool, *, count: int = 400) -> None:
    """Measure the first token with an engine that needs no time: all of it is ours, and the client's."""
    times = uvloop.run(_first_tokens(pool.server, count))
    table.add(
        "first token, idle, gateway and wire and client, p50",
        f"{median(times) * 1e3:.2f} ms",
        "<= 1 ms",
        median(times) <= 1e-3,
    )


async def _first_tokens(server: Server, count: int) -> list[float]:
    times = []
    for i in range(count):
        one = await stream(server, {"messages": [{"role": "user", "content": f"hello {i}"}], "max_tokens": 3})
        times.append(one.first_s)
    return times[count // 4 :]


def memory(table: Table, pool: Pool, *, requests: int) -> None:
    """Measure what gateway and supervisor hold after many requests."""
    began = time.perf_counter()
    uvloop.run(_many(pool.server, requests))
    rate = requests / (time.perf_counter() - began)
    gateway, supervisor = resident_bytes(pool.gateway) / 1e6, resident_bytes(pool.supervisor) / 1e6
    table.add(f"gateway after {requests:,} requests ({rate:,.0f}/s)", f"{gateway:.0f} MB", "< 150 MB", gateway < 150)
    table.add("supervisor", f"{supervisor:.0f} MB", "< 40 MB", supervisor < 40)


async def _many(server: Server, requests: int) -> None:
    left = iter(range(requests))

    async def client() -> None:
        for i in left:
            await stream(server, {"messages": [{"role": "user", "content": f"hello {i}"}], "max_tokens": 4})

    await asyncio.gather(*(client() for _ in range(32)))
