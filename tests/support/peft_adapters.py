"""LoRA adapters as PEFT writes them, and what models are with such an adapter merged into their weights."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
PREFIX = "base_model.model."


def write_peft(folder: Path, model: Any, layers: list[str], *, seed: int, rank: int = 4, **config: Any) -> Path:
    """An adapter of some layers of a bare model, drawn from a seed so that answers change much."""
    draws = np.random.default_rng(seed)
    modules = dict(model.named_modules())
    tensors: Tensors = {}
    for layer in layers:
        weight = dense(modules[layer])
        embeds = isinstance(modules[layer], nn.Embedding)
        outputs, inputs = reversed(weight.shape) if embeds else weight.shape
        a, b = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A.weight", "lora_B.weight")
        tensors[f"{PREFIX}{layer}.{a}"] = 0.2 * draws.standard_normal((rank, inputs)).astype(np.float32)
        tensors[f"{PREFIX}{layer}.{b}"] = 0.2 * draws.standard_normal((outputs, rank)).astype(np.float32)
        if config.get("use_dora"):
            norm = np.linalg.norm(weight, axis=1) * draws.uniform(1, 1.5, outputs)
            tensors[f"{PREFIX}{layer}.lora_magnitude_vector"] = norm.astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({layer.rpartition(".")[2] for layer in layers})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": targets, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def merged(model: Any, folder: Path) -> Any:
    """A bare model with W + scale * B @ A for W, by numpy; DoRA gives its rows the lengths that the adapter says."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    found = []
    for layer in sorted({re.split(r"\.lora_", key.removeprefix(PREFIX))[0] for key in tensors if ".lora_" in key}):
        parts = {key.removeprefix(f"{PREFIX}{layer}."): array for key, array in tensors.items()}
        a, b = (next(parts[key] for key in names if key in parts) for names in (NAMES_A, NAMES_B))
        delta = scale(config, layer) * (b @ a)
        embeds = isinstance(modules[layer], nn.Embedding)
        weight = dense(modules[layer]) + (delta.T if embeds else delta)
        if "lora_magnitude_vector" in parts:
            weight *= (parts["lora_magnitude_vector"] / np.linalg.norm(weight, axis=1))[:, None]
        one: Any = nn.Embedding(1, 1) if embeds else nn.Linear(1, 1, bias=False)
        one.weight = mx.array(weight)
        if "bias" in modules[layer]:
            one.bias = modules[layer].bias
        found.append((layer, one))
    model.update_modules(tree_unflatten(found))
    return model


NAMES_A, NAMES_B = ("lora_A.weight", "lora_embedding_A"), ("lora_B.weight", "lora_embedding_B")


def scale(config: dict[str, Any], layer: str) -> float:
    """As PEFT's documentation has it; patterns are the ends of names here."""

    def of(patterns: str, default: str) -> Any:
        found = (value for end, value in config.get(patterns, {}).items() if layer.endswith(f".{end}"))
        return next(found, config[default])

    rank, alpha = of("rank_pattern", "r"), of("alpha_pattern", "lora_alpha")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def dense(layer: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A layer's weight without quantisation."""
    weight = layer.weight
    if "scales" in layer:
        weight = mx.dequantize(weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits)
    return np.array(weight.astype(mx.float32))
