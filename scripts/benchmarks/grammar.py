"""Structured output: what it costs a batch that is mixed with it, and what a flood of grammars costs others."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.chat import TOKENS, bodies
from benchmarks.client import Server, load, stream
from benchmarks.processes import Direct, Pool
from benchmarks.table import Table, median, ratio

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "n": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": [1]}},
    },
    "required": ["name", "n", "tags"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": RECORD, "minItems": 1000}
PLAIN: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
FLOODING = 16
"""Clients that send one grammar after the other, each of them new."""
HEAVY = "(((a{400}){400}){400})x"
"""Takes a second to compile, if it does not run out of memory."""


def mixed(table: Table, pool: Pool, direct: Direct, folder: Path, *, rounds: int) -> None:
    """Measure 32 mixed requests: of four, one follows a grammar, one is penalised, one tells logprobs."""
    made = bodies(32, TOKENS, mixed=True, ignore_eos=True, **PLAIN)
    extras: list[dict[str, Any]] = [
        {"structured_outputs": {"json": ENDLESS}},
        {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.2},
        {"logprobs": True, "top_logprobs": 5},
        {},
    ]
    mixture = [{**body, **extras[index % 4]} for index, body in enumerate(made)]
    mine, plain = [], []
    for _ in range(rounds + 1):
        mine.append(uvloop.run(load(pool.server, mixture)).tokens_per_s)
        plain.append(direct.measure(folder=str(folder), streams=32, tokens=32, mixed=True))
    quotient = ratio(mine[1:], plain[1:])
    figure = f"{median(mine[1:]):,.0f} / {median(plain[1:]):,.0f} = {quotient:.1f} x"
    table.add("with grammars, penalties, logprobs, 32 streams: pool / in process", figure, ">= 4 x", quotient >= 4)


def flood(table: Table, pool: Pool, *, rounds: int) -> None:
    """Measure the gaps of 8 streams beside clients that send new grammars, and beside ones that send none."""
    numbers = itertools.count()

    def ruled() -> dict[str, Any]:
        number = next(numbers)
        if number % 10 == 9:
            return {"structured_outputs": {"regex": f"{HEAVY}{number}"}}
        schema = {**RECORD, "properties": {**RECORD["properties"], f"p{number}": {"type": "string"}}}
        return {"structured_outputs": {"json": {"type": "array", "items": schema, "minItems": 3}}}

    worst: dict[str, list[float]] = {"alone": [], "plain": [], "ruled": []}
    for _ in range(rounds + 1):
        worst["alone"].append(uvloop.run(_late_gap(pool.server, None)))
        worst["plain"].append(uvloop.run(_late_gap(pool.server, dict)))
        worst["ruled"].append(uvloop.run(_late_gap(pool.server, ruled)))
    alone, plain, grammars = (median(worst[name][1:]) for name in ("alone", "plain", "ruled"))
    quotient = ratio(worst["ruled"][1:], worst["plain"][1:])
    figure = f"{grammars * 1e3:.1f} / {plain * 1e3:.1f} ms = {quotient:.2f} x (alone {alone * 1e3:.1f} ms)"
    table.add("p99 gap of 8 streams: beside new grammars / beside plain ones", figure, "<= 1.5 x", quotient <= 1.5)


async def _late_gap(server: Server, more: Callable[[], dict[str, Any]] | None) -> float:
    """Return the 99th percentile of the gaps in 8 streams, beside `FLOODING` clients that send `more`."""
    running = [
        asyncio.create_task(stream(server, body)) for body in bodies(8, 1200, mixed=True, ignore_eos=True, **PLAIN)
    ]

    async def client(number: int) -> None:
        for body in _requests(number):
            await stream(server, {**body, **(more() if more else {})})

    flooding = [asyncio.create_task(client(number)) for number in range(FLOODING if more else 0)]
    streams = await asyncio.gather(*running)
    for task in flooding:
        task.cancel()
    await asyncio.gather(*flooding, return_exceptions=True)
    gaps = sorted(gap for one in streams for gap in one.gaps_s)
    return gaps[int(len(gaps) * 0.99)]


def _requests(number: int) -> Iterator[dict[str, Any]]:
    for count in itertools.count():
        yield {
            "messages": [{"role": "user", "content": f"client {number} says {count}"}],
            "max_tokens": 64,
            "temperature": 1,
            "ignore_eos": True,
            **PLAIN,
        }
