"""Draft models that agree with a tiny model now and then: the same weights, with noise."""

import shutil
from pathlib import Path

import mlx.core as mx


def make_draft(model: Path, folder: Path, *, noise: float = 0.05, seed: int = 0) -> Path:
    """A copy of the model whose matrices are off by `noise` of what they hold on average."""
    shutil.copytree(model, folder)
    (file,) = folder.glob("*.safetensors")
    key = mx.random.key(seed)
    weights = dict(mx.load(str(file)))
    for name, array in weights.items():
        if array.ndim == 2:
            key, draw = mx.random.split(key)
            weights[name] = array + noise * mx.std(array) * mx.random.normal(array.shape, key=draw)
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    return folder
