"""Clients that stop reading, and clients that must hear something while they wait."""

import contextlib
import re
import statistics
import time
from collections.abc import Callable

import pytest
from stress.clients import ParallelClients
from stress.running_pool import FAKE, RunningPool, chat_body, wait_until

FLOOD = "fake: slow@0.001 tokens@100000"
PACED = "fake: slow@0.001 tokens@4000"
WRITE_TIMEOUT_S = 2


def test_client_is_dropped_when_it_stops_reading(
    start_pool: Callable[..., RunningPool], record: Callable[[str, object], None]
) -> None:
    """Who reads nothing is cut off once the system's buffers are full and the write time-out is over, and its job
    ends; who reads sees no pause."""
    pool = start_pool(FAKE, gateway=("--write-timeout", str(WRITE_TIMEOUT_S)))
    # Eight choices: their frames fill megabytes of socket buffers in seconds.
    stuck = [pool.open_chat(FLOOD, stream=True, n=8, max_tokens=100_000) for _ in range(2)]
    wait_until(lambda: pool.active() == 2)
    crowd = ParallelClients(pool, [chat_body(PACED, stream=True, max_tokens=4000) for _ in range(4)])
    wait_until(lambda: pool.gateway.text().count("Client stopped reading") == 2, what="both are dropped")
    wait_until(lambda: pool.active() <= 4, what="their jobs have ended")
    assert all(client.well_formed and client.streamed.whole for client in crowd.join())
    gaps = [
        later - earlier
        for client in crowd.clients
        for earlier, later in zip(client.arrivals, client.arrivals[1:], strict=False)
    ]
    record("gaps_ms", [round(1000 * value, 1) for value in (statistics.median(gaps), max(gaps))])
    assert max(gaps) < WRITE_TIMEOUT_S, "as long as one would wait for a client that reads nothing"
    for connection in stuck:
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                received += chunk
        assert b"[DONE]" not in received
        assert not received.endswith(b"\r\n0\r\n\r\n"), "cut off, not ended"


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_comments_keep_the_connection_alive_when_the_prompt_takes_long(
    start_pool: Callable[..., RunningPool], endpoint: str
) -> None:
    """With `POOL_SSE_PING_INTERVAL=0.2`, comments bridge a prefill of a second, no more than needed; tokens follow."""
    pool = start_pool(FAKE, environment={"POOL_SSE_PING_INTERVAL": "0.2"})
    script = "fake: prefill@1.2 tokens@5"
    if endpoint == "chat":
        connection = pool.open_chat(script, stream=True)
    else:
        connection = pool.open("/v1/completions", {"prompt": script, "stream": True})
    received, began = b"", time.monotonic()
    with connection:
        while b"[DONE]" not in received:
            received += connection.recv(65536)
    took_s = time.monotonic() - began
    token = re.search(rb'"(content|text)":"[^"]', received)
    assert token
    assert received[: token.start()].count(b": keep-alive\n\n") >= 3
    assert received.count(b": keep-alive") <= took_s / 0.2 + 1
    assert received.count(b"data: ") >= 2
