"""What is kept of pictures: within its bytes, the longest unused out first, by tenant."""

import pytest

from worker.batch.encoder_cache import EncoderCache
from worker.batch.images import Features

mx = pytest.importorskip("mlx.core")

KILOBYTE = 1024


def features(kilobytes: int = 1) -> Features:
    return Features(mx.zeros((kilobytes, KILOBYTE // 4)))


def test_least_recently_used_goes_first_when_bytes_run_out() -> None:
    """Three kilobytes hold three; a fourth takes the place of the one that nobody asked for."""
    cache = EncoderCache(3 * KILOBYTE)
    for name in (b"a", b"b", b"c"):
        cache.store_features(("t", name), features())
    assert cache.find_features(("t", b"a")) is not None
    cache.store_features(("t", b"d"), features())
    assert [("t", name) in cache for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.held_bytes == 3 * KILOBYTE


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    """Nor does it push out anything; a size of 0 keeps nothing at all."""
    cache = EncoderCache(2 * KILOBYTE)
    cache.store_features(("t", b"a"), features())
    cache.store_features(("t", b"b"), features(3))
    assert ("t", b"a") in cache
    assert cache.find_features(("t", b"b")) is None
    nothing = EncoderCache(0)
    nothing.store_features(("t", b"a"), features())
    assert nothing.find_features(("t", b"a")) is None


def test_tenants_know_nothing_of_each_other() -> None:
    """The same picture of another tenant is another entry; looks and finds are counted."""
    cache = EncoderCache(10 * KILOBYTE)
    cache.store_features(("one", b"a"), features())
    assert cache.find_features(("two", b"a")) is None
    assert cache.find_features(("one", b"a")) is not None
    assert (cache.lookups, cache.hits) == (2, 1)
