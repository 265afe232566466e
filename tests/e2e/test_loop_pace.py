"""Nothing that the gateway does holds its event loop: asyncio's own debug mode is the witness."""

import threading
from collections.abc import Callable

from stress.clients import ParallelClients
from stress.running_pool import FAKE, RunningPool, chat_body

SLOW = "Executing"
"""What asyncio logs of a callback that ran for more than 0.1 s."""


def test_no_callback_is_slow_under_a_mixed_load(start_pool: Callable[..., RunningPool]) -> None:
    """Streams, whole answers, large bodies, refusals, metrics and departures at once: no callback takes 0.1 s.

    Where other programs take the processor away, innocent callbacks are named; what really blocks is named each time.
    """
    pool = start_pool(FAKE, FAKE, environment={"PYTHONASYNCIODEBUG": "1"})
    rounds = []
    for _ in range(3):
        seen = len(pool.gateway.text())
        load(pool)
        rounds.append([line for line in pool.gateway.text()[seen:].splitlines() if SLOW in line])
        if not rounds[-1]:
            break
    assert not rounds[-1], rounds


def load(pool: RunningPool) -> None:
    """Some seconds of everything."""
    streams = [chat_body("fake: slow@0.002 tokens@300", stream=True, n=1 + at % 3) for at in range(16)]
    whole = [chat_body("fake: slow@0.002 tokens@200") for _ in range(8)]
    crowd = ParallelClients(pool, [*streams, *whole])
    threads = [threading.Thread(target=trouble, args=(pool,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(client.well_formed and client.code is None for client in crowd.join())


def trouble(pool: RunningPool) -> None:
    """Requests that cost more than others, or end otherwise."""
    large = chat_body("word " * 200_000, max_tokens=1)
    deep = b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}"
    for _ in range(5):
        assert pool.post("/v1/tokenize", {"prompt": "a b c " * 50_000}).status == 200
        assert pool.post("/v1/chat/completions", large).status == 400
        assert pool.post("/v1/chat/completions", deep, headers={"Content-Type": "application/json"}).status == 400
        assert pool.chat(temperature=9).status == 400
        for path in ("/metrics", "/openapi.json", "/v1/queue/stats"):
            assert pool.get(path).status == 200
        pool.open_chat("fake: slow@0.01", stream=True).close()
