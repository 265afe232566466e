"""Vectors compared: scores against plain numpy, best pairs against a full sort, what is refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from protocol.errors import JobError
from protocol.messages import Scores, SimilarityJob
from worker.process.similarity import BLOCK_ROWS
from worker.process.similarity import compare as pieces

RANDOM = np.random.default_rng(7)
LEFT = RANDOM.normal(size=(BLOCK_ROWS * 2 + 5, 6)).astype("<f4")
RIGHT = RANDOM.normal(size=(40, 6)).astype("<f4")


def direct(left: Any, right: Any, metric: str) -> Any:
    """Every pair by the definition."""
    left, right = left.astype(np.float64)[:, None], right.astype(np.float64)[None]
    if metric == "euclidean":
        return np.linalg.norm(left - right, axis=2)
    dots = (left * right).sum(axis=2)
    return dots if metric == "dot" else dots / np.linalg.norm(left, axis=2) / np.linalg.norm(right, axis=2)


def job(**fields: Any) -> SimilarityJob:
    return SimilarityJob(**{"job": 3, "attempt": 2, "dimensions": 6, "left": 0, **fields})


def compare(job: SimilarityJob, buffers: Sequence[bytes]) -> Scores:
    """All pieces of the work; the last one is the answer."""
    *waits, found = pieces(job, buffers)
    assert waits == [None] * -(-len(buffers[0]) // (4 * job.dimensions * BLOCK_ROWS))
    assert found is not None
    return found


def scores(found: Any) -> Any:
    return np.frombuffer(found.data, "<f8").reshape(-1, found.columns)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_scores_are_those_of_the_definition(metric: str) -> None:
    """Two lists, and one with itself, over several blocks."""
    found = compare(job(metric=metric, right=1), [LEFT.tobytes(), RIGHT.tobytes()])
    assert (found.job, found.attempt, found.columns) == (3, 2, len(RIGHT))
    assert np.allclose(scores(found), direct(LEFT, RIGHT, metric), atol=1e-12)
    with_itself = scores(compare(job(metric=metric), [LEFT.tobytes()]))
    assert np.allclose(with_itself, direct(LEFT, LEFT, metric), atol=1e-6)
    if metric == "euclidean":
        assert (np.diag(with_itself) == 0).all()


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("top_k", [1, 17, 2048, 100_000])
def test_best_pairs_are_those_of_a_full_sort(metric: str, top_k: int) -> None:
    """Best first; fewer where there are no more."""
    found = compare(job(metric=metric, right=1, top_k=top_k), [LEFT.tobytes(), RIGHT.tobytes()])
    table = direct(LEFT, RIGHT, metric)
    order = np.argsort(table if metric == "euclidean" else -table, axis=None)[:top_k]
    assert [*zip(found.left, found.right, strict=True)] == [divmod(int(at), len(RIGHT)) for at in order]
    assert np.allclose(np.frombuffer(found.data, "<f8"), table.ravel()[order])


def test_pairs_of_one_list_come_once() -> None:
    """Nothing is paired with itself, and a pair has one order; among equals the first places win."""
    same = np.ones((BLOCK_ROWS + 3, 2), dtype="<f4")
    found = compare(job(dimensions=2, top_k=5), [same.tobytes()])
    assert [*zip(found.left, found.right, strict=True)] == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    pairs = compare(job(top_k=10**6), [LEFT.tobytes()])
    assert len(pairs.left) == len(LEFT) * (len(LEFT) - 1) // 2
    assert all(left < right for left, right in zip(pairs.left, pairs.right, strict=True))
    assert compare(job(top_k=3), [LEFT[:1].tobytes()]).data == b""


def test_vector_of_length_zero_is_like_nothing() -> None:
    """Its cosine is 0, no division by zero."""
    found = scores(compare(job(dimensions=2), [np.array([[0, 0], [3, 4]], dtype="<f4").tobytes()]))
    assert found.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("fields", "buffers"),
    [
        ({}, []),
        ({}, [b""]),
        ({}, [LEFT.tobytes()[:-4]]),
        ({"left": 1}, [LEFT.tobytes()]),
        ({"right": -1}, [LEFT.tobytes()]),
        ({"dimensions": 0}, [LEFT.tobytes()]),
        ({"metric": "hamming"}, [LEFT.tobytes()]),
    ],
)
def test_job_that_contradicts_itself_is_refused(fields: dict[str, Any], buffers: Sequence[bytes]) -> None:
    """As an error of the job, whatever is wrong with it."""
    with pytest.raises(JobError):
        compare(job(**fields), buffers)
