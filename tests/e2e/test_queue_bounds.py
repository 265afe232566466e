"""A queue that is full says so at once; one that takes too long says that trying again is no use."""

import time
from collections.abc import Callable

import pytest
from stress.running_pool import FAKE, RunningPool, wait_until

SMALL = (*FAKE, "--max-concurrency", "1", "--queue-size", "1")
LONG = "fake: slow@0.05 tokens@4000"


@pytest.fixture
def full(start_pool: Callable[..., RunningPool]) -> RunningPool:
    """A pool whose slot and room are taken."""
    return filled(start_pool(SMALL))


def filled(pool: RunningPool) -> RunningPool:
    """The same pool, once its slot and its room are taken."""
    for _ in range(2):
        pool.open_chat(LONG, stream=True)
    wait_until(lambda: pool.active() == 2, what="slots + 1 are aboard")
    return pool


def test_request_is_refused_when_the_queue_is_full(full: RunningPool) -> None:
    """429 that says when to come back in both headers, in OpenAI's shape and as top-level `detail`."""
    waiting = full.open_chat(LONG)
    wait_until(lambda: full.waiting() == 1)
    for stream in (True, False):
        answer = full.chat("one too many", stream=stream)
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) <= 1000 * int(answer.headers["retry-after"])
        assert "x-should-retry" not in answer.headers
        assert answer.error["code"] == "queue_full"
        assert answer.error["type"] == "rate_limit_error"
        assert answer.json()["detail"] == answer.error["message"] == "Too many requests. Service is at capacity."
    waiting.close()


def test_room_is_there_again_when_the_running_request_ends(full: RunningPool) -> None:
    """A pool that refused takes requests as soon as it can."""
    full.hang_up()
    wait_until(full.idle)
    assert full.chat("fake: tokens@3").status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_waiting_ends_with_504_when_the_queue_timeout_is_over(
    start_pool: Callable[..., RunningPool], stream: bool
) -> None:
    """504, not to be retried, after the time-out; streams get it as a status, too."""
    full = filled(start_pool((*SMALL, "--queue-timeout", "1")))
    began = time.monotonic()
    answer = full.chat("too late", stream=stream)
    took_s = time.monotonic() - began
    assert answer.status == 504
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert answer.error["code"] == "queue_timeout"
    assert 1.0 <= took_s < 30.0
    assert full.waiting() == 0
