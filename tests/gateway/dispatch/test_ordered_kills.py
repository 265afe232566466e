"""Whom an engine's end is held against, when it was the gateway, or an operator, who ended it."""

import pytest

from protocol.messages import KillEngine, Watch
from tests.support.dispatch_rig import Rig, failure_code, supervision


@pytest.fixture
def supervised(rig: Rig) -> Rig:
    """A pool with a worker and its supervisor."""
    rig.join()
    rig.supervise(supervision())
    return rig


async def test_a_request_is_not_blamed_when_its_worker_is_killed_before_it_had_begun(supervised: Rig) -> None:
    """It was sent, and nothing was heard of it: the kill was for something else."""
    flights = [supervised.submit() for _ in range(2)]
    supervised.receiver.remove_worker(supervised.registry.workers[b"w1"], "its engine made no progress", kill=True)
    assert [order for _, order in supervised.sent(KillEngine)] == [KillEngine("w1", "its engine made no progress")]
    assert [flight.suspect for flight in flights] == [False, False]
    supervised.join("w2")
    # Together, as innocent requests are: suspects would be tried one by one.
    assert [flight.worker.uid for flight in flights if flight.worker] == ["w2", "w2"]


async def test_a_request_is_blamed_when_its_worker_is_killed_while_it_runs(supervised: Rig) -> None:
    """A stall that a running request may have caused is held against it, and against it alone."""
    running, unheard = supervised.submit(), supervised.submit()
    supervised.accept(running)
    supervised.receiver.remove_worker(supervised.registry.workers[b"w1"], "its engine made no progress", kill=True)
    assert (running.suspect, unheard.suspect) == (True, False)


async def test_a_request_that_had_begun_elsewhere_is_not_blamed_when_its_next_worker_is_killed(rig: Rig) -> None:
    """What counts is this attempt."""
    first = rig.join()
    flight = rig.submit()
    rig.accept(flight)
    rig.supervise(supervision(watch=Watch.DRAINING))
    rig.lose(first)
    assert not flight.suspect
    rig.receiver.remove_worker(rig.join("w2"), "nothing was heard of it for too long", kill=True)
    assert not flight.suspect


@pytest.mark.parametrize("leaves", ["told to drain", "supervisor leaves"])
async def test_a_request_is_not_blamed_when_its_worker_was_to_leave(supervised: Rig, leaves: str) -> None:
    """Also where the engine is too stuck to say so itself, and is killed in the end."""
    flight = supervised.submit()
    supervised.accept(flight)
    if leaves == "told to drain":
        supervised.registry.supervisors[b"sup"].ending = "w1"
    else:
        supervised.supervise(supervision(watch=Watch.DRAINING))
    supervised.lose(supervised.registry.workers[b"w1"])
    assert not flight.suspect


async def test_everybody_aboard_is_suspected_when_an_engine_crashes(supervised: Rig) -> None:
    """A death that nobody ordered may be of what had only just been sent."""
    flights = [supervised.submit() for _ in range(2)]
    supervised.accept(flights[0])
    supervised.lose(supervised.registry.workers[b"w1"])
    assert [flight.suspect for flight in flights] == [True, True]


async def test_a_request_is_given_up_when_workers_are_killed_each_time_before_it_begins(rig: Rig) -> None:
    """It may be what holds them up, unseen: after five it is told to come again later, and refused to nobody."""
    rig.join("w0")
    rig.supervise(supervision("w0"))
    flight = rig.submit()
    for at in range(5):
        assert flight.open
        rig.receiver.remove_worker(rig.registry.workers[b"w%d" % at], "nothing was heard of it for too long", kill=True)
        if flight.open:
            rig.join(f"w{at + 1}")
    assert failure_code(flight) == "worker_lost"
    assert not rig.dispatcher.quarantine.refused


async def test_restarts_are_named_when_they_repeat(supervised: Rig) -> None:
    """Also while an engine is ready in between; not those that somebody asked for; and not for ever."""
    assert supervised.model.restarts.reason is None
    for restarts in (1, 2):
        supervised.supervise(supervision(f"x{restarts}", restarts=restarts, ended="its engine made no progress"))
    assert supervised.model.state == "ready"
    assert supervised.model.restarts.reason == "restarted 2 times in 10 minutes: its engine made no progress"
    supervised.supervise(supervision("x3", restarts=3, ended=""))
    supervised.supervise(supervision("x3", restarts=3, ended=""))
    supervised.supervise(supervision("x5", restarts=5, ended="it died of SIGSEGV"))
    assert supervised.model.restarts.reason == "restarted 4 times in 10 minutes: it died of SIGSEGV"
    supervised.clock.now += 601
    supervised.model.restarts.forget_old(supervised.clock())
    assert supervised.model.restarts.reason is None
