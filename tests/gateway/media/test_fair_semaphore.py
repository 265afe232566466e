"""Places and who gets them: never all to one, next to whoever holds fewest, none lost."""

import asyncio

import pytest

from gateway.media.fair_semaphore import FairSemaphore


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def want(places: FairSemaphore, tenant: str, count: int, host: str = "") -> list[asyncio.Task[None]]:
    """So many takers, each of another host or all of one."""
    return [asyncio.create_task(places.acquire(tenant, host or f"{tenant}{number}")) for number in range(count)]


def held(tasks: list[asyncio.Task[None]]) -> int:
    return sum(task.done() and not task.cancelled() for task in tasks)


async def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_tenant_gets_half_and_never_all() -> None:
    """However many it asks for; another one has its places at once."""
    places = FairSemaphore(64, per_host=64)
    many = want(places, "a", 500)
    await settle()
    assert held(many) == 32
    few = want(places, "b", 10)
    await settle()
    assert held(few) == 10
    await end(*many, *few)


@pytest.mark.parametrize("tenants", [1, 2, 6])
async def test_one_more_tenant_finds_a_place_at_once(tenants: int) -> None:
    """Though others hold all that they may, and took it one after the other."""
    places = FairSemaphore(64, per_host=64)
    others = [task for number in range(tenants) for task in want(places, f"t{number}", 100)]
    await settle()
    last = want(places, "last", 1)
    await settle()
    assert held(last) == 1
    await end(*others, *last)


async def test_hosts_are_bounded_for_each_tenant() -> None:
    """One host's slowness takes few of a tenant's places, and none of another's."""
    places = FairSemaphore(64, per_host=4)
    same, others, stranger = want(places, "a", 50, "slow"), want(places, "a", 10), want(places, "b", 50, "slow")
    await settle()
    assert [held(tasks) for tasks in (same, others, stranger)] == [4, 10, 4]
    await end(*same, *others, *stranger)


async def test_fair_semaphore_are_given_back_whoever_leaves() -> None:
    """Takers that are cancelled before, after, and in the moment of their turn: in the end all places are free."""
    places = FairSemaphore(3, per_host=3)
    first = want(places, "a", 1, "h")
    waiting = want(places, "b", 6, "h")
    await settle()
    places.release("a", "h")
    await end(*waiting[2:])
    # Turns that came in the moment that their takers left went to others or back.
    for task in waiting:
        if task.done() and not task.cancelled():
            places.release("b", "h")
    rest = [task for task in waiting if not task.done()]
    await settle()
    for task in rest:
        assert task.done()
        places.release("b", "h")
    assert first[0].done()
    again = want(places, "c", 2, "h")
    await settle()
    assert held(again) == 2
    assert places._free == 1
    assert not places._waiting
    await end(*again)
