"""What is found out about models at load, on small ones with known faults."""

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import ArraysCache, KVCache

from worker.batch.batchability import Batchability, check_batching

WIDTH = 16


class Attentive:
    """One layer of attention over embeddings; `heeds_mask` False lets padding leak into every sum."""

    def __init__(self, *, heeds_mask: bool) -> None:
        self.heeds_mask = heeds_mask
        self.table = mx.random.normal((32, WIDTH), key=mx.random.key(1))

    def make_cache(self) -> list[Any]:
        return [KVCache()]

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        rows = self.table[tokens]
        mask = create_attention_mask(rows, cache[0]) if self.heeds_mask else None
        keys, values = cache[0].update_and_fetch(rows[:, None], rows[:, None])
        out = mx.fast.scaled_dot_product_attention(rows[:, None], keys, values, scale=0.3, mask=mask)
        return out[:, 0] @ self.table.T


class Recurrent:
    """One running sum; `heeds_lengths` False adds the padding of a group's shorter prompts to it."""

    def __init__(self, *, heeds_lengths: bool) -> None:
        self.heeds_lengths = heeds_lengths
        self.table = mx.random.normal((32, WIDTH), key=mx.random.key(2))

    def make_cache(self) -> list[Any]:
        return [ArraysCache(1)]

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        rows = self.table[tokens]
        if self.heeds_lengths and cache[0].lengths is not None:
            inside = mx.arange(tokens.shape[1])[None] < cache[0].lengths[:, None]
            rows = mx.where(inside[..., None], rows, 0.0)
        before = cache[0][0]
        sums = mx.cumsum(rows, axis=1) + (0.0 if before is None else before[:, None])
        cache[0][0] = sums[:, -1]
        return mx.tanh(sums) @ self.table.T


class Private:
    """A layer's cache that knows nothing of batches."""

    state = mx.zeros(1)


class Unmergeable(Recurrent):
    """Has a cache that can't be merged."""

    def make_cache(self) -> list[Any]:
        return [Private()]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Attentive(heeds_mask=True), Batchability(joins=True, pads=True)),
        (Attentive(heeds_mask=False), Batchability(joins=False, pads=False)),
        (Recurrent(heeds_lengths=True), Batchability(joins=True, pads=True)),
        (Recurrent(heeds_lengths=False), Batchability(joins=True, pads=False)),
        (Unmergeable(heeds_lengths=True), Batchability(joins=False, pads=False)),
    ],
    ids=["attention", "attention that ignores its mask", "recurrence", "recurrence over padding", "private cache"],
)
def test_fault_is_found(model: Any, found: Batchability) -> None:
    """A model batches as far as its rows stay themselves, no further."""
    assert check_batching(model) == found
