"""A model's cache taken apart into plain arrays, and put together again; checked, at load, to come out the same.

Layers that have one entry per token become per_token, all others are kept as they are, for exactly their tokens.
"""

import json
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from worker.batch import batchability, caches
from worker.batch.caches import Cache
from worker.disk_cache.entry import Contents
from worker.disk_cache.tensors import Tensor

DTYPES = (
    ("BOOL", mx.bool_), ("U8", mx.uint8), ("I8", mx.int8), ("U16", mx.uint16), ("I16", mx.int16), ("F16", mx.float16),
    ("BF16", mx.bfloat16), ("U32", mx.uint32), ("I32", mx.int32), ("F32", mx.float32), ("U64", mx.uint64),
    ("I64", mx.int64),
)  # fmt: skip
BITS = (mx.uint8, mx.uint16, mx.uint32, mx.uint64)
SAMPLE = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4)


class Unpackable(Exception):
    """There is something in this model's caches that can't be kept in a file."""


def serialize_cache(cache: Cache) -> Contents:
    """Return a cache as arrays, computed when this returns. Raises `Unpackable`."""
    per_token: dict[str, mx.array] = {}
    whole: dict[str, mx.array] = {}
    shapes: list[Any] = []
    for index, layer in enumerate(cache):
        shape: Any = None
        if _grows(layer):
            if layer.keys is None:
                raise Unpackable("a layer without keys")
            per_token |= {f"{index}.keys": layer.keys, f"{index}.values": layer.values}
        elif isinstance(layer, QuantizedKVCache):
            for name, parts in (("keys", layer.keys), ("values", layer.values)):
                per_token |= {f"{index}.{name}.{at}": part for at, part in enumerate(parts)}
        elif not hasattr(layer, "set_positions"):
            # Whoever takes the cache says where it stands.
            shape = [_flatten(layer.state, str(index), whole), getattr(layer, "meta_state", None)]
        shapes.append(shape)
    kept = [*per_token.values(), *whole.values()]
    # A view is an owner of its memory: nobody writes into that then, although the layers go on.
    views = [array.view(BITS[array.dtype.size.bit_length() - 1]) for array in kept]
    mx.eval(views)
    tensors = [Tensor(_name(array.dtype), np.asarray(view)) for array, view in zip(kept, views, strict=True)]
    return Contents(
        dict(zip(per_token, tensors[: len(per_token)], strict=True)),
        dict(zip(whole, tensors[len(per_token) :], strict=True)),
        json.dumps(shapes) if whole else "",
        views,
    )


class Assembly:
    """A cache that is put together layer by layer, so that it can be done between steps."""

    def __init__(self, model: Any, contents: Contents, length: int, *, bits: int = 0) -> None:
        """`bits` as in `caches.pack`."""
        self._bits = bits
        self.cache = caches.new(model)
        self.length = length
        self._per_token = dict(contents.per_token)
        self._whole = contents.whole
        self._shapes: list[Any] = json.loads(contents.shape) if contents.shape else []
        self._done = 0

    def copy_layer(self) -> bool:
        """Copy one layer; whether it was the last one. Raises whatever wrong content makes MLX raise."""
        index = self._done
        layer = self.cache[index]
        arrays = []
        if f"{index}.keys.0" in self._per_token:
            self.cache[index] = layer = self._quantized(index)
            arrays = [*layer.keys, *layer.values]
        elif _grows(layer):
            layer.keys, layer.values = (_array(self._per_token.pop(f"{index}.{name}")) for name in ("keys", "values"))
            layer.offset = self.length
            arrays = [layer.keys, layer.values]
        elif not hasattr(layer, "set_positions"):
            state, more = self._shapes[index]
            layer.state = _rebuild(state, self._whole, arrays)
            if more:
                # mlx-vlm's caches keep their counters apart.
                layer.meta_state = more
        mx.eval(arrays)
        self._done += 1
        return self._done == len(self.cache)

    def _quantized(self, index: int) -> QuantizedKVCache:
        keys, values = (
            tuple(_array(self._per_token.pop(f"{index}.{name}.{at}")) for at in range(3)) for name in ("keys", "values")
        )
        # 32 bits hold so many numbers, and a scale stands for a group of them.
        layer = QuantizedKVCache(keys[0].shape[-1] * 32 // self._bits // keys[1].shape[-1], self._bits)
        layer.keys, layer.values, layer.offset = keys, values, self.length
        return layer


def check_serialization(model: Any) -> Contents:
    """Return what a cache of this model consists of, once it has come out as it went in. Raises `Unpackable`."""
    cache = caches.new(model)
    model(mx.array([SAMPLE[:-1]]), cache=cache)
    mx.eval(caches.state(cache))
    try:
        contents = serialize_cache(cache)
        assembly = Assembly(model, _trim_contents(contents, len(SAMPLE) - 1), len(SAMPLE) - 1)
        while not assembly.copy_layer():
            pass
        caches.set_positions(assembly.cache, [len(SAMPLE) - 1])
        last = mx.array([SAMPLE[-1:]])
        same = batchability.agree(model(last, cache=assembly.cache)[:, -1], model(last, cache=cache)[:, -1])
    except Unpackable:
        raise
    except Exception as error:
        raise Unpackable(f"{type(error).__name__}: {error}") from error
    if not same:
        raise Unpackable("it does not come out as it went in")
    return contents


def _trim_contents(contents: Contents, length: int) -> Contents:
    per_token = {
        name: Tensor(tensor.dtype, tensor.bits[..., :length, :]) for name, tensor in contents.per_token.items()
    }
    return Contents(per_token, contents.whole, contents.shape)


def _grows(layer: Any) -> bool:
    """Return whether it has one entry per token and nothing else: mlx-lm's plain cache, or mlx-vlm's copy of that."""
    return bool(type(layer).__name__ == KVCache.__name__)


def _flatten(state: Any, name: str, arrays: dict[str, mx.array]) -> Any:
    """Return a layer's state with a name in place of each array, as JSON can hold it."""
    match state:
        case mx.array():
            arrays[name] = state
            return {"array": name}
        case list() | tuple():
            return [_flatten(part, f"{name}.{at}", arrays) for at, part in enumerate(state)]
        case None | bool() | int() | float() | str():
            return state
        case _:
            raise Unpackable(f"a {type(state).__name__}")


def _rebuild(shape: Any, tensors: dict[str, Tensor], arrays: list[mx.array]) -> Any:
    match shape:
        case {"array": str(name)}:
            arrays.append(_array(tensors[name]))
            return arrays[-1]
        case list():
            return [_rebuild(part, tensors, arrays) for part in shape]
        case _:
            return shape


def _array(tensor: Tensor) -> mx.array:
    dtype = next(dtype for name, dtype in DTYPES if name == tensor.dtype)
    return mx.array(tensor.bits).view(dtype)


def _name(dtype: mx.Dtype) -> str:
    found = next((name for name, known in DTYPES if known == dtype), None)
    if found is None:
        raise Unpackable(f"numbers of type {dtype}")
    return found
