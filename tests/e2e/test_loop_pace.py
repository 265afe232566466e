"""Nothing that the gateway does holds its event loop: asyncio's own debug mode is the witness."""

import json
import threading
from collections.abc import Callable

from crowd import Crowd
from running_pool import FAKE, RunningPool, chat_body

SLOW = "Executing"
"""What asyncio logs of a callback that ran for more than 0.1 s."""


def test_no_callback_is_slow_under_a_mixed_load(start_pool: Callable[..., RunningPool]) -> None:
    """Streams, whole answers, large bodies, refusals, metrics and departures at once: no callback takes 0.1 s."""
    pool = start_pool(FAKE, FAKE, environment={"PYTHONASYNCIODEBUG": "1"})
    streams = [chat_body("fake: slow@0.002 tokens@300", stream=True, n=1 + at % 3) for at in range(16)]
    whole = [chat_body("fake: slow@0.002 tokens@200") for _ in range(8)]
    crowd = Crowd(pool, [*streams, *whole])
    large = json.dumps(chat_body("word " * 200_000, max_tokens=1)).encode()
    deep = b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}"

    def trouble() -> None:
        kind = {"Content-Type": "application/json"}
        for _ in range(5):
            pool.request("POST", "/v1/tokenize", {"prompt": "a b c " * 50_000})
            pool.request("POST", "/v1/chat/completions", large, headers=kind)
            pool.request("POST", "/v1/chat/completions", deep, headers=kind)
            pool.chat(temperature=9)
            pool.get("/metrics")
            pool.get("/openapi.json")
            pool.get("/v1/queue/stats")
            pool.open_chat("fake: slow@0.01", stream=True).close()

    threads = [threading.Thread(target=trouble) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(client.well_formed and client.code is None for client in crowd.join())
    slow = [line for line in pool.gateway.text().splitlines() if SLOW in line]
    assert not slow, slow
