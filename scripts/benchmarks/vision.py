"""Questions about images through HTTP, against mlx-vlm's own server on the same tiny model, in turn."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvloop
from PIL import Image

from benchmarks.client import Load, Server, load
from benchmarks.processes import Pool
from benchmarks.table import Table, median, ratio

TOKENS = 64
SIZE = (640, 480)
LARGE = (1600, 1200)


def picture(seed: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Return a part with a JPEG of coarse noise: every seed another picture."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def question(seed: int, *, tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    """Return a request about one picture."""
    text = {"type": "text", "text": f"What is in picture {seed}?"}
    return {"messages": [{"role": "user", "content": [text, picture(seed)]}], "max_tokens": tokens, **more}


def throughput(table: Table, pool: Pool, rival: Server | None, *, rounds: int) -> None:
    """Measure 1, 8 and 16 questions at once: tokens a second, first token. No picture was seen before."""
    seed = 0
    for streams in (1, 8, 16):
        ours: list[Load] = []
        server: list[Load] = []
        for _ in range(rounds + 1):
            seeds = range(seed, seed + streams)
            seed += streams
            mine = [question(n, temperature=0, ignore_eos=True) for n in seeds]
            ours.append(uvloop.run(load(pool.server, mine)))
            if rival is not None:
                theirs = [question(n, temperature=0) for n in seeds]
                server.append(uvloop.run(load(rival, theirs)))
        # The first round warms both up.
        _compare(table, f"image questions, {streams} at once", ours[1:], server[1:])


def _compare(table: Table, name: str, ours: Sequence[Load], server: Sequence[Load]) -> None:
    rates, first = [one.tokens_per_s for one in ours], [median(one.first_s) for one in ours]
    table.add(f"{name}: pool, tokens/s", f"{median(rates):,.0f}")
    table.add(f"{name}: pool, first token p50", f"{median(first) * 1e3:.0f} ms")
    if not server:
        return
    other, later = [one.tokens_per_s for one in server], [median(one.first_s) for one in server]
    table.add(f"{name}: mlx_vlm.server, tokens/s", f"{median(other):,.0f}")
    table.add(f"{name}: mlx_vlm.server, first token p50", f"{median(later) * 1e3:.0f} ms")
    quotient = ratio(rates, other)
    table.add(f"{name}: pool / mlx_vlm.server", f"{quotient:.1f} x")
    table.add(f"{name}: first token, pool / mlx_vlm.server", f"{ratio(first, later):.2f}")


def second_turn(table: Table, pool: Pool, *, rounds: int) -> None:
    """Measure the first token of a talk about four large pictures, then that of its second turn."""
    once, again = [], []
    for number in range(rounds + 1):
        parts = [picture(10_000 + 4 * number + at, LARGE) for at in range(4)]
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [*parts, {"type": "text", "text": "What are these?"}]}
        ]
        for found in (once, again):
            body = {"messages": turns, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            found.append(uvloop.run(load(pool.server, [body])).first_s[0])
            turns = [*turns, {"role": "assistant", "content": "Pictures."}, {"role": "user", "content": "Why?"}]
    quotient = ratio(again[1:], once[1:])
    figure = f"{median(again[1:]) * 1e3:.0f} ms / {median(once[1:]) * 1e3:.0f} ms = {quotient:.2f}"
    table.add("four large images: first token, turn two / turn one", figure, "<= 0.5", quotient <= 0.5)
