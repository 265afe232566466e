"""Operations of a training step in a form that is quick on a CPU.

Exponentials take most of a step's time in MLX's own form on x86; here they are polynomials that a compiler can
vectorise. Knows no architecture.
"""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx

_Arrays = tuple[mx.array, ...]


def _power(x: mx.array) -> mx.array:
    """Compute the exponential of x, for x up to 0 or a little more; within 4e-6 of the value."""
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


def _gelu(x: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = 1.0 / (1.0 + _power(mx.minimum(-1.702 * x, 80.0)))
    return x * sigmoid, sigmoid


def _gelu_backward(primal: mx.array, cotangents: _Arrays, outputs: _Arrays) -> mx.array:
    gradient: mx.array = _quick_gelu_gradient(primal, outputs[1], cotangents[0])
    return gradient


def _gelu_gradient(x: mx.array, sigmoid: mx.array, cotangent: mx.array) -> mx.array:
    return cotangent * sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid))


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
    """Give `forward` a gradient of its own; what it answers beside the first is there for `backward` alone."""
    function: Any = mx.custom_function(forward)
    function.vjp(backward)
    return cast("Callable[..., Any]", function)


_quick_power: Callable[..., Any] = mx.compile(_power)
_quick_softmax_gradient: Callable[..., Any] = mx.compile(_softmax_gradient)
_quick_gelu_gradient: Callable[..., Any] = mx.compile(_gelu_gradient)
_quick_gate_gradient: Callable[..., Any] = mx.compile(_gate_gradient)
softmax = _custom(_softmax_forward, _softmax_backward)
"""Over the last axis."""
swiglu = _custom(mx.compile(_gate), _gate_backward)
"""Of a gate and what it lets through: the product is the first of the answers."""
gelu = _custom(mx.compile(_gelu), _gelu_backward)
"""`x * sigmoid(1.702 x)`: the first of the answers."""
cross_entropy = _custom(_entropy_forward, _entropy_backward)
"""Of logits, targets and weights: the weighted sum is the first of the answers."""
