"""Weights: from a folder into a model, in the precision that the machine computes in, quantised where that is asked.

Reads safetensors only, never code.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from worker.engines.base import EngineLoadError

log = logging.getLogger("worker")

GROUP = 64
LARGE_MACHINE_BYTES = 32 * 10**9
"""From here on `auto` spends 8 bits on a weight. A machine sold with 32 GB has at least that many bytes."""


def read(folder: Path) -> dict[str, mx.array]:
    """All tensors of a folder, not of those below it. Raises `EngineLoadError` where there are none."""
    weights: dict[str, mx.array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= mx.load(str(path))
    if not weights:
        raise EngineLoadError("there are no *.safetensors weights")
    return weights


def fill(model: Any, weights: dict[str, mx.array], config: dict[str, Any], *, optional: tuple[str, ...] = ()) -> None:
    """Put weights where they belong. What the model has no place for is left out, what it lacks is an error.

    `optional` are beginnings of names that may be missing. Raises `EngineLoadError`.
    """
    quantization = config.get("quantization")
    if quantization:
        nn.quantize(
            model,
            group_size=quantization["group_size"],
            bits=quantization["bits"],
            mode=quantization.get("mode", "affine"),
            class_predicate=lambda path, layer: _stored(path, layer, weights, quantization),
        )
    wanted = {name for name, _ in tree_flatten(model.parameters())}
    missing = {name for name in wanted - weights.keys() if not name.startswith(optional)}
    if missing:
        raise EngineLoadError(f"{len(missing)} weights are missing, {min(missing)} for one")
    model.load_weights([(name, array) for name, array in weights.items() if name in wanted], strict=False)
    model.eval()


def _stored(path: str, layer: Any, weights: dict[str, mx.array], quantization: dict[str, Any]) -> Any:
    """Return how a layer was quantised when it was saved: some folders give single layers other bits."""
    if not hasattr(layer, "to_quantized") or f"{path}.scales" not in weights:
        return False
    return quantization.get(path, True)


def settle(
    model: Any, config: dict[str, Any], *, quantize: str, keep: Callable[[str], bool] = lambda _path: False
) -> str:
    """Bring loaded weights into the form they are served in. Answers how they are held: `none`, `q4`, `q8`, ….

    `quantize` is `auto`, `q4`, `q8` or `none`; weights that came quantised stay as they are, and so
    do layers whose path `keep` names.
    """
    stored = config.get("quantization") or config.get("quantization_config")
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if stored:
        held = f"q{stored['bits']}" if "bits" in stored else str(stored.get("quant_method", "quantized"))
        if quantize not in ("auto", "none", held):
            log.warning("--quantize %s: the weights are %s already and stay so", quantize, held)
    else:
        if on_cpu:
            # Half precision is software on the CPU, float32 is BLAS; small models are what one serves there.
            model.set_dtype(mx.float32)
        held = _automatic(on_cpu) if quantize == "auto" else quantize
        if held != "none" and not _quantize(model, bits=int(held[1:]), keep=keep):
            if quantize != "auto":
                raise EngineLoadError(f"--quantize {held}: no layer of this model can be quantised")
            held = "none"
    mx.eval(model.parameters())
    return held


def _automatic(on_cpu: bool) -> str:
    # On the CPU a quantised matmul is many times slower than BLAS, and nothing is won but memory.
    if on_cpu:
        return "none"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return "q8" if memory >= LARGE_MACHINE_BYTES else "q4"


def _quantize(model: Any, *, bits: int, keep: Callable[[str], bool]) -> bool:
    """Quantise every layer whose rows can be cut into groups. False where there is none."""
    done = False
    # Some architectures know layers that must not lose precision (routers of experts), or not as much.
    special: Callable[[str, Any], Any] = getattr(model, "quant_predicate", None) or (lambda *_: True)

    def wanted(path: str, layer: Any) -> Any:
        nonlocal done
        if not hasattr(layer, "to_quantized") or layer.weight.shape[-1] % GROUP or keep(path):
            return False
        answer = special(path, layer)
        done = done or bool(answer)
        return answer

    nn.quantize(model, group_size=GROUP, bits=bits, class_predicate=wanted)
    return done


def size(model: Any) -> int:
    """Bytes of all weights."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))
