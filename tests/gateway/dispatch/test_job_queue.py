"""The line in front of a model."""

import pytest
from dispatch_rig import Rig


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
    assert rig.model.queue.expired(rig.clock.now) == [old]


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
