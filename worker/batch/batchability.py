"""The check, at load, that rows of a model may share a batch: two prompts together give what each gives alone.

Some architectures have caches that merge but a forward pass that lets padding leak into a row's state: their prompts
are prefilled one by one. The ones whose caches do not merge at all are served row by row.
"""

from typing import Any

import mlx.core as mx
import msgspec

from worker.batch import caches
from worker.batch.caches import Cache
from worker.batch.images import PromptPart

PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9), (2, 7, 1, 8, 2))
TOLERANCE = 0.05
"""Relative difference of the logits. Rounding stays far below it in any data type, a leak far above."""


class Batchability(msgspec.Struct, frozen=True, kw_only=True):
    """What rows of a model may do together.

    `joins`: those that were prefilled alone may decode together. `pads`: prompts of different length may be prefilled
    together as well.
    """

    joins: bool
    pads: bool


def check_batching(model: Any) -> Batchability:
    """Compare a decode step of two rows together with the same rows alone."""
    if not caches.mergeable(caches.new(model)):
        return Batchability(joins=False, pads=False)
    single = [_prefilled(model, prompt) for prompt in PROMPTS]
    joined = caches.merge([caches.duplicate(cache) for cache in single])
    padded = caches.merge([caches.new(model) for _ in PROMPTS])
    caches.prefill(model, padded, [PromptPart(list(prompt[:-1]), 0) for prompt in PROMPTS])
    last = [prompt[-1] for prompt in PROMPTS]
    alone = mx.concatenate([_decode(model, cache, [token]) for cache, token in zip(single, last, strict=True)])
    joins = agree(_decode(model, joined, last), alone)
    return Batchability(joins=joins, pads=joins and agree(_decode(model, padded, last), alone))


def _prefilled(model: Any, prompt: tuple[int, ...]) -> Cache:
    cache = caches.new(model)
    model(mx.array([prompt[:-1]]), cache=cache)
    return cache


def _decode(model: Any, cache: Cache, tokens: list[int]) -> mx.array:
    logits: mx.array = model(mx.array(tokens)[:, None], cache=cache)[:, -1]
    return logits


def agree(a: mx.array, b: mx.array) -> bool:
    """Return whether two sets of logits `[rows, vocab]` are the same but for rounding."""
    return bool(mx.all(difference(a, b) <= TOLERANCE).item())


def difference(a: mx.array, b: mx.array) -> mx.array:
    """Return how far logits `[rows, vocab]` are from those of `b`, in lengths of the latter, shape `[rows]`."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    length = mx.maximum(mx.sqrt(mx.square(b).sum(axis=-1)), 1e-9)
    return mx.sqrt(mx.square(a - b).sum(axis=-1)) / length
