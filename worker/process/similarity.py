"""How alike vectors are: all of one list with all of another. Pure; numpy only, no model.

The gateway leaves this to workers: its event loop has no time for it, and numpy lets other threads run meanwhile.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from protocol.errors import Code, JobError
from protocol.messages import Scores, SimilarityJob

BLOCK_ROWS = 128
"""Left vectors that are compared at a time: bounds the memory to so many rows of scores."""
NOISE = 1e-14
"""Squared distances below this share of the squared lengths are rounding: the vectors came in float32."""

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]


def compare(job: SimilarityJob, buffers: Sequence[bytes]) -> Iterator[Scores | None]:
    """All scores, or the best pairs; computed in float64, block by block, with a None after each. Raises `JobError`.

    `cosine` is 0 where a vector has length 0. `euclidean` is |a - b|, by |a|² + |b|² - 2ab.
    """
    left = _matrix(buffers, job.left, job.dimensions)
    right = left if job.right is None else _matrix(buffers, job.right, job.dimensions)
    if job.metric not in ("cosine", "dot", "euclidean"):
        raise JobError(Code.INVALID_REQUEST, "'metric' is one of cosine, dot, euclidean.", "metric")
    if job.metric == "cosine":
        left, right = _unit(left), _unit(right)
    if job.top_k is None:
        blocks = []
        for start in range(0, len(left), BLOCK_ROWS):
            blocks.append(_scores(left, right, start, job.metric))
            yield None
        yield Scores(job.job, job.attempt, len(right), np.concatenate(blocks).astype("<f8").tobytes())
        return
    best = _Best(job.top_k, largest=job.metric != "euclidean")
    for start in range(0, len(left), BLOCK_ROWS):
        scores = _scores(left, right, start, job.metric)
        rows = np.arange(start, start + len(scores))[:, None]
        # Of one list with itself, each pair once and nothing with itself.
        wanted = np.arange(len(right)) > rows if job.right is None else np.full(scores.shape, True)
        best.add_pairs(scores[wanted], (rows * len(right) + np.arange(len(right)))[wanted])
        yield None
    values, places = best.ranked_pairs()
    at, to = np.divmod(places, len(right))
    yield Scores(job.job, job.attempt, len(right), values.astype("<f8").tobytes(), at.tolist(), to.tolist())


def _matrix(buffers: Sequence[bytes], at: int, dimensions: int) -> Matrix:
    """Return the vectors of a raw frame, shape (vectors, dimensions)."""
    if not 0 <= at < len(buffers) or dimensions < 1 or not buffers[at] or len(buffers[at]) % (4 * dimensions):
        raise JobError(Code.INVALID_REQUEST, f"Vectors of {dimensions} dimensions were announced, others came.")
    return np.frombuffer(buffers[at], dtype="<f4").reshape(-1, dimensions).astype(np.float64)


def _unit(vectors: Matrix) -> Matrix:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _scores(left: Matrix, right: Matrix, start: int, metric: str) -> Matrix:
    """Return the scores of one block of left vectors with all right ones."""
    block = left[start : start + BLOCK_ROWS]
    products: Matrix = block @ right.T
    if metric == "cosine":
        return np.clip(products, -1.0, 1.0)
    if metric == "dot":
        return products
    squares = (block**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :]
    distances = squares - 2.0 * products
    return np.sqrt(np.where(distances > NOISE * squares, distances, 0.0))


class _Best:
    """The best of the pairs that were shown so far, which come in the order of their places."""

    def __init__(self, count: int, *, largest: bool) -> None:
        self._count = count
        self._sign = 1.0 if largest else -1.0
        self._values: Matrix = np.empty(0)
        self._places: Places = np.empty(0, dtype=np.int64)

    def add_pairs(self, scores: Matrix, places: Places) -> None:
        """Show more; those that no longer count are forgotten."""
        values = np.concatenate([self._values, self._sign * scores])
        places = np.concatenate([self._places, places])
        if len(values) > self._count:
            border = np.partition(values, len(values) - self._count)[len(values) - self._count]
            better = np.flatnonzero(values > border)
            # Of those at the border, the first.
            equal = np.flatnonzero(values == border)[: self._count - len(better)]
            keep = np.sort(np.concatenate([better, equal]))
            values, places = values[keep], places[keep]
        self._values, self._places = values, places

    def ranked_pairs(self) -> tuple[Matrix, Places]:
        """Scores and places, best first, equals in the order of their places."""
        order = np.lexsort((self._places, -self._values))
        return self._sign * self._values[order], self._places[order]
