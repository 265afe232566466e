"""The vision model's architecture, and its training step in a form that is quick on a CPU.

The arithmetic is that of mlx-vlm's Qwen2-VL, to rounding; the weights are its own. Knows no data and no schedule.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from training import fast_ops
from worker.engines.skip_init import enter_package

CONTEXT_LENGTH = 2048
"""What the configuration promises; rows of training are shorter."""
PATCH, MERGE, FRAMES = 14, 2, 2
"""Pixels of a patch's side, patches of an image token's side, and frames that an image is repeated for."""


def module(name: str) -> Any:
    """Return a module of mlx-vlm's `models`. Raises `EngineLoadError` where it is not installed."""
    enter_package("mlx_vlm")
    return importlib.import_module(f"mlx_vlm.models.{name}")


def config(vocab_size: int, ids: dict[str, int], *, vision: dict[str, int], language: dict[str, int]) -> dict[str, Any]:
    """Return the content of `config.json`; `ids` are the control tokens', and sizes replace any of the numbers."""
    language = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, **language}
    return {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        **language,
        "num_attention_heads": language["hidden_size"] // 32,
        "num_key_value_heads": language["hidden_size"] // 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "max_position_embeddings": CONTEXT_LENGTH,
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": 3,
            "embed_dim": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
            **vision,
            "hidden_size": language["hidden_size"],
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
        },
        "torch_dtype": "float16",
    }


def build(settings: dict[str, Any]) -> nn.Module:
    """Build a model with fresh weights."""
    qwen2_vl = module("qwen2_vl")
    made = qwen2_vl.ModelConfig.from_dict(dict(settings))
    made.vision_config = qwen2_vl.VisionConfig.from_dict(settings["vision_config"])
    made.text_config = qwen2_vl.TextConfig.from_dict(settings)
    model: nn.Module = qwen2_vl.Model(made)
    return model


@dataclass(frozen=True, kw_only=True)
class VisionBatch:
    """Rows of several conversations each, and the pictures in them, all of one size.

    `positions` (3, rows, length) are those of M-RoPE; `sources` (rows x length) says where a token's embedding is:
    below rows x length in the embedded tokens, from there on among the image tokens. `patches` (pictures, patches of
    each, values of a patch) and `grid`, patches down and across, are the processor's. The rest is as in a `Block`.
    """

    tokens: mx.array
    positions: mx.array
    sources: mx.array
    patches: mx.array
    grid: tuple[int, int]
    bias: mx.array
    places: mx.array
    targets: mx.array
    weights: mx.array


def loss(model: Any, batch: VisionBatch) -> mx.array:
    """Return the mean cross-entropy of what is learnt in the batch."""
    language = model.language_model.model
    words = language.embed_tokens(batch.tokens)
    seen = see(model.vision_tower, batch.patches, batch.grid)
    width = words.shape[-1]
    x = mx.concatenate([words.reshape(-1, width), seen.reshape(-1, width)])[batch.sources].reshape(words.shape)
    turns = language.layers[0].self_attn.rotary_emb(x, batch.positions)
    cosine, sine = (part[:, None] for part in turns)
    for layer in language.layers:
        x = x + _attention(layer.self_attn, layer.input_layernorm(x), batch.bias, cosine, sine)
        y = layer.post_attention_layernorm(x)
        x = x + layer.mlp.down_proj(fast_ops.swiglu(layer.mlp.gate_proj(y), layer.mlp.up_proj(y))[0])
    hidden = language.norm(x.reshape(-1, width)[batch.places])
    logits = language.embed_tokens.as_linear(hidden)
    return fast_ops.cross_entropy(logits, batch.targets, batch.weights / mx.sum(batch.weights))[0]


def see(tower: Any, patches: mx.array, grid: tuple[int, int]) -> mx.array:
    """Return the image tokens of pictures of one size, shape (pictures, tokens of each, width)."""
    pictures, each, _ = patches.shape
    kernel = tower.patch_embed.proj.weight
    x = patches @ kernel.transpose(4, 1, 2, 3, 0).reshape(-1, kernel.shape[0])
    angles = tower.rot_pos_emb(mx.array([[1, *grid]]))
    cosine, sine = (mx.tile(part, (1, 2)) for part in (mx.cos(angles), mx.sin(angles)))
    for block in tower.blocks:
        layer = block.attn
        queries, keys, values = (
            layer.qkv(block.norm1(x)).reshape(pictures, each, 3, layer.num_heads, -1).transpose(2, 0, 3, 1, 4)
        )
        queries, keys = _turned(queries * layer.scale, cosine, sine), _turned(keys, cosine, sine)
        attended = fast_ops.softmax(queries @ keys.swapaxes(-1, -2)) @ values
        x = x + layer.proj(attended.transpose(0, 2, 1, 3).reshape(x.shape))
        x = x + block.mlp.fc2(fast_ops.gelu(block.mlp.fc1(block.norm2(x)))[0])
    seen: mx.array = tower.merger(x)
    return seen.reshape(pictures, each // MERGE**2, -1)


def _turned(x: mx.array, cosine: mx.array, sine: mx.array) -> mx.array:
    half = x.shape[-1] // 2
    return x * cosine + mx.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sine


def _attention(layer: Any, x: mx.array, bias: mx.array, cosine: mx.array, sine: mx.array) -> mx.array:
    rows, length, _ = x.shape

    def heads(values: mx.array, n: int) -> mx.array:
        return values.reshape(rows, length, n, -1).transpose(0, 2, 1, 3)

    queries = _turned(heads(layer.q_proj(x), layer.n_heads) * layer.scale, cosine, sine)
    queries = queries.reshape(rows, layer.n_kv_heads, -1, length, layer.head_dim)
    keys = _turned(heads(layer.k_proj(x), layer.n_kv_heads), cosine, sine)[:, :, None]
    values = heads(layer.v_proj(x), layer.n_kv_heads)[:, :, None]
    output = fast_ops.softmax(queries @ keys.swapaxes(-1, -2) + bias[:, :, None]) @ values
    return layer.o_proj(output.reshape(rows, layer.n_heads, length, -1).transpose(0, 2, 1, 3).reshape(rows, length, -1))
