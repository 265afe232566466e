"""Random weights that make a model say something: shapes from mlx-lm's own class, numbers from a seed.

As libraries initialise them, models repeat one token for ever, and a bug that mixes up rows or positions goes
unseen. Wide weights and a head of its own give varied greedy answers. Never depends on MLX's random numbers.
"""

import importlib
import json
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from worker.engines.skip_init import enter_package


def write(config: dict[str, Any], folder: Path, *, seed: int, norm_centre: float, silent: list[int]) -> int:
    """Write `model.safetensors`; answers the number of parameters.

    `norm_centre` is the value of a norm's weight that leaves its input's size alone; `silent` are token ids that
    the head never prefers, so that a random model does not open a tool call in the middle of a word.
    """
    model = _vision_model(config) if "vision_config" in config else _text_model(config)
    shapes: list[tuple[str, mx.array]] = tree_flatten(model.parameters())
    arrays = {name: _draw(name, initial, seed, norm_centre) for name, initial in shapes}
    head = next(name for name in arrays if name.endswith("lm_head.weight"))
    if config["tie_word_embeddings"]:
        _quieten_embedding(arrays)
        del arrays[head]
        head = next(name for name in arrays if "embed_tokens" in name)
    arrays[head][silent] = 0
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {name: mx.array(values) for name, values in arrays.items()},
        metadata={"format": "mlx"},
    )
    return sum(values.size for values in arrays.values())


def _quieten_embedding(arrays: "dict[str, np.ndarray[Any, np.dtype[np.float32]]]") -> None:
    """Let layers add more to the stream than the token brings, or a head that is the embedding repeats that token."""
    for name, values in arrays.items():
        if "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
            values += 40


def _text_model(config: dict[str, Any]) -> Any:
    model_class, arguments_class = _get_classes(config=config)
    return model_class(arguments_class.from_dict(config))


def _vision_model(config: dict[str, Any]) -> Any:
    enter_package("mlx_vlm")
    utils = importlib.import_module("mlx_vlm.utils")
    module, _ = utils.get_model_and_args(config)
    # Reading a config moves things about in it.
    config = json.loads(json.dumps(config))
    config.setdefault("text_config", {})
    model_config = module.ModelConfig.from_dict(config)
    return module.Model(utils.update_module_configs(model_config, module, config, ["text", "vision"]))


def _draw(name: str, initial: mx.array, seed: int, norm_centre: float) -> "np.ndarray[Any, np.dtype[np.float32]]":
    # A generator per tensor: adding one leaves the others as they were.
    random = np.random.default_rng((seed, zlib.crc32(name.encode())))
    shape = initial.shape
    if name.endswith(".D"):
        values = np.ones(shape)
    elif name.endswith("A_log"):
        # State-space decay rates, the classes' own but slower: with a memory of a few tokens a state that got lost
        # would go unseen, with a much longer one answers turn in circles.
        values = np.array(initial, dtype=np.float64) - np.log(2)
    elif name.endswith("dt_bias"):
        # Mamba's: steps between 0.001 and 0.1, spread evenly over their logarithm, through an inverse softplus.
        values = np.log(np.expm1(np.exp(random.uniform(np.log(0.001), np.log(0.1), shape))))
    elif "norm" in name.lower():
        values = norm_centre + 0.1 * random.standard_normal(shape)
    elif name.endswith("bias"):
        values = 0.1 * random.standard_normal(shape)
    else:
        # Linear weights are (out, in), convolutions (out, width, in per group).
        values = 3 / np.sqrt(np.prod(shape[1:])) * random.standard_normal(shape)
    return values.astype(np.float32)
