"""What an engine process shows of itself: the phase with its clock, and work done in preparation."""

import threading
import time

import pytest

from protocol.messages import State
from worker.process.heartbeat import StepClock
from worker.work import OwnWork


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("load_s", [61.0, 75.0, 300.0, 1800.0])
def test_step_clock_starts_anew_when_the_engine_becomes_ready(load_s: float) -> None:
    """However long it loaded: the first reading that says ready has nothing to do, and is no second old."""
    clock = Clock()
    step_clock = StepClock(clock)
    clock.now += load_s
    before = step_clock.read_state()
    assert (before.state, before.busy) == (State.LOADING, False)
    step_clock.enter_state(State.WARMING)
    clock.now += 120.0
    step_clock.enter_state(State.READY)
    after = step_clock.read_state()
    assert (after.state, after.busy, step_clock.age_s(after)) == (State.READY, False, 0.0)


def test_reading_is_of_one_moment_when_the_phase_changes_meanwhile() -> None:
    """What was read before stays together: an old age never goes with a new phase."""
    clock = Clock()
    step_clock = StepClock(clock)
    step_clock.mark_busy()
    before = step_clock.read_state()
    clock.now += 99.0
    step_clock.enter_state(State.READY)
    assert (before.state, step_clock.age_s(before)) == (State.LOADING, 99.0)
    assert step_clock.age_s(step_clock.read_state()) == 0.0


def test_work_is_counted_when_another_thread_computes() -> None:
    """Whatever it computes: nobody has to report it."""
    work = OwnWork()
    first = work.count_work()
    busy = threading.Thread(target=lambda: sum(range(2_000_000)))
    busy.start()
    busy.join()
    assert work.count_work() == first + 1


def test_work_is_not_counted_when_only_its_own_thread_computes() -> None:
    """Beating is no progress."""
    work = OwnWork()
    first = work.count_work()
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
    time.sleep(0.05)
    assert work.count_work() == first
