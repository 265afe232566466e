"""Silence and standstill, by a clock that the test moves."""

import pytest

from protocol.messages import Beat, State
from tests.support.dispatch_rig import Rig, readiness, supervision


def beat(state: State = State.READY, *, busy: bool = False, step_age_s: float = 0.0) -> Beat:
    return Beat(state, 1, step_age_s, busy)


def pass_time(rig: Rig, seconds: float) -> None:
    """Time passes while the gateway keeps looking."""
    for _ in range(round(seconds * 4)):
        rig.clock.now += 0.25
        rig.liveness.note_time(rig.clock())


async def test_a_worker_is_silent_when_nothing_came_for_five_seconds(rig: Rig) -> None:
    """Any frame counts as a sign of life."""
    worker = rig.join()
    pass_time(rig, 4.5)
    rig.feed(b"w1", beat())
    pass_time(rig, 5.0)
    assert rig.liveness.silent_workers(rig.clock()) == []
    pass_time(rig, 0.5)
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
    rig.liveness.note_time(rig.clock())
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
    pass_time(rig, 61)
    rig.feed(b"w1", sign)
    assert rig.liveness.stalled_workers(rig.clock()) == ([worker] if stalled else [])


async def test_an_engine_is_not_stalled_when_its_steps_go_on(rig: Rig) -> None:
    """Each step seen starts the time anew, whatever age a beat tells."""
    rig.join()
    for step in range(10):
        rig.feed(b"w1", Beat(State.READY, step, 99.0, True))
        pass_time(rig, 20)
        assert rig.liveness.stalled_workers(rig.clock()) == []


async def test_nobody_is_stalled_when_it_was_the_whole_machine_that_slept(rig: Rig) -> None:
    """A container that was frozen for an hour: the age that an engine tells then is nobody's fault."""
    worker = rig.join()
    rig.feed(b"w1", beat(busy=True, step_age_s=0.5))
    rig.clock.now += 3600
    rig.liveness.note_time(rig.clock())
    rig.feed(b"w1", beat(busy=True, step_age_s=3600.5))
    assert rig.liveness.stalled_workers(rig.clock()) == []
    pass_time(rig, 61)
    assert rig.liveness.stalled_workers(rig.clock()) == [worker]


def nobody_is_blamed(rig: Rig) -> bool:
    """Whether the gateway finds fault with no worker at all."""
    now = rig.clock()
    verdicts = (rig.liveness.silent_workers(now), rig.liveness.stalled_workers(now), rig.liveness.stuck_workers(now))
    return verdicts == ([], [], [])


@pytest.mark.parametrize("load_s", [61, 75, 300, 1800])
@pytest.mark.parametrize("waiting", [0, 3])
async def test_a_worker_is_left_alone_when_it_loads_long_and_gets_on(rig: Rig, load_s: int, waiting: int) -> None:
    """However long, with and without requests that wait for it; then it warms up for two minutes, and serves."""
    worker = rig.join(state=State.LOADING, ready=False)
    flights = [rig.submit() for _ in range(waiting)]
    progress = 0
    for state, lasts_s in ((State.LOADING, load_s), (State.WARMING, 120)):
        for _ in range(lasts_s):
            progress += 1
            rig.feed(b"w1", Beat(state, 0, 0.0, False, progress=progress))
            pass_time(rig, 1)
            assert nobody_is_blamed(rig)
    # As every worker did once: the first beat behind `Ready` with the age of the process, and busy.
    rig.feed(b"w1", readiness(), Beat(State.READY, 0, load_s + 120.0, True, progress=progress))
    assert nobody_is_blamed(rig)
    pass_time(rig, 1)
    assert nobody_is_blamed(rig)
    assert [flight.worker for flight in flights] == [worker] * waiting


@pytest.mark.parametrize("state", [State.LOADING, State.WARMING])
async def test_a_worker_is_stuck_when_it_loads_and_does_nothing(rig: Rig, state: State) -> None:
    """Beats alone are no progress; it is noticed after the load time-out, and not before."""
    worker = rig.join(state=state, ready=False)
    for second in range(301):
        rig.feed(b"w1", Beat(state, 0, 0.0, False, progress=5))
        assert nobody_is_blamed(rig), second
        pass_time(rig, 1)
    assert rig.liveness.stuck_workers(rig.clock()) == [worker]


async def test_a_worker_is_not_stuck_when_it_can_not_say_how_far_it_is(rig: Rig) -> None:
    """One of an older version tells no progress: its beats have to do."""
    worker = rig.join(state=State.LOADING, ready=False)
    for _ in range(400):
        rig.feed(b"w1", beat(State.LOADING))
        pass_time(rig, 1)
        assert nobody_is_blamed(rig)
    pass_time(rig, 302)
    assert rig.liveness.stuck_workers(rig.clock()) == [worker]


async def test_a_silent_worker_is_not_stuck_when_its_process_works(rig: Rig) -> None:
    """A load that holds the interpreter for half an hour can't beat; its supervisor sees it work."""
    worker = rig.join(state=State.LOADING, ready=False)
    rig.supervise(supervision(work=1))
    rig.feed(b"w1", Beat(State.LOADING, 0, 0.0, False, progress=1))
    for second in range(1800):
        pass_time(rig, 1)
        rig.supervise(supervision(work=2 + second))
        assert nobody_is_blamed(rig)
    for _ in range(301):
        pass_time(rig, 1)
        rig.supervise(supervision(work=1801))
    assert rig.liveness.stuck_workers(rig.clock()) == [worker]


async def test_a_serving_worker_is_silent_for_a_minute_when_its_process_works(rig: Rig) -> None:
    """Something holds its interpreter: it is not gone. But nothing may hold it for ever."""
    worker = rig.join()
    rig.supervise(supervision(work=1))
    for second in range(60):
        pass_time(rig, 1)
        rig.supervise(supervision(work=2 + second))
        assert rig.liveness.silent_workers(rig.clock()) == []
    pass_time(rig, 1)
    rig.supervise(supervision(work=99))
    assert rig.liveness.silent_workers(rig.clock()) == [worker]


async def test_a_serving_worker_is_silent_after_five_seconds_when_its_process_does_nothing(rig: Rig) -> None:
    """Frozen: its supervisor goes on reporting, and sees no work."""
    worker = rig.join()
    rig.supervise(supervision(work=1))
    rig.feed(b"w1", beat())
    rig.supervise(supervision(work=7))
    for _ in range(5):
        pass_time(rig, 1)
        rig.supervise(supervision(work=7))
    pass_time(rig, 0.25)
    assert rig.liveness.silent_workers(rig.clock()) == [worker]


async def test_a_start_is_stuck_when_its_process_never_speaks_and_does_nothing(rig: Rig) -> None:
    """One that hangs before it can connect is noticed, too; one that works, or whose work is not known, is not."""
    rig.supervise(supervision("w1", work=5))
    rig.supervise(supervision("w2", work=5), b"other")
    rig.supervise(supervision("w3"), b"untold")
    for second in range(301):
        assert rig.liveness.stuck_starts(rig.clock()) == [], second
        pass_time(rig, 1)
        rig.supervise(supervision("w1", work=5))
        rig.supervise(supervision("w2", work=6 + second), b"other")
        rig.supervise(supervision("w3"), b"untold")
    assert [found.identity for found in rig.liveness.stuck_starts(rig.clock())] == [b"sup"]
    rig.receiver.order_kill(rig.registry.supervisors[b"sup"], "stuck")
    assert rig.liveness.stuck_starts(rig.clock()) == []
