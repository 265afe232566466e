"""The vector cache: what is found, what goes first, what it may cost."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.embedding_cache import LONG_CHARS, EmbeddingCache

SPACE = EmbeddingCache.namespace_of("model", "revision")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(*, capacity: int = 100_000, entries: int = 1000, ttl_s: float = 60.0) -> tuple[EmbeddingCache, Clock]:
    clock = Clock()
    return EmbeddingCache(capacity_bytes=capacity, capacity_entries=entries, ttl_s=ttl_s, clock=clock), clock


def test_what_was_kept_is_found_in_order() -> None:
    """Hits and misses side by side, and counted."""
    cache, _ = make()
    cache.store_vector(SPACE, "a", (b"A", 1))
    cache.store_vector(SPACE, (1, 2), (b"B", 2))
    assert cache.find_vectors(SPACE, ["a", "b", (1, 2), (1,)]) == [(b"A", 1), None, (b"B", 2), None]
    assert (cache.counts.hits, cache.counts.misses) == (2, 2)


def test_spaces_are_apart() -> None:
    """Another model, revision or option is another vector; no two lists of parts are the same space."""
    cache, _ = make()
    spaces = [
        EmbeddingCache.namespace_of(*parts)
        for parts in (
            ("m", "1", (None,)),
            ("m", "2", (None,)),
            ("n", "1", (None,)),
            ("m", "1", (5,)),
            ("m1", "", (None,)),
        )
    ]
    assert len(set(spaces)) == len(spaces)
    cache.store_vector(spaces[0], "a", (b"A", 1))
    assert [cache.find_vectors(space, ["a"])[0] for space in spaces[1:]] == [None] * 4


def test_long_inputs_are_told_apart_and_take_no_room() -> None:
    """Beyond a length only a digest is kept; texts and ids never meet."""
    cache, _ = make()
    long = "x" * 100_000
    cache.store_vector(SPACE, long, (b"A", 1))
    assert cache.used_bytes < 1000
    assert cache.find_vectors(SPACE, [long, long[:-1] + "y"]) == [(b"A", 1), None]
    ids = (7,) * (LONG_CHARS + 1)
    assert cache.find_vectors(SPACE, [ids, repr(ids)]) == [None, None]
    cache.store_vector(SPACE, repr(ids), (b"B", 1))
    assert cache.find_vectors(SPACE, [ids]) == [None]


def test_least_recently_used_goes_first() -> None:
    """Being found counts as use."""
    cache, _ = make(entries=2)
    cache.store_vector(SPACE, "a", (b"A", 1))
    cache.store_vector(SPACE, "b", (b"B", 1))
    cache.find_vectors(SPACE, ["a"])
    cache.store_vector(SPACE, "c", (b"C", 1))
    assert [vector is not None for vector in cache.find_vectors(SPACE, ["a", "b", "c"])] == [True, False, True]
    assert cache.counts.evicted == 1


def test_vector_is_forgotten_when_its_time_is_over() -> None:
    """Exactly the time to live is still in time."""
    cache, clock = make(ttl_s=10)
    cache.store_vector(SPACE, "a", (b"A", 1))
    clock.now = 10
    assert cache.find_vectors(SPACE, ["a"]) == [(b"A", 1)]
    clock.now = 10.1
    assert cache.find_vectors(SPACE, ["a"]) == [None]
    assert (len(cache), cache.used_bytes, cache.counts.expired) == (0, 0, 1)


def test_nothing_is_kept_when_there_is_no_room() -> None:
    """A capacity of 0, in bytes or entries, is a cache that is off; a vector larger than all of it is left out."""
    for cache in (make(capacity=0)[0], make(entries=0)[0], make(capacity=500)[0]):
        cache.store_vector(SPACE, "a", (b"A" * 1000, 1))
        assert (len(cache), cache.used_bytes) == (0, 0)


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 3000)), max_size=60))
def test_bytes_stay_within_the_capacity(kept: list[tuple[str, int]]) -> None:
    """Whatever is kept, over whatever was kept before; emptied, it is at zero again."""
    cache, clock = make(capacity=5000, ttl_s=1)
    for key, size in kept:
        cache.store_vector(SPACE, key, (b"x" * size, 1))
        assert 0 <= cache.used_bytes <= 5000
    clock.now = 5
    cache.find_vectors(SPACE, [key for key, _ in kept])
    assert (len(cache), cache.used_bytes) == (0, 0)
    cache.store_vector(SPACE, "a", (b"A", 1))
    cache.clear()
    assert (len(cache), cache.used_bytes) == (0, 0)
