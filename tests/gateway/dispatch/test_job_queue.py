"""The line in front of a model."""

import pytest

from tests.support.dispatch_rig import Rig, failure_code, generate, readiness


async def test_jobs_leave_in_the_order_they_came_when_slots_free_up(rig: Rig) -> None:
    """First come, first served."""
    rig.join(slots=1)
    flights = [rig.submit() for _ in range(5)]
    order = []
    for _ in range(5):
        running = next(flight for flight in flights if flight.worker is not None)
        order.append(running.id)
        rig.done(running)
    assert order == [flight.id for flight in flights]


async def test_push_front_goes_first_and_above_capacity_when_full(rig: Rig) -> None:
    """A job that lost its worker is not refused for want of room."""
    rig.join(slots=1, queue_size=1, ready=False)
    queue = rig.model.queue
    waiting, extra = rig.submit(), rig.submit()
    assert (len(queue), queue.full) == (1, True)
    queue.push_front(extra, 0.0)
    assert (len(queue), queue.head) == (2, extra)
    assert queue.remove(extra)
    assert not queue.remove(extra)
    assert queue.head is waiting


async def test_expired_finds_everyone_overdue_when_the_front_waited_anew(rig: Rig) -> None:
    """A re-queued head with time left does not shield those behind it."""
    rig.join(ready=False, queue_timeout_s=10.0)
    old = rig.submit()
    rig.clock.now += 9
    again = rig.submit()
    rig.model.queue.remove(again)
    rig.model.queue.push_front(again, rig.clock.now)
    rig.clock.now += 1.1
    assert rig.model.queue.find_expired(rig.clock.now) == [old]


@pytest.mark.parametrize(("announced", "kept"), [(5, 5), (0, 0), (-3, 0)])
async def test_capacity_follows_the_workers_when_they_announce(rig: Rig, announced: int, kept: int) -> None:
    """The bound is the workers' to set, and never negative."""
    rig.join(queue_size=announced)
    assert rig.model.queue.capacity == kept


@pytest.mark.parametrize(("announced", "kept"), [(5.0, 5.0), (float("nan"), 300.0), (-1.0, 300.0), (0.0, 300.0)])
async def test_timeout_falls_back_when_a_worker_announces_nonsense(rig: Rig, announced: float, kept: float) -> None:
    """No job waits for ever, or not at all, because of a bad number."""
    rig.join(queue_timeout_s=announced)
    assert rig.model.queue.timeout_s == kept


def names(rig: Rig, count: int) -> list[str]:
    """Who is served next, `count` times."""
    served = []
    for _ in range(count):
        running = next(iter(rig.registry.workers.values())).in_flight
        flight = next(iter(running.values()))
        served.append(f"{flight.tenant}{flight.priority or ''}")
        rig.done(flight)
    return served


async def test_callers_take_turns_when_one_sends_many(rig: Rig) -> None:
    """A single request of another caller waits for one of the crowd, not for all."""
    rig.join(slots=1)
    for _ in range(6):
        rig.submit(generate(tenant="a"))
    rig.submit(generate(tenant="b"))
    for _ in range(2):
        rig.submit(generate(tenant="c"))
    assert names(rig, 9) == ["a", "a", "a", "b", "c", "a", "c", "a", "a"]


async def test_priorities_go_first_when_they_wait(rig: Rig) -> None:
    """priority before default before flex, whoever asks; within each, in turn."""
    rig.join(slots=1, ready=False)
    for tenant, priority in (("a", -1), ("b", 0), ("a", 0), ("a", 1), ("a", 1), ("b", 1)):
        rig.submit(generate(tenant=tenant, priority=priority))
    rig.feed(b"w1", readiness())
    for flight in [*rig.dispatcher.table.jobs.values()]:
        if flight.worker is not None:
            rig.accept(flight)
    assert names(rig, 6) == ["a1", "b1", "a1", "b", "a", "a-1"]


async def test_last_of_the_crowd_makes_room_when_another_caller_finds_the_line_full(rig: Rig) -> None:
    """Who holds most places loses the newest of them, down to equal shares; alone, a caller is refused as ever."""
    rig.join(ready=False, queue_size=4)
    crowd = [rig.submit(generate(tenant="a")) for _ in range(4)]
    assert failure_code(rig.submit(generate(tenant="a"))) == "queue_full"
    first, second, third = (rig.submit(generate(tenant="b")) for _ in range(3))
    assert [failure_code(flight) for flight in crowd] == [None, None, "queue_full", "queue_full"]
    assert [failure_code(flight) for flight in (first, second, third)] == [None, None, "queue_full"]
    assert len(rig.model.queue) == 4
    urgent = generate(tenant="c", priority=-1)
    assert failure_code(rig.submit(urgent)) == "queue_full"


async def test_turn_is_kept_when_a_waiting_request_is_cancelled(rig: Rig) -> None:
    """Leaving from the middle of the line changes nobody's turn; empty lines leave nothing behind."""
    rig.join(slots=1)
    flights = [rig.submit(generate(tenant=tenant)) for tenant in "aaaabab"]
    rig.dispatcher.release_job(flights[3])
    assert names(rig, 6) == ["a", "a", "a", "b", "a", "b"]
    assert len(rig.model.queue) == 0
    assert rig.model.queue.head is None
