"""LoRA adapters beside a bare model: each a model of its own that shares the bare one's weights.

Reads mlx-lm's own format and PEFT's, safetensors and JSON, never code.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters

from worker.device_errors import is_device_error
from worker.engines import peft
from worker.engines.base import EngineLoadError

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
LEAVES = ("lora_a", "lora_b", "m")
"""What a layer has of an adapter (`m` where it is DoRA)."""


class Adapted(msgspec.Struct, frozen=True, kw_only=True):
    """A model with an adapter. `digest` changes with the adapter's files, `own_bytes` are those it does not share."""

    model: Any
    digest: str
    own_bytes: int


def adapt(base: Any, name: str, folder: Path) -> Adapted:
    """Return the model `base` with the adapter of a folder; `base` stays as it is. Raises `EngineLoadError`.

    The copy shares every array that the adapter leaves alone: layers are Python objects around arrays that are never
    written to. So rows of both can be computed by turns at the memory of one.
    """
    try:
        model = copy.deepcopy(base)
        own = apply(model, folder)
    except EngineLoadError as error:
        raise EngineLoadError(f"adapter {name}: {error}") from error
    mx.eval(own)
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(file.read_bytes())
    return Adapted(model=model, digest=digest.hexdigest(), own_bytes=sum(array.nbytes for array in own))


def apply(model: Any, folder: Path) -> list[mx.array]:
    """Put an adapter on a model, in place; returns what it brought. Raises `EngineLoadError` where it does not fit."""
    settings, weights = _files(folder)
    config = _read_config(settings)
    try:
        given = mx.load(str(weights))
    except Exception as error:
        if is_device_error(error):
            raise
        raise EngineLoadError(_first_lines(str(error))) from error
    if mx.default_device() == mx.Device(mx.cpu):
        # As the weights of the model itself: half precision is software there.
        given = {path: array.astype(mx.float32) for path, array in given.items()}
    own = peft.put(model, config, given) if weights.name == peft.WEIGHTS else _put(model, folder, given)
    model.eval()
    return own


def _put(model: Any, folder: Path, given: dict[str, mx.array]) -> list[mx.array]:
    """Put an adapter of mlx-lm's own on a model."""
    try:
        load_adapters(model, str(folder))
    except Exception as error:
        raise EngineLoadError(_first_lines(str(error))) from error
    wanted = {path for path, _ in tree_flatten(model.parameters()) if path.rpartition(".")[2] in LEAVES}
    if missing := wanted - given.keys():
        # mlx-lm leaves these as they were drawn: the layer would silently do nothing, or something random.
        raise EngineLoadError(f"{WEIGHTS} lacks {len(missing)} of {len(wanted)} tensors, {min(missing)} for one")
    model.load_weights([*given.items()], strict=False)
    return [*given.values()]


def _files(folder: Path) -> tuple[Path, Path]:
    """Return the files of configuration and weights. Raises `EngineLoadError` for what is no adapter."""
    if not (folder / CONFIG).is_file():
        raise EngineLoadError(f"there is no {CONFIG} in {folder}")
    for name in (WEIGHTS, peft.WEIGHTS):
        if (folder / name).is_file():
            return folder / CONFIG, folder / name
    if (folder / peft.PICKLE).exists():
        raise EngineLoadError(f"{folder} holds {peft.PICKLE}, a pickle, which is never read: save it as safetensors")
    raise EngineLoadError(f"there is no {WEIGHTS} and no {peft.WEIGHTS} in {folder}")


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineLoadError(f"{CONFIG} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise EngineLoadError(f"{CONFIG} is no JSON object")
    return config


def _first_lines(text: str, most: int = 4) -> str:
    lines = text.splitlines()
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return " ".join([line.strip() for line in lines[:most]] + more)
