"""The prefix cache: nearest, one tenant's own, bounded."""

import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from worker.batch import caches, prefix
from worker.batch.prefix import PrefixCache

TOKEN_BYTES = 2 * 8 * 4


def kv(tokens: Sequence[int]) -> list[Any]:
    """A cache of one layer that holds each token's own id as key and value."""
    layer = KVCache()
    rows = mx.broadcast_to(mx.array(list(tokens), dtype=mx.float32)[None, None, :, None], (1, 1, len(tokens), 8))
    layer.update_and_fetch(rows, rows)
    return [layer]


def fixed(size: int) -> list[Any]:
    """A cache that can't forget, as state space models have."""
    layer = ArraysCache(1)
    layer[0] = mx.zeros((1, size))
    return [layer]


def covers(cache: list[Any]) -> list[int]:
    return [int(x) for x in cache[0].keys[0, 0, : cache[0].offset, 0].tolist()]


def tokens(*parts: range) -> list[int]:
    return [token for part in parts for token in part]


def test_nearest_is_the_longest_common_prefix() -> None:
    """Of several, the one that covers most; cut to just what is common, in a cache of the caller's own."""
    cache = PrefixCache(1 << 20)
    cache.store_prefix("t", tokens(range(30)), kv(range(30)))
    longer = tokens(range(40), range(900, 920))
    cache.store_prefix("t", longer, kv(longer))
    wanted = tokens(range(50), range(60, 70))
    found, covered = cache.find_nearest("t", wanted)
    assert covered == 40
    assert found is not None
    assert covers(found) == list(range(40))
    found[0].update_and_fetch(mx.zeros((1, 1, 5, 8)), mx.zeros((1, 1, 5, 8)))
    again, covered = cache.find_nearest("t", [*longer, 5])
    assert again is not None
    assert (covered, covers(again)) == (60, longer)


def test_last_token_is_never_covered() -> None:
    """It has to be fed to get anything out of the model: of the very same prompt all but one is covered."""
    cache = PrefixCache(1 << 20)
    cache.store_prefix("t", list(range(30)), kv(range(30)))
    found, covered = cache.find_nearest("t", list(range(30)))
    assert found is not None
    assert (covered, covers(found)) == (29, list(range(29)))
    assert cache.find_nearest("t", [])[1] == 0


@pytest.mark.parametrize("common", [prefix.SHORTEST - 1, prefix.SHORTEST])
def test_short_prefixes_do_not_count(common: int) -> None:
    """Below the threshold nothing is found, from it on it is; what is shorter is not even kept."""
    cache = PrefixCache(1 << 20)
    cache.store_prefix("t", list(range(40)), kv(range(40)))
    _, covered = cache.find_nearest("t", [*range(common), *range(500, 520)])
    assert covered == (common if common >= prefix.SHORTEST else 0)
    cache.store_prefix("u", list(range(common)), kv(range(common)))
    assert (cache.find_nearest("u", list(range(41)))[1] > 0) == (common >= prefix.SHORTEST)


def test_tenants_never_share() -> None:
    """Not a token of another's prompt is ever covered, nor does storing touch another's entries."""
    cache = PrefixCache(1 << 20)
    cache.store_prefix("a", list(range(50)), kv(range(50)))
    cache.store_prefix("b", list(range(60)), kv(range(60)))
    for stranger in ("", "A", "c"):
        assert cache.find_nearest(stranger, list(range(70))) == (None, 0)
    assert [cache.find_nearest(name, list(range(70)))[1] for name in "ab"] == [50, 60]


def test_bytes_are_bounded_and_the_least_used_goes_first() -> None:
    """Whatever is stored, no more than the bound is held; what was looked up last stays."""
    one = kv(range(32))
    size = one[0].nbytes
    cache = PrefixCache(3 * size)
    prompts = {name: [number, *range(100, 131)] for number, name in enumerate("abcd")}
    for name in "abc":
        cache.store_prefix("t", prompts[name], kv(prompts[name]))
    assert cache.held_bytes == 3 * size
    assert cache.find_nearest("t", [*prompts["a"], 1])[1] == 32
    cache.store_prefix("t", prompts["d"], kv(prompts["d"]))
    assert cache.held_bytes == 3 * size
    assert [cache.find_nearest("t", [*prompts[name], 1])[1] for name in "abcd"] == [32, 0, 32, 32]


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    """Nor does it push out what is there; a bound of 0 keeps nothing."""
    cache = PrefixCache(kv(range(32))[0].nbytes)
    cache.store_prefix("t", list(range(32)), kv(range(32)))
    cache.store_prefix("t", list(range(100, 700)), kv(range(100, 700)))
    assert cache.find_nearest("t", list(range(40)))[1] == 32
    off = PrefixCache(0)
    off.store_prefix("t", list(range(32)), kv(range(32)))
    assert (off.held_bytes, off.find_nearest("t", list(range(40)))) == (0, (None, 0))


