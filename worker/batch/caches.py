"""mlx-lm's per-layer caches, by what they can do: which of them batch, how rows join, leave and are copied out.

A "cache" below is a list with one entry per layer, as `make_prompt_cache` returns it.
"""

import copy
import math
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    CacheList,
    KVCache,
    QuantizedKVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)

from worker.batch.images import PromptPart

Cache = list[Any]
GROUP, SMALLEST_GROUP = 64, 32
"""Numbers that share a scale where caches are kept in fewer bits."""


def new(model: Any) -> Cache:
    """Return an empty cache for one row."""
    cache: Cache = make_prompt_cache(model)
    return cache


def mergeable(cache: Cache) -> bool:
    """Return whether rows of this model can share one batch: every layer's cache merges, grows, shrinks, gives back."""
    return all(_merges(layer) for layer in cache)


def _merges(layer: Any) -> bool:
    if isinstance(layer, CacheList):
        return all(_merges(part) for part in layer.caches)
    if not hasattr(type(layer), "merge"):
        return False
    batched = type(layer.merge([layer]))
    return all(hasattr(batched, name) for name in ("filter", "extend", "extract", "prepare", "finalize"))


def merge(rows: list[Cache]) -> Cache:
    """One batched cache out of single ones; copies."""
    return [rows[0][layer].merge([row[layer] for row in rows]) for layer in range(len(rows[0]))]


def prefill(model: Any, cache: Cache, parts: list[PromptPart]) -> mx.array | None:
    """Feed each row its tokens in one forward pass, padded on the right; nothing is evaluated. Returns the logits."""
    lengths = [len(part.tokens) for part in parts]
    width = max(lengths)
    if not width:
        return None
    padding = [width - length for length in lengths]
    if any(padding):
        for layer in cache:
            layer.prepare(lengths=lengths, right_padding=padding)
    tokens = mx.array([part.tokens + [0] * (width - len(part.tokens)) for part in parts])
    if any(part.images for part in parts):
        logits: mx.array = model.forward_parts(tokens, parts, cache=cache)
    else:
        logits = model(tokens, cache=cache)
    if any(padding):
        for layer in cache:
            layer.finalize()
    return logits


def set_positions(cache: Cache, following: list[int]) -> None:
    """Say at which position each row goes on, where the cache has a layer that knows (`Positions`)."""
    for layer in cache:
        if hasattr(layer, "set_positions"):
            layer.set_positions(following)


def extend(cache: Cache, other: Cache) -> None:
    """Append the rows of one batched cache to another."""
    for layer, more in zip(cache, other, strict=True):
        layer.extend(more)


def filter_rows(cache: Cache, rows: list[int]) -> None:
    """Drop all rows but these."""
    for layer in cache:
        layer.filter(rows)


def extract(cache: Cache, row: int) -> Cache:
    """One row of a batched cache, as a single one; copies."""
    return [layer.extract(row) for layer in cache]


def state(cache: Cache) -> list[Any]:
    """Return the arrays to evaluate."""
    return [layer.state for layer in cache]


def nbytes(cache: Cache) -> int:
    """Bytes held."""
    return sum(layer.nbytes for layer in cache)


def duplicate(cache: Cache) -> Cache:
    """Return a second owner: arrays are shared until one side writes (MLX copies then)."""
    return copy.deepcopy(cache)


def pack(cache: Cache, bits: int) -> Cache:
    """Return the same in fewer bits, for keeping: keys and values, where a head can be cut into groups. 0: as it is."""
    return [_packed(layer, bits) for layer in cache] if bits else cache


def _packed(layer: Any, bits: int) -> Any:
    if type(layer) is not KVCache or layer.keys is None:
        return layer
    width = math.gcd(GROUP, layer.keys.shape[-1], layer.values.shape[-1])
    if width < SMALLEST_GROUP:
        return layer
    # Only what is filled: caches grow by more than they need.
    short = KVCache()
    short.keys, short.values = layer.keys_and_values()
    short.offset = layer.offset
    return short.to_quantized(group_size=width, bits=bits)


def unpack(cache: Cache) -> Cache:
    """Return what was packed, for going on with."""
    return [_unpacked(layer) if isinstance(layer, QuantizedKVCache) else layer for layer in cache]


def _unpacked(layer: QuantizedKVCache) -> KVCache:
    whole = KVCache()
    whole.keys, whole.values = (
        mx.dequantize(*part, group_size=layer.group_size, bits=layer.bits) for part in layer.keys_and_values()
    )
    whole.offset = layer.offset
    return whole


def trimmable(cache: Cache) -> bool:
    """Return whether every layer can forget its last tokens."""
    return bool(can_trim_prompt_cache(cache))


def room(cache: Cache) -> float:
    """Tokens that fit before a layer's window comes round; from then on it can't forget its last ones."""
    sizes = [
        part.max_size for layer in cache for part in getattr(layer, "caches", [layer]) if hasattr(part, "max_size")
    ]
    return min(sizes, default=float("inf"))


def trim(cache: Cache, length: int, size: int) -> bool:
    """Shorten a cache of `size` tokens to `length`, if every layer can forget."""
    if size == length:
        return True
    if not trimmable(cache):
        return False
    trim_prompt_cache(cache, size - length)
    return True
