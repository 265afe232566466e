"""LoRA adapters of tiny models, made with mlx-lm's own layers and written as its trainer writes them."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

LORA = {"rank": 4, "scale": 10.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]}


def make_adapter(model: Path, folder: Path, *, seed: int, kind: str = "lora", **lora: Any) -> Path:
    """An adapter of a model, drawn from a seed so that answers change much; `kind` as `fine_tune_type` says it."""
    base, _ = load_model(model)
    parameters = {**LORA, **lora}
    linear_to_lora_layers(base, 2, parameters, use_dora=kind == "dora")
    key = mx.random.key(seed)
    own = {}
    for path, array in tree_flatten(base.parameters()):
        name = path.rpartition(".")[2]
        if name in ("lora_a", "lora_b"):
            key, draw = mx.random.split(key)
            own[path] = 0.2 * mx.random.normal(array.shape, key=draw)
        elif name == "m":
            own[path] = array
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), own)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
