"""The model's architecture, and its training step in a form that is quick on a CPU.

The arithmetic is that of mlx-lm's Qwen3, to rounding. Only exponentials are computed another way: as MLX's own take
most of a step's time on x86, here they are polynomials that a compiler can vectorise. Knows no data and no schedule.
"""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3

_Arrays = tuple[mx.array, ...]

CONTEXT_LENGTH = 2048
"""What the configuration promises; rows of training are shorter."""


def config(vocab_size: int, end: int, **sizes: int) -> dict[str, Any]:
    """`config.json`; `sizes` replaces any of the numbers."""
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
    """A model with fresh weights."""
    model: nn.Module = qwen3.Model(qwen3.ModelArgs.from_dict(settings))
    return model


def loss(model: Any, blocks: list[_Arrays]) -> mx.array:
    """Mean cross-entropy of what is learnt in the blocks, each (tokens, bias, places, targets, weights)."""
    hidden = [_hidden(model, tokens, bias)[places] for tokens, bias, places, *_ in blocks]
    targets = mx.concatenate([targets for *_, targets, _ in blocks])
    weights = mx.concatenate([weights for *_, weights in blocks])
    logits = model.model.embed_tokens.as_linear(mx.concatenate(hidden))
    return _cross_entropy(logits, targets, weights / mx.sum(weights))[0]


def _hidden(model: Any, tokens: mx.array, bias: mx.array) -> mx.array:
    x = model.model.embed_tokens(tokens)
    for layer in model.model.layers:
        x = x + _attention(layer.self_attn, layer.input_layernorm(x), bias)
        y = layer.post_attention_layernorm(x)
        x = x + layer.mlp.down_proj(_swiglu(layer.mlp.gate_proj(y), layer.mlp.up_proj(y))[0])
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
    output = _softmax(scores + bias[:, :, None]) @ values[:, :, None]
    return layer.o_proj(output.reshape(rows, layer.n_heads, length, -1).transpose(0, 2, 1, 3).reshape(rows, length, -1))


def _power(x: mx.array) -> mx.array:
    """Exponential of x, for x up to 0 or a little more; within 4e-6 of the value."""
    x = mx.maximum(x, -80.0) * 1.4426950408889634
    # Adding and taking away 1.5 * 2**23 rounds; the sum's low bits are the rounded number itself.
    shifted = x + 12582912.0
    x = x - (shifted - 12582912.0)
    x = ((((x * 0.0013333558 + 0.0096181291) * x + 0.0555041087) * x + 0.2402265070) * x + 0.6931471806) * x + 1.0
    return (x.view(mx.int32) + (shifted.view(mx.int32) << 23)).view(mx.float32)


def _softmax_forward(scores: mx.array) -> mx.array:
    powers = _quick_power(scores - mx.max(scores, axis=-1, keepdims=True))
    return powers / mx.sum(powers, axis=-1, keepdims=True)


def _softmax_backward(_: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    gradient: mx.array = _quick_softmax_gradient(output, cotangent, mx.sum(output * cotangent, axis=-1, keepdims=True))
    return gradient


def _softmax_gradient(probabilities: mx.array, cotangent: mx.array, total: mx.array) -> mx.array:
    return probabilities * (cotangent - total)


def _gate(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = 1.0 / (1.0 + _power(mx.minimum(-gate, 80.0)))
    return gate * sigmoid * up, sigmoid


def _gate_backward(primals: _Arrays, cotangents: _Arrays, outputs: _Arrays) -> _Arrays:
    gradients: _Arrays = _quick_gate_gradient(*primals, outputs[1], cotangents[0])
    return gradients


def _gate_gradient(gate: mx.array, up: mx.array, sigmoid: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    return cotangent * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), cotangent * gate * sigmoid


def _entropy_forward(logits: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    highest = mx.max(logits, axis=-1, keepdims=True)
    powers = _quick_power(logits - highest)
    total = mx.sum(powers, axis=-1, keepdims=True)
    said = mx.take_along_axis(logits, targets[:, None], axis=-1)
    return mx.sum((mx.log(total) + highest - said)[:, 0] * weights), powers / total


def _entropy_backward(primals: _Arrays, cotangents: _Arrays, outputs: _Arrays) -> _Arrays:
    _, targets, weights = primals
    chosen = mx.arange(outputs[1].shape[-1])[None] == targets[:, None]
    gradient = (outputs[1] - chosen.astype(mx.float32)) * (weights * cotangents[0])[:, None]
    return gradient, mx.zeros_like(targets), mx.zeros_like(weights)


def _custom(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with a gradient of its own; what it answers beside the first is there for `backward` alone."""
    function: Any = mx.custom_function(forward)
    function.vjp(backward)
    return cast("Callable[..., Any]", function)


_quick_power: Callable[..., Any] = mx.compile(_power)
_quick_softmax_gradient: Callable[..., Any] = mx.compile(_softmax_gradient)
_quick_gate_gradient: Callable[..., Any] = mx.compile(_gate_gradient)
_softmax = _custom(_softmax_forward, _softmax_backward)
_swiglu = _custom(mx.compile(_gate), _gate_backward)
_cross_entropy = _custom(_entropy_forward, _entropy_backward)
