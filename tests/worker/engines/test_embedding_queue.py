"""Whose texts are computed next, and together with which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.embedding.queue import QueuedText, TextQueue, groups


def texts(job: int, *lengths: int) -> list[QueuedText]:
    return [QueuedText(job, index, [0] * length) for index, length in enumerate(lengths)]


def taken(batch: list[QueuedText]) -> list[tuple[int, int]]:
    return [(text.job, text.index) for text in batch]


def test_batch_stays_within_its_budget_when_much_waits() -> None:
    """Thousands of texts ask for one bounded batch, the longest first."""
    queue = TextQueue()
    queue.add_job(1, texts(1, *range(1, 201)), limit=None)
    batch = queue.take_batch(1000)
    assert sum(len(text.tokens) for text in batch) <= 1000
    assert len(batch[0].tokens) == 200
    assert len(queue) == 200 - len(batch)


def test_text_longer_than_the_budget_is_taken_alone() -> None:
    """Nothing waits for ever because it is long."""
    queue = TextQueue()
    queue.add_job(1, texts(1, 50, 60), limit=None)
    assert taken(queue.take_batch(10)) == [(1, 1)]
    assert taken(queue.take_batch(10)) == [(1, 0)]


def test_newcomer_is_in_the_next_batch_beside_a_large_job() -> None:
    """Who has had nothing yet comes first."""
    queue = TextQueue()
    queue.add_job(1, texts(1, *[10] * 2048), limit=None)
    queue.take_batch(100)
    for job in range(2, 6):
        queue.add_job(job, texts(job, 10), limit=None)
    assert {job for job, _ in taken(queue.take_batch(100))} == {1, 2, 3, 4, 5}


def test_jobs_take_turns_when_the_budget_is_too_small_for_all() -> None:
    """Who was left out of a batch is in the next."""
    queue = TextQueue()
    for job in range(4):
        queue.add_job(job, texts(job, 10, 10), limit=None)
    assert [taken(queue.take_batch(20)) for _ in range(4)] == [
        [(0, 0), (1, 0)],
        [(2, 0), (3, 0)],
        [(0, 1), (1, 1)],
        [(2, 1), (3, 1)],
    ]
    assert len(queue) == 0


def test_removed_job_is_never_taken() -> None:
    """A cancel takes effect before the next batch."""
    queue = TextQueue()
    queue.add_job(1, texts(1, *[5] * 9), limit=None)
    queue.add_job(2, texts(2, 5), limit=None)
    queue.take_batch(10)
    assert queue.remove_job(1)
    assert not queue.remove_job(1)
    assert taken(queue.take_batch(100)) == []


jobs = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=30), min_size=1, max_size=6)


@given(jobs, st.integers(1, 120))
def test_every_text_is_taken_once(lengths: list[list[int]], budget: int) -> None:
    """Nothing is lost, nothing computed twice, whatever the budget."""
    queue = TextQueue()
    for job, row in enumerate(lengths):
        queue.add_job(job, texts(job, *row), limit=None)
    seen: list[tuple[int, int]] = []
    while len(queue):
        batch = queue.take_batch(budget)
        assert batch
        assert len(batch) == 1 or sum(len(text.tokens) for text in batch) <= budget
        seen += taken(batch)
    assert sorted(seen) == [(job, index) for job, row in enumerate(lengths) for index in range(len(row))]


@given(st.lists(st.integers(1, 256), min_size=1, max_size=60), st.sampled_from([0, 13, 400]))
def test_passes_hold_no_more_padding_than_they_spare(lengths: list[int], spare: int) -> None:
    """A pass more would cost less; no pass exceeds the budget, all texts are there."""
    found = groups(texts(1, *lengths), limits={}, spare=spare, budget=512)
    for group in found:
        sizes = [len(text.tokens) for text in group]
        assert max(sizes) * len(group) - sum(sizes) <= spare
        assert max(sizes) * len(group) <= 512
    assert sorted(text.index for group in found for text in group) == list(range(len(lengths)))


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (3, 3), (128, 10)])
def test_batch_size_limits_every_pass_of_its_job(limit: int, most: int) -> None:
    """A job that asks for small batches gets them, also beside others."""
    batch = texts(1, *[5] * 5) + texts(2, *[5] * 5)
    found = groups(batch, limits={1: limit}, spare=10, budget=1000)
    assert max(len(group) for group in found if any(text.job == 1 for text in group)) == most
