"""The size of a prefill chunk, from given times."""

import pytest

from worker.batch.chunk_size import FIRST, SHARE, SMALLEST, ChunkSizer


def settle(pace: ChunkSizer, decode_s: float, token_s: float) -> int:
    """Run 100 rounds in which a decode step and each prompt token cost what is given; the chunk that results."""
    for _ in range(100):
        pace.record_step(decode_s)
        size = pace.next_size(running=True)
        pace.record_chunk(size, decode_s + size * token_s)
    return pace.next_size(running=True)


def test_nobody_running_means_the_largest_chunk() -> None:
    """There is nobody to hold up, whatever was learnt before."""
    pace = ChunkSizer(1024)
    assert (pace.next_size(running=False), pace.next_size(running=True)) == (1024, FIRST)
    settle(pace, 0.001, 1.0)
    assert pace.next_size(running=False) == 1024


@pytest.mark.parametrize(
    ("decode_s", "token_s"), [(0.01, 0.0001), (0.01, 0.001), (0.03, 0.00005), (0.001, 0.0001), (0.2, 0.001)]
)
def test_chunk_settles_where_the_gap_is_small(decode_s: float, token_s: float) -> None:
    """A step with a chunk takes at most `SHARE` decode steps, and no chunk is needlessly small."""
    size = settle(ChunkSizer(4096), decode_s, token_s)
    gap = (decode_s + size * token_s) / decode_s
    assert gap <= SHARE * 1.05 or size == SMALLEST
    larger = (decode_s + 4 * size * token_s) / decode_s
    assert larger > SHARE or size == 4096
    assert size & (size - 1) == 0


def test_bounds_hold() -> None:
    """Free tokens do not exceed the largest chunk, dear ones go down to the smallest and no further."""
    assert settle(ChunkSizer(512), 0.01, 0.0) == 512
    assert settle(ChunkSizer(512), 0.0001, 10.0) == SMALLEST
    assert ChunkSizer(16).next_size(running=True) == 16


def test_growth_is_by_doubling_and_shrinking_at_once() -> None:
    """One cheap chunk proves little, one dear one is felt by everyone."""
    pace = ChunkSizer(4096)
    pace.record_step(0.01)
    pace.record_chunk(FIRST, 0.0101)
    assert pace.next_size(running=True) == 2 * FIRST
    pace.record_chunk(2 * FIRST, 10.0)
    assert pace.next_size(running=True) == SMALLEST


def test_end_of_a_prompt_says_nothing_against_larger_chunks() -> None:
    """A small remainder that was cheap does not shrink the chunk."""
    pace = ChunkSizer(4096)
    pace.record_step(0.01)
    pace.record_chunk(3, 0.0101)
    assert pace.next_size(running=True) == FIRST
    pace.record_chunk(32, 0.1)
    assert pace.next_size(running=True) < FIRST  # dear ones do


def test_outlier_hardly_moves_the_decode_time() -> None:
    """One step of ten seconds (a suspended machine) does not license ten-second chunks."""
    pace = ChunkSizer(1 << 20)
    settle(pace, 0.01, 0.001)
    before = pace.next_size(running=True)
    pace.record_step(10.0)
    pace.record_chunk(before, 0.01 + before * 0.001)
    assert pace.next_size(running=True) <= 2 * before


def test_prefill_before_any_decode_teaches_nothing() -> None:
    """Without a measure there is nothing to compare with; zero time is no division by zero."""
    pace = ChunkSizer(1024)
    pace.record_chunk(64, 5.0)
    assert pace.next_size(running=True) == FIRST
    pace.record_step(0.0)
    pace.record_chunk(64, 0.0)
    assert pace.next_size(running=True) >= SMALLEST
