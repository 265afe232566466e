"""Samples packed into rows of one length, so that no step computes padding. Numpy only; knows no model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.draw import Draw
from training.mixture import LONG, SHORT, stream
from training.sample import Sample
from training.text import Encoded, SampleEncoder

_BUFFER = 48
_FAR = -1e9


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`rows` rows of `length` tokens, of which `learnt` are asked of the model, with up to so many `pictures`."""

    rows: int
    length: int
    learnt: int
    pictures: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of several samples each: `bias` (rows, 1, length, length) keeps a sample from seeing its neighbours.

    `places` are indices into the flattened rows; there the model should say `targets`, as far as `weights` are not 0.
    """

    tokens: NDArray[np.int32]
    bias: NDArray[np.float32]
    places: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]


class Packer:
    """Blocks of a short and of a long shape, without end and the same for the same seed."""

    def __init__(self, encoder: SampleEncoder, *, seed: int, shapes: Sequence[Shape]) -> None:
        self._encoder = encoder
        self._shapes = shapes
        self._streams = (stream(Draw(2 * seed), SHORT), stream(Draw(2 * seed + 1), LONG))
        self._waiting: tuple[list[Encoded], list[Encoded]] = ([], [])

    def blocks(self) -> Iterator[tuple[Block, Block]]:
        """Yield a block of each shape for every step."""
        while True:
            yield self._block(0), self._block(1)

    def _block(self, kind: int) -> Block:
        shape = self._shapes[kind]
        return block([self._row(kind) for _ in range(shape.rows)], shape)

    def _row(self, kind: int) -> list[Encoded]:
        """Take samples that fit one row: the first that waits, then the longest that still fit."""
        waiting = self._waiting[kind]
        while len(waiting) < _BUFFER:
            self._take(next(self._streams[kind]))
        row = [waiting.pop(0)]
        left = self._shapes[kind].length - len(row[0].tokens)
        while fitting := [one for one in waiting if len(one.tokens) <= left]:
            longest = max(fitting, key=lambda one: len(one.tokens))
            waiting.remove(longest)
            row.append(longest)
            left -= len(longest.tokens)
        return row

    def _take(self, sample: Sample) -> None:
        encoded = self._encoder.encode(sample)
        for waiting, shape in zip(self._waiting, self._shapes, strict=True):
            if len(encoded.tokens) <= shape.length:
                waiting.append(encoded)
                return


def block(rows: list[list[Encoded]], shape: Shape) -> Block:
    """Return the rows as arrays."""
    tokens = np.zeros((shape.rows, shape.length), dtype=np.int32)
    owner = np.full((shape.rows, shape.length), -1, dtype=np.int32)
    learnt = np.zeros((shape.rows, shape.length), dtype=bool)
    for place, row in enumerate(rows):
        start = 0
        for number, one in enumerate(row):
            end = start + len(one.tokens)
            tokens[place, start:end] = one.tokens
            owner[place, start:end] = number
            # What is learnt is said by the token before it.
            learnt[place, start : end - 1] = one.learnt[1:]
            start = end
    places = np.flatnonzero(learnt)[: shape.learnt]
    following = np.roll(tokens, -1, axis=1).reshape(-1)
    spare = shape.learnt - len(places)
    seen = (owner[:, :, None] == owner[:, None, :]) & np.tril(np.ones((shape.length, shape.length), dtype=bool))
    return Block(
        tokens=tokens,
        bias=np.where(seen, 0, _FAR).astype(np.float32)[:, None],
        places=np.pad(places, (0, spare)).astype(np.int32),
        targets=np.pad(following[places], (0, spare)).astype(np.int32),
        weights=np.pad(np.ones(len(places), dtype=np.float32), (0, spare)),
    )
