"""How long the event loop was held is measured, and what held it is named."""

import asyncio
import logging
import re
import time
import weakref
from pathlib import Path

import pytest

from gateway.telemetry import lag as module
from gateway.telemetry.lag import BOUNDS_S, RECENT_S, LoopLag
from tests.support.raw_clients import MASTER, raw_site, wait_until

pytestmark = pytest.mark.alone


def hold(seconds: float) -> None:
    """Compute for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def test_loop_that_is_held_is_told_with_what_held_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line with seconds, how much of them were computing, and the function; in the histogram and the maximum, too."""
    monkeypatch.setattr(module, "ROOT", str(Path(__file__).parent))
    lag = LoopLag()
    lag.start()
    try:
        await wait_until(lambda: sum(lag.counts) >= 2)
        hold(0.6)
        await wait_until(lambda: lag.recent_s > 0.25)
    finally:
        lag.stop()
    told = [one.getMessage() for one in caplog.records if "The event loop was held" in one.getMessage()]
    found = re.search(r"held for (\d\.\d\d) s, (\d\.\d\d) s of it computing, in (\S+)\.hold:\d+", told[-1])
    assert found, told
    assert float(found[1]) > 0.4
    assert float(found[2]) > 0.4
    assert lag.buckets()[-1] == ("+Inf", sum(lag.counts))
    assert sum(lag.counts[BOUNDS_S.index(0.5) :]) >= 1


async def test_nothing_is_kept_of_what_held_the_loop() -> None:
    """The watcher looks at a stack; what its functions had in hand, such as a parsed body, goes with them."""

    class Payload:
        pass

    def compute() -> "weakref.ref[Payload]":
        payload = Payload()
        hold(0.6)
        return weakref.ref(payload)

    lag = LoopLag()
    lag.start()
    try:
        await wait_until(lambda: sum(lag.counts) >= 2)
        seen = compute()
        await wait_until(lambda: lag.recent_s > 0.25)
        # A look that began while the loop was held may last a moment longer.
        await wait_until(lambda: seen() is None)
    finally:
        lag.stop()


def test_longest_lag_is_that_of_the_last_minute() -> None:
    """Later and longer ones replace it; after a minute it is forgotten."""
    lag = LoopLag()
    now = time.monotonic()
    lag.record_lag(3.0, 0.0, now - RECENT_S - 1)
    assert lag.recent_s == 0.0
    for at, lag_s in enumerate((0.02, 0.2, 0.1)):
        lag.record_lag(lag_s, 0.0, now + at / 100)
    assert lag.recent_s == 0.2


def test_lines_are_bounded_when_the_loop_is_held_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    """Some, then few, that say how many were left out."""
    lag = LoopLag()
    for at in range(100):
        lag.record_lag(0.5, 0.5, float(at))
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 5


async def test_metrics_tell_the_lag(tmp_path: Path) -> None:
    """As a histogram, and the longest of late."""
    async with raw_site(tmp_path) as site:
        await asyncio.sleep(0.15)
        text = (await site.get("/metrics", f"Authorization: Bearer {MASTER}")).body.decode()
    assert re.search(r'pool_event_loop_lag_seconds_bucket\{le="0.25"\} [1-9]', text)
    assert "pool_event_loop_lag_longest_seconds" in text