def test_longer_one_replaces_its_own_prefixes() -> None:
    """A conversation holds one entry, not one per turn; unrelated ones stay."""
    cache = PrefixCache(1 << 20)
    cache.store_prefix("t", list(range(500, 540)), kv(range(500, 540)))
    for length in (20, 30, 30, 60):
        cache.store_prefix("t", list(range(length)), kv(range(length)))
    assert cache.held_bytes == kv(range(60))[0].nbytes + kv(range(40))[0].nbytes
    assert [cache.find_nearest("t", [*range(length), 7])[1] for length in (20, 60)] == [20, 60]
    assert cache.find_nearest("t", list(range(500, 560)))[1] == 40


def test_cache_that_cant_forget_is_used_only_whole() -> None:
    """Its state stands for exactly its tokens: no shorter prefix, and a longer one does not replace it."""
    cache = PrefixCache(1 << 20)
    cache.store_prefix("t", list(range(40)), fixed(100))
    assert cache.find_nearest("t", list(range(30)))[1] == 0
    assert cache.find_nearest("t", list(range(40)))[1] == 0
    assert cache.find_nearest("t", list(range(41)))[1] == 40
    cache.store_prefix("t", list(range(60)), fixed(100))
    assert cache.find_nearest("t", [*range(50), 9])[1] == 40
    assert cache.find_nearest("t", [*range(60), 9])[1] == 60
    held = cache.held_bytes
    cache.store_prefix("t", list(range(60)), fixed(100))
    assert cache.held_bytes == held


def test_books_are_right_whatever_happens() -> None:
    """Random stores and look-ups: the bound holds, and what is found is exactly what was asked for."""
    source = random.Random(5)
    cache = PrefixCache(40 * kv(range(20))[0].nbytes)
    for _ in range(300):
        tenant = source.choice("abc")
        prompt = [source.randrange(3) for _ in range(4)] * 10
        prompt = prompt[: source.randrange(1, 40)]
        if source.random() < 0.5:
            cache.store_prefix(tenant, prompt, kv(prompt))
        else:
            found, covered = cache.find_nearest(tenant, prompt)
            assert (found is None) == (covered == 0)
            assert covered < max(1, len(prompt))
            if found is not None:
                assert covers(found) == prompt[:covered]
        assert 0 <= cache.held_bytes <= 40 * kv(range(20))[0].nbytes
        entries = [entry for entries in cache._tenants.values() for entry in entries.values()]
        assert cache.held_bytes == sum(entry.size_bytes for entry in entries)
        assert len(entries) == len(cache._order)


def test_flood_of_one_tenant_leaves_others_their_share() -> None:
    """What one holds of an equal share stays, however much another stores; until it has not been used for long."""
    now = 0.0
    size = kv(range(32))[0].nbytes
    cache = PrefixCache(10 * size, clock=lambda: now)
    quiet = [[number, *range(100, 131)] for number in range(4)]
    for prompt in quiet:
        cache.store_prefix("quiet", prompt, kv(prompt))
    for number in range(50):
        cache.store_prefix("flood", [1000 + number, *range(100, 131)], kv(range(32)))
    assert [cache.find_nearest("quiet", [*prompt, 1])[1] for prompt in quiet] == [32] * 4
    assert cache.find_nearest("flood", [1049, *range(100, 131), 1])[1] == 32
    now = prefix.STALE_S + 1
    for number in range(50, 60):
        cache.store_prefix("flood", [1000 + number, *range(100, 131)], kv(range(32)))
    assert [cache.find_nearest("quiet", [*prompt, 1])[1] for prompt in quiet] == [0] * 4


def test_fewer_bits_change_numbers_a_little() -> None:
    """Keys and values come back within half a step of their group; layers that don't divide are left as they are."""
    layer = KVCache()
    numbers = mx.random.normal((1, 2, 40, 64), key=mx.random.key(1))
    layer.update_and_fetch(numbers, numbers * 3)
    for bits, step in ((8, 7 / 255), (4, 7 / 15)):
        packed = caches.pack([layer], bits)
        assert caches.trimmable(packed)
        assert caches.trim(packed, 30, 40)
        (found,) = caches.unpack(packed)
        assert found.offset == 30
        keys, values = found.keys_and_values()
        assert mx.max(mx.abs(keys - numbers[:, :, :30])).item() <= step / 2 * 1.3
        assert mx.max(mx.abs(values - 3 * numbers[:, :, :30])).item() <= step / 2 * 1.3 * 3
        assert layer.offset == 40
    small = kv(range(20))
    assert caches.pack(small, 8)[0] is small[0]
    assert caches.pack(fixed(5), 8)[0].nbytes == fixed(5)[0].nbytes
