"""A loaded model's place on disk: what its prefixes must never be confused with, whether they can be kept at all."""

import hashlib
import json
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from worker.batch import serialization
from worker.config import WorkerConfig
from worker.disk_cache.cache import DiskPrefixCache
from worker.disk_cache.entry import Contents
from worker.disk_cache.folder import CacheFolder, DiskCacheError
from worker.engines.loading import LoadedModel, read_json

log = logging.getLogger("worker")

LAYOUT = 1
"""Changes with what is in the files."""
PACKAGES = ("mlx", "mlx-lm", "mlx-vlm")
FEW = 16
"""So many numbers of each weight are looked at one by one."""


def open_disk_cache(config: WorkerConfig, loaded: LoadedModel) -> DiskPrefixCache | None:
    """Return the prefixes of this model on disk; None where that is off or can't be had, which the log says."""
    if config.prefix_disk_folder is None or not config.prefix_disk_bytes:
        return None
    try:
        contents = serialization.check_serialization(loaded.model)
        folder = CacheFolder(config.prefix_disk_folder, config.prefix_disk_bytes)
    except serialization.Unpackable as error:
        log.warning("prefixes are not kept on disk: this model's caches can't be: %s", error)
        return None
    except DiskCacheError as error:
        log.warning("prefixes are not kept on disk: %s", error)
        return None
    model = identity(config, loaded, contents)
    log.info("prefixes are kept in %s: %d MB there", config.prefix_disk_folder, folder.used_bytes >> 20)
    return DiskPrefixCache(folder, model=model, per_token=bool(contents.per_token), whole=bool(contents.whole))


def identity(config: WorkerConfig, loaded: LoadedModel, contents: Contents) -> str:
    """Return a digest of all that a cache depends on.

    That is weights as they are in memory, configuration, libraries, layout.
    """
    adapter = read_json(Path(config.adapter_path) / "adapter_config.json") if config.adapter_path else {}
    facts = {
        "layout": LAYOUT,
        "config": loaded.config,
        "adapter": adapter,
        "quantization": loaded.quantization,
        "bits": config.prefix_kv_bits,
        "versions": [_version(name) for name in PACKAGES],
        "device": str(mx.default_device()),
        "strips": {name: _form(tensor.dtype, tensor.bits.shape) for name, tensor in contents.per_token.items()},
        "shape": contents.shape,
    }
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16)
    for text in _weights(loaded.model):
        digest.update(text.encode())
    return digest.hexdigest()


def _form(dtype: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return (dtype, *shape[:-2], shape[-1])


def _weights(model: Any) -> list[str]:
    """Return a line for each weight: the sum of its bits, and its first ones.

    It is one pass over memory, done by the device.
    """
    found = []
    for name, array in sorted(tree_flatten(model.parameters())):
        bits = array.reshape(-1).view(serialization.BITS[array.dtype.size.bit_length() - 1])
        found.append((f"{name} {array.dtype} {array.shape}", mx.sum(bits), bits[:FEW]))
    mx.eval([part for _, *parts in found for part in parts])
    return [f"{name} {total.item()} {few.tolist()}\n" for name, total, few in found]


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
