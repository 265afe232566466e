"""Clients that leave at any moment free what they held, at once and for good."""

import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from stress.running_pool import FAKE, RunningPool, chat_body, open_files, wait_until

STEP_S = 0.05
AT_ONCE_S = 20.0
"""Much more than a step or a prefill chunk of the scripts below; their jobs would run for 100 s."""
LONG = f"fake: slow@{STEP_S} tokens@2000"
PREFILL = "fake: prefill@100 tokens@5"


def close(connection: socket.socket) -> None:
    """End politely."""
    connection.close()


def reset(connection: socket.socket) -> None:
    """End as a killed process or a lost network does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def measure(pool: RunningPool, record: Callable[[str, object], None]) -> float:
    """Wait until no request is active; returns the seconds that it took."""
    began = time.monotonic()
    wait_until(pool.idle, what="the slot is free", every_s=0.002)
    took_s = time.monotonic() - began
    record("freed_s", round(took_s, 3))
    return took_s


@pytest.mark.parametrize("leave", [close, reset])
@pytest.mark.parametrize(
    ("content", "fields"),
    [(PREFILL, {"stream": True}), (PREFILL, {}), (LONG, {}), (LONG, {"n": 4})],
    ids=["streamed before the first token", "whole before the first token", "whole", "four choices"],
)
def test_slot_is_free_at_once_when_a_waiting_client_leaves(
    fake: RunningPool,
    record: Callable[[str, object], None],
    content: str,
    fields: dict[str, Any],
    leave: Callable[[socket.socket], None],
) -> None:
    """Who leaves before the first token or while waiting for a whole answer frees the slot within a step or chunk."""
    connection = fake.open_chat(content, **fields)
    wait_until(lambda: fake.active() == 1, what="the request runs")
    leave(connection)
    assert measure(fake, record) < AT_ONCE_S
    wait_until(lambda: fake.metric("pool_worker_running_rows") == 0, what="the worker has no rows")


@pytest.mark.parametrize("leave", [close, reset])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_slot_is_free_at_once_when_a_client_leaves_mid_stream(
    fake: RunningPool,
    record: Callable[[str, object], None],
    endpoint: str,
    leave: Callable[[socket.socket], None],
) -> None:
    """Who leaves in the middle of a stream (here also of one with four prompts) frees the slots within a step."""
    if endpoint == "chat":
        connection = fake.open_chat(LONG, stream=True)
    else:
        connection = fake.open("/v1/completions", {"prompt": [LONG] * 4, "max_tokens": 2000, "stream": True})
    seen = b""
    while seen.count(b"data: ") < 4:
        seen += connection.recv(4096)
    leave(connection)
    assert measure(fake, record) < AT_ONCE_S


def test_line_moves_on_when_a_queued_client_leaves(start_pool: Callable[..., RunningPool]) -> None:
    """A client that leaves while it queues is struck off at once, and who runs and who waits behind is unaffected."""
    pool = start_pool((*FAKE, "--max-concurrency", "1"))
    running = pool.open_chat(LONG, stream=True)
    wait_until(lambda: pool.active() == 1)
    aboard = pool.open_chat(LONG)  # slots + 1: the next one is with the worker already
    wait_until(lambda: pool.active() == 2)
    queued = [pool.open_chat("fake: tokens@3") for _ in range(3)]
    wait_until(lambda: pool.waiting() == 3)
    queued[0].close()
    queued[1].close()
    wait_until(lambda: pool.waiting() == 1, timeout_s=AT_ONCE_S)
    assert pool.active() == 2
    aboard.close()
    running.close()
    assert b"200 OK" in queued[2].recv(4096)
    queued[2].close()
    wait_until(pool.idle)


def test_nothing_is_left_over_after_200_random_disconnects(
    fake: RunningPool, record: Callable[[str, object], None]
) -> None:
    """200 clients that leave at random moments in random ways leave no request, no row and no file descriptor."""
    assert fake.chat("fake: tokens@3").status == 200
    before = _files(fake)
    outcomes = asyncio.run(_leave_often(fake.port, 200))
    assert min(outcomes.values()) > 5, outcomes
    record("outcomes", outcomes)
    wait_until(fake.idle, what="all slots are free")
    wait_until(lambda: fake.metric("pool_worker_running_rows") == 0, what="the worker has no rows")
    wait_until(lambda: _files(fake) <= before, what=f"{before} open files as before, not {_files(fake)}")
    assert fake.chat("fake: tokens@3").json()["usage"]["completion_tokens"] == 3


def _files(pool: RunningPool) -> int:
    """The gateway's open files but our own connection; a constant where the system does not tell."""
    return open_files(pool.gateway.pid) if sys.platform == "linux" else 1


async def _leave_often(port: int, times: int) -> dict[str, int]:
    chance = random.Random(20)
    outcomes = dict.fromkeys(("half a request", "before the answer", "after some bytes", "at the end"), 0)
    crowd = asyncio.Semaphore(32)

    async def one(outcome: str, seed: int) -> None:
        async with crowd:
            await _leave(port, outcome, random.Random(seed))
            outcomes[outcome] += 1

    await asyncio.gather(*(one(chance.choice([*outcomes]), seed) for seed in range(times)))
    return outcomes


async def _leave(port: int, outcome: str, chance: random.Random) -> None:
    script = f"fake: slow@0.002 prefill@{chance.choice([0, 0.02])} tokens@{chance.randint(1, 60)}"
    fields: dict[str, Any] = {"stream": chance.random() < 0.7, "n": chance.choice([1, 1, 3])}
    path, body = "/v1/chat/completions", chat_body(script, **fields)
    match chance.randint(0, 4):
        case 0:
            path, body = "/v1/completions", {"prompt": [script] * 3, **fields}
        case 1:
            path, body = "/v1/tokenize", {"prompt": "a b c " * 1000}
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = head.encode() + data
    writer.write(request[: len(request) // 2] if outcome == "half a request" else request)
    await writer.drain()
    match outcome:
        case "half a request" | "before the answer":
            await asyncio.sleep(chance.random() * 0.03)
        case "after some bytes":
            await reader.read(chance.randint(1, 2000))
        case "at the end":
            seen = b""
            while not (seen.endswith((b"data: [DONE]\n\n\r\n0\r\n\r\n", b"}")) or b"[DONE]" in seen):
                chunk = await reader.read(65536)
                assert chunk, seen[-200:]
                seen += chunk
    if chance.random() < 0.5:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
