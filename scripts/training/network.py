"""The model's architecture, and its training step in a form that is quick on a CPU.

The arithmetic is that of mlx-lm's Qwen3, to rounding. Knows no data and no schedule.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3

from training import fast_ops
from training.batches import Block

Arrays = tuple[mx.array, ...]

CONTEXT_LENGTH = 2048
"""What the configuration promises; rows of training are shorter."""


def config(vocab_size: int, end: int, **sizes: int) -> dict[str, Any]:
    """Return the content of `config.json`; `sizes` replaces any of the numbers."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "max_position_embeddings": CONTEXT_LENGTH,
        "vocab_size": vocab_size,
        "eos_token_id": end,
        "torch_dtype": "float16",
        **sizes,
    }


def build(settings: dict[str, Any]) -> nn.Module:
    """Build a model with fresh weights."""
    model: nn.Module = qwen3.Model(qwen3.ModelArgs.from_dict(settings))
    return model


def arrays(block: Block) -> Arrays:
    """Return a block as `loss` takes it."""
    return tuple(mx.array(part) for part in (block.tokens, block.bias, block.places, block.targets, block.weights))


def loss(model: Any, blocks: list[Arrays]) -> mx.array:
    """Return the mean cross-entropy of what is learnt in blocks of (tokens, bias, places, targets, weights)."""
    hidden = [_hidden(model, tokens, bias)[places] for tokens, bias, places, *_ in blocks]
    targets = mx.concatenate([targets for *_, targets, _ in blocks])
    weights = mx.concatenate([weights for *_, weights in blocks])
    logits = model.model.embed_tokens.as_linear(mx.concatenate(hidden))
    return fast_ops.cross_entropy(logits, targets, weights / mx.sum(weights))[0]


def _hidden(model: Any, tokens: mx.array, bias: mx.array) -> mx.array:
    x = model.model.embed_tokens(tokens)
    for layer in model.model.layers:
        x = x + _attention(layer.self_attn, layer.input_layernorm(x), bias)
        y = layer.post_attention_layernorm(x)
        x = x + layer.mlp.down_proj(fast_ops.swiglu(layer.mlp.gate_proj(y), layer.mlp.up_proj(y))[0])
    return model.model.norm(x).reshape(-1, x.shape[-1])


def _attention(layer: Any, x: mx.array, bias: mx.array) -> mx.array:
    rows, length, _ = x.shape
    shared = layer.n_heads // layer.n_kv_heads

    def heads(values: mx.array, n: int) -> mx.array:
        return values.reshape(rows, length, n, -1)

    queries = layer.q_norm(heads(layer.q_proj(x), layer.n_heads)).transpose(0, 2, 1, 3)
    keys = layer.k_norm(heads(layer.k_proj(x), layer.n_kv_heads)).transpose(0, 2, 1, 3)
    values = heads(layer.v_proj(x), layer.n_kv_heads).transpose(0, 2, 1, 3)
    queries = (layer.rope(queries) * layer.scale).reshape(rows, layer.n_kv_heads, shared, length, -1)
    scores = queries @ layer.rope(keys)[:, :, None].swapaxes(-1, -2)
    output = fast_ops.softmax(scores + bias[:, :, None]) @ values[:, :, None]
    return layer.o_proj(output.reshape(rows, layer.n_heads, length, -1).transpose(0, 2, 1, 3).reshape(rows, length, -1))
