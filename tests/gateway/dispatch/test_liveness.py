"""Silence and standstill, by a clock that the test moves."""

import pytest
from dispatch_rig import Rig, supervision

from protocol.messages import Beat, State


def beat(state: State = State.READY, *, busy: bool = False, step_age_s: float = 0.0) -> Beat:
    return Beat(state, 1, step_age_s, busy)


def pass_time(rig: Rig, seconds: float) -> None:
    """Time passes while the gateway keeps looking."""
    for _ in range(round(seconds * 4)):
        rig.clock.now += 0.25
        rig.liveness.look(rig.clock())


async def test_a_worker_is_silent_when_nothing_came_for_five_seconds(rig: Rig) -> None:
    """Any frame counts as a sign of life."""
    worker = rig.join()
    pass_time(rig, 4.5)
    rig.feed(b"w1", beat())
    pass_time(rig, 5.0)
    assert rig.liveness.silent_workers(rig.clock()) == []
    pass_time(rig, 0.5)
    assert rig.liveness.silent_workers(rig.clock()) == [worker]


@pytest.mark.parametrize("state", [State.LOADING, State.WARMING])
async def test_a_worker_may_be_silent_for_longer_when_it_loads(rig: Rig, state: State) -> None:
    """Loading holds the interpreter for seconds."""
    worker = rig.join(state=state, ready=False)
    pass_time(rig, 59)
    assert rig.liveness.silent_workers(rig.clock()) == []
    pass_time(rig, 2)
    assert rig.liveness.silent_workers(rig.clock()) == [worker]


async def test_a_supervisor_is_silent_when_its_beats_stop(rig: Rig) -> None:
    """The same patience as with workers."""
    rig.supervise(supervision())
    pass_time(rig, 4)
    rig.supervise(supervision())
    pass_time(rig, 4)
    assert rig.liveness.silent_supervisors(rig.clock()) == []
    pass_time(rig, 2)
    assert [found.identity for found in rig.liveness.silent_supervisors(rig.clock())] == [b"sup"]


async def test_nobody_is_silent_when_it_was_the_gateway_that_slept(rig: Rig) -> None:
    """After a suspended machine wakes, its peers get their full time."""
    worker = rig.join()
    rig.supervise(supervision())
    rig.clock.now += 3600
    rig.liveness.look(rig.clock())
    assert rig.liveness.silent_workers(rig.clock()) == []
    assert rig.liveness.silent_supervisors(rig.clock()) == []
    pass_time(rig, 5.5)
    assert rig.liveness.silent_workers(rig.clock()) == [worker]


@pytest.mark.parametrize(
    ("sign", "stalled"),
    [
        (beat(busy=True, step_age_s=61), True),
        (beat(busy=True, step_age_s=59), False),
        (beat(busy=False, step_age_s=1e6), False),
        (beat(State.LOADING, busy=True, step_age_s=600), False),
        (beat(State.DRAINING, busy=True, step_age_s=61), True),
    ],
)
async def test_an_engine_is_stalled_when_it_has_work_and_makes_no_step(rig: Rig, sign: Beat, stalled: bool) -> None:
    """Beats from the IO thread do not hide a dead loop; idle and loading engines are not blamed."""
    worker = rig.join()
    rig.feed(b"w1", sign)
    assert rig.liveness.stalled_workers() == ([worker] if stalled else [])
