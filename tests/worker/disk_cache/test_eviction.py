"""Who makes room for whom."""

import random

from worker.disk_cache.eviction import TenantShare, select_for_eviction


def held(*items: tuple[str, int, float]) -> list[TenantShare]:
    return [TenantShare(index, holder, size, used_at) for index, (holder, size, used_at) in enumerate(items)]


def test_nobody_makes_room_where_there_is_enough() -> None:
    """Not even what nobody has used for long."""
    assert select_for_eviction(held(("a", 10, 0.0)), 0, stale_before=5.0) == []


def test_oldest_goes_first_within_one_holder() -> None:
    """As many as are needed, and no more."""
    items = held(("a", 10, 1.0), ("a", 10, 2.0), ("a", 10, 3.0))
    assert select_for_eviction(items, 11, stale_before=0.0) == [0, 1]


def test_who_holds_most_gives_first() -> None:
    """However old the things of others are, until it holds no more than they."""
    items = held(("small", 30, 1.0), *(("large", 10, 2.0 + at) for at in range(5)))
    assert select_for_eviction(items, 25, stale_before=0.0) == [1, 2, 0]
    assert select_for_eviction(items, 20, stale_before=0.0) == [1, 2]


def test_what_nobody_uses_goes_before_anything_else() -> None:
    """An old entry has no share any more."""
    items = held(("gone", 10, 1.0), ("gone", 10, 2.0), ("busy", 50, 9.0), ("busy", 50, 9.5))
    assert select_for_eviction(items, 15, stale_before=5.0) == [0, 1]


def test_equal_shares_are_safe_whatever_others_store() -> None:
    """Random floods: a holder loses nothing while it holds no more than an equal share of the room."""
    source = random.Random(3)
    for _ in range(200):
        names = "abcd"[: source.randrange(2, 5)]
        share = 100 / len(names)
        items = held(*((source.choice(names), source.randrange(1, 30), float(at)) for at in range(40)))
        total = sum(item.size_bytes for item in items)
        gone = set(select_for_eviction(items, total - 100, stale_before=-1.0))
        for name in names:
            own = [item for item in items if item.holder == name]
            if sum(item.size_bytes for item in own) <= share:
                assert not gone & {item.key for item in own}
        assert sum(item.size_bytes for item in items if item.key not in gone) <= 100
