"""From hidden states to vectors: pooling and the layers behind it, as sentence-transformers has them."""

from types import MappingProxyType

import mlx.core as mx
import mlx.nn as nn

from worker.engines.base import EngineLoadError
from worker.engines.embedding.model_files import DenseFiles

ACTIVATIONS = MappingProxyType({"": lambda x: x, "Tanh": mx.tanh, "GELU": nn.gelu, "ReLU": nn.relu})


class Dense:
    """`sentence_transformers.models.Dense`: a linear layer, computed in float32."""

    def __init__(self, weight: mx.array, bias: mx.array | None = None, activation: str = "") -> None:
        self._weight = weight.astype(mx.float32)
        self._bias = None if bias is None else bias.astype(mx.float32)
        self._activation = ACTIVATIONS[activation]

    @classmethod
    def read_layer(cls, files: DenseFiles) -> "Dense":
        """Load one from its folder. Raises `EngineLoadError`."""
        try:
            weights: dict[str, mx.array] = mx.load(str(files.folder / "model.safetensors"))
            return cls(weights["linear.weight"], weights.get("linear.bias"), files.activation)
        except (OSError, RuntimeError, KeyError) as error:
            raise EngineLoadError(f"the layer {files.folder.name} can't be used: {error}") from None

    def __call__(self, x: mx.array) -> mx.array:
        """From (texts, in) to (texts, out)."""
        x = x @ self._weight.T
        return self._activation(x if self._bias is None else x + self._bias)


def stored(weights: dict[str, mx.array]) -> list[Dense]:
    """Conversions by mlx-embeddings keep these layers among the weights, as `dense.0.weight`."""
    layers: list[Dense] = []
    while (name := f"dense.{len(layers)}.weight") in weights:
        if name.replace("weight", "scales") in weights:
            raise EngineLoadError("the layers behind the pooling are quantised; convert the model without them")
        layers.append(Dense(weights[name]))
    return layers


def pool(hidden: mx.array, mask: mx.array, how: str) -> mx.array:
    """From (texts, length, width) to (texts, width), over the tokens where `mask` is 1."""
    count = mx.sum(mask, axis=1, keepdims=True)
    match how:
        case "cls":
            # Of a skipped prompt, too: the first token stands for the whole text.
            return hidden[:, 0]
        case "lasttoken":
            last = mask.shape[1] - 1 - mx.argmax(mask[:, ::-1], axis=1)
            return mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        case "max":
            return mx.max(mx.where(mask[..., None] > 0, hidden, -1e9), axis=1)
        case "weightedmean":
            mask = mask * mx.arange(1, mask.shape[1] + 1)
            count = mx.sum(mask, axis=1, keepdims=True)
        case "mean_sqrt_len_tokens":
            count = mx.sqrt(count)
        case _:
            pass
    return mx.sum(hidden * mask[..., None], axis=1) / count
