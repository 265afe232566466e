"""How long 8 running streams stand still while something large comes: with a vocabulary of 200,000 tokens.

Weights are tiny and random, the tokenizer is gpt-oss's own where npm can fetch it, else one that is made. What is
asked for comes over HTTP, once in a process's life, so each round has a pool of its own.
"""

import asyncio
import base64
import contextlib
import io
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from PIL import Image
from vocabularies.fetching import UnavailableError, fetch_tokenizer
from vocabularies.making import add_control_tokens, make_tokenizer
from vocabularies.tiny_models import make_tiny_model

from benchmarks.client import Server, Stream, stream
from benchmarks.processes import ROOT, pool
from benchmarks.table import Table, median

STREAMS = 8
JOINING = 3
TOKENS = 8000
VOCABULARY = 200_000
BOUND_S = 0.1
SETTLED_S = 1.0
"""From the streams' first tokens to the event, and from the event's end to the last look."""
LOOKS, LOOK_S = 1200, 0.05
PICTURE = (6600, 5000)
"""The largest that is taken: 33 megapixels."""
TEXT = "The harbour was quiet before the morning, and nobody carried more than a small lantern along the river. "
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}
Event = Callable[[Server], Awaitable[None]]


def gaps(table: Table, scratch: Path, *, rounds: int) -> None:
    """Measure all of it, in pools of one chat model and of one vision model."""
    name, tokenizer = _tokenizer(scratch)
    text = make_tiny_model(tokenizer, scratch / "text", template=_template())
    _measure(
        table,
        name,
        ("--model-path", str(text), "--max-concurrency", "32"),
        {
            "a batch size comes for the first time": _new_sizes,
            "the process's first grammar is compiled": _first_grammar,
            "1 MB is tokenised": _tokenize,
        },
        rounds=rounds,
    )
    vision = _make_vision_model(tokenizer, scratch / "vision")
    flags = ("--model-type", "vision", "--model-path", str(vision), "--max-concurrency", "32")
    _measure(table, name, flags, {"a picture of 33 megapixels comes": _picture()}, rounds=rounds)


def _measure(table: Table, name: str, flags: Sequence[str], events: dict[str, Event], *, rounds: int) -> None:
    found: dict[str, list[float]] = {what: [] for what in ("nothing else comes", *events)}
    for _ in range(rounds):
        with pool(*flags) as running:
            for what, longest_s in uvloop.run(_rounds(running.server, events)).items():
                found[what].append(longest_s)
    for what, longest_s in found.items():
        figure = f"{median(longest_s) * 1e3:.0f} ms, {max(longest_s) * 1e3:.0f} at worst"
        promised = what in events
        table.add(
            f"{STREAMS} streams, {name}: longest gap while {what}",
            figure,
            f"<= {BOUND_S * 1e3:.0f} ms" if promised else "",
            median(longest_s) <= BOUND_S if promised else None,
        )


async def _rounds(server: Server, events: dict[str, Event]) -> dict[str, float]:
    """Return the longest gap beside each event, in a pool that has seen none of them."""
    async with _running_streams(server) as streams:
        found = {"nothing else comes": await _longest_gap_s(server, streams, _nothing)}
        for what, event in events.items():
            found[what] = await _longest_gap_s(server, streams, event)
    return found


@contextlib.asynccontextmanager
async def _running_streams(server: Server) -> AsyncIterator[list[Stream]]:
    """Have eight streams run for as long as the block lasts."""
    streams = [Stream(0.0) for _ in range(STREAMS)]
    tasks = [
        asyncio.create_task(
            stream(server, _body(f"Tell me about river number {number}.", TOKENS, ignore_eos=True), into=into)
        )
        for number, into in enumerate(streams)
    ]
    try:
        await _begin(streams, tasks)
        yield streams
        _expect(not any(task.done() for task in tasks), "a stream ended too soon")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _begin(streams: Sequence[Stream], tasks: Sequence[asyncio.Task[Stream]]) -> None:
    """Wait until each stream has brought something."""
    for _ in range(LOOKS):
        if all(len(one.arrivals) > 1 for one in streams):
            return
        _expect(not any(task.done() for task in tasks), f"a stream failed: {[one.error for one in streams]}")
        await asyncio.sleep(LOOK_S)
    raise RuntimeError("streams bring nothing")


async def _longest_gap_s(server: Server, streams: Sequence[Stream], event: Event) -> float:
    """Return the longest time in which a stream got nothing, from an event's beginning until it is over."""
    await asyncio.sleep(SETTLED_S)
    before = [len(one.arrivals) for one in streams]
    await event(server)
    await asyncio.sleep(SETTLED_S)
    gaps_s = [gap for one, begun in zip(streams, before, strict=True) for gap in one.gaps_s[begun - 1 :]]
    return max(gaps_s)


async def _nothing(_server: Server) -> None:
    await asyncio.sleep(SETTLED_S)


async def _new_sizes(server: Server) -> None:
    """Have further streams join, one after the other."""
    joining: list[asyncio.Task[Stream]] = []
    for number in range(JOINING):
        joining.append(asyncio.create_task(stream(server, _body(f"Joining, number {number}.", 32, ignore_eos=True))))
        await asyncio.sleep(0.2)
    for one in await asyncio.gather(*joining):
        _expect(one.error is None, str(one.error))


async def _first_grammar(server: Server) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "record", "schema": SCHEMA, "strict": True}}
    found = await stream(server, _body("Give me a record.", 24, response_format=asked))
    _expect(found.error is None, str(found.error))


async def _tokenize(server: Server) -> None:
    content = json.dumps({"prompt": (TEXT * 10_000)[:1_000_000]}).encode()
    await _post(server, "/tokenize", content)


def _picture() -> Event:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize(PICTURE, Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    content = json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 8}).encode()

    async def show(server: Server) -> None:
        await _post(server, "/chat/completions", content)

    return show


async def _post(server: Server, path: str, content: bytes) -> None:
    """Send a request whose body is ready, so that this process is not what streams wait for."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    head = f"POST {server.root}{path} HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
    answer = await reader.read(1 << 16)
    _expect(b" 200 " in answer[:20], answer[:300].decode(errors="replace"))
    while await reader.read(1 << 16):
        pass
    writer.close()


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _body(content: str, tokens: int, **more: Any) -> dict[str, Any]:
    # Greedily: on a CPU a draw from so many tokens takes longer than the model does, for every row of every step.
    return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0, **more}


def _tokenizer(scratch: Path) -> tuple[str, Path]:
    """Return the tokenizer that everything is measured with, and what it is called."""
    try:
        return "gpt-oss's tokenizer", fetch_tokenizer("gpt-oss")
    except UnavailableError as error:
        return f"a made tokenizer ({error})", make_tokenizer(VOCABULARY, scratch / "tokenizer")


def _template() -> str:
    """Return a chat template that knows pictures."""
    return (ROOT / "scripts" / "models" / "chat_template.jinja").read_text(encoding="utf-8")


def _make_vision_model(tokenizer: Path, folder: Path) -> Path:
    """Write a random Qwen2-VL with that tokenizer."""
    from models.vision_recipes import VISION_RECIPES

    recipe = VISION_RECIPES["qwen2-vl"]
    source = folder.with_name("vision-tokenizer")
    shutil.copytree(tokenizer, source)
    ids = add_control_tokens(source, [*recipe.tokens.values(), "<|im_start|>", "<|im_end|>"])
    config = {**recipe.config, **{name: ids[token] for name, token in recipe.tokens.items()}}
    config["tie_word_embeddings"] = False
    make_tiny_model(source, folder, template=_template(), **config)
    for name, content in recipe.files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
