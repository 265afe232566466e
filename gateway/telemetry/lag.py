"""How long the event loop was held, by a timer; and what held it, by a thread that looks when the timer is late."""

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType

from aiohttp import web

from gateway.telemetry.logs import LineBudget

TICK_S = 0.05
ALARM_S = 0.25
"""A loop that was held for longer is worth a line."""
RECENT_S = 60.0
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROOT = str(Path(__file__).parents[2])

log = logging.getLogger(__name__)


class LoopLag:
    """Measures by how much later than asked the loop calls back."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        """Measurements up to each bound, and beyond the last."""
        self.total_s = 0.0
        self._recent: deque[tuple[float, float]] = deque()
        self._lines = LineBudget(burst=5, period_s=10.0)
        self._due = 0.0
        self._cpu_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()
        self._culprit = ""
        self._thread_id = 0

    def start(self) -> None:
        """Begin, in the loop's own thread."""
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._schedule()
        threading.Thread(target=self._watch, name="loop-lag", daemon=True).start()

    def stop(self) -> None:
        """Stop measuring."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def recent_s(self) -> float:
        """The longest of the last minute."""
        self._forget(time.monotonic())
        return max((lag_s for _, lag_s in self._recent), default=0.0)

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts, as Prometheus has them."""
        found, total = [], 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found

    def _schedule(self) -> None:
        self._due = time.monotonic() + TICK_S
        self._cpu_s = time.thread_time()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self.record_lag(max(0.0, now - self._due), time.thread_time() - self._cpu_s, now)
        self._schedule()

    def record_lag(self, lag_s: float, cpu_s: float, now: float) -> None:
        """Count one measurement: `lag_s` late, of which this thread computed for `cpu_s` seconds."""
        self.counts[sum(lag_s > bound for bound in BOUNDS_S)] += 1
        self.total_s += lag_s
        if lag_s > BOUNDS_S[0]:
            self._forget(now)
            # Of those before it only longer ones matter.
            while self._recent and self._recent[-1][1] <= lag_s:
                self._recent.pop()
            self._recent.append((now, lag_s))
        culprit, self._culprit = self._culprit, ""
        if lag_s > ALARM_S and (skipped := self._lines.take_line()) is not None:
            log.warning(
                "The event loop was held for %.2f s, %.2f s of it computing%s%s",
                lag_s,
                cpu_s,
                f", in {culprit}" if culprit else "",
                skipped,
            )

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > RECENT_S:
            self._recent.popleft()

    def _watch(self) -> None:
        """See where the loop's thread is while its timer is late. Runs in a thread of its own."""
        while not self._ended.wait(ALARM_S / 2):
            # Not kept in a variable: until the next look, a frame would keep all that its functions had in hand.
            late = time.monotonic() - self._due > ALARM_S / 2
            if late and (found := _where(sys._current_frames().get(self._thread_id))):
                self._culprit = found


def _where(frame: FrameType | None) -> str:
    """Return the innermost function of this project on a stack; else the innermost one."""
    first = frame
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOT) and "site-packages" not in file and file != __file__:
            return _name(frame)
        frame = frame.f_back
    return _name(first) if first is not None else ""


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}:{frame.f_lineno}"


LAG: web.AppKey[LoopLag] = web.AppKey("lag", LoopLag)


async def measure_lag(app: web.Application) -> AsyncIterator[None]:
    """Measure for as long as the application runs."""
    app[LAG].start()
    yield
    app[LAG].stop()
