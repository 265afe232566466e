"""Waiting for what a process does: bounded by the time that it had, not by the time that others took from it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 60.0

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    *,
    timeout_s: float = PATIENCE_S,
    what: str = "",
    every_s: float = 0.005,
    starved_s: Callable[[], float] = lambda: 0.0,
) -> T:
    """Ask again and again until the answer is true; returns that answer. `starved_s` of the time do not count."""
    began = time.monotonic()
    while True:
        answer = condition()
        if answer:
            return answer
        waited_s = time.monotonic() - began
        assert waited_s < timeout_s or waited_s - starved_s() < timeout_s, (
            f"not within {timeout_s:g} s: {what or condition}"
        )
        time.sleep(every_s)


def starved_s(pid: int) -> float:
    """Return how long a process was ready to run while others ran, so far; 0 where the system does not tell.

    Four busy loops on two cores leave one of low priority a sixtieth: half a second of work takes half a minute.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
