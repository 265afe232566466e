"""LoRA adapters as Hugging Face's PEFT writes them, put onto models of mlx-lm.

Knows names and numbers, no files. What cannot be honoured is refused by name: an adapter works whole or not at all.
"""

import math
import re
from collections.abc import Mapping, Set
from typing import Annotated, Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_unflatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

from worker.engines.base import EngineLoadError

WEIGHTS, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
UNSUPPORTED = (
    "modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "ensure_weight_tying",
)  # fmt: skip
"""Settings that change what the tensors mean, or bring tensors that are no LoRA."""
SUPPORTED_USES = frozenset({"use_dora", "use_rslora"})
HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Ways to draw the first tensors; the others (PiSSA, OLoRA, ...) take them out of the model's own weights."""
TENSOR = re.compile(
    r"base_model\.model\.(?P<layer>.+)"
    r"\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?"
)
WHOLE = re.compile(r"base_model\.model\.(?P<layer>.+?)(\.base_layer)?\.weight")
CORE = re.compile(r"(model\.language_model\.|language_model\.model\.|language_model\.|model\.)?(?P<rest>.+)")
"""What a layer is called below the wrappings of transformers and of mlx-lm for models that also see."""
SAME, SAME_QUANTISED = 0.02, 0.25
"""Relative distances within which weights are the same: rounded to 16 bits, or to 4 bits and up."""

Count = Annotated[int, msgspec.Meta(ge=1)]


class PeftSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is honoured of `adapter_config.json`, with PEFT's names and defaults."""

    peft_type: str = "LORA"
    r: Count = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, Count] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None

    def layer_rank(self, layer: str) -> int:
        """Return the rank that a layer's tensors have."""
        return int(_by_pattern(self.rank_pattern, layer, self.r))

    def layer_scale(self, layer: str) -> float:
        """Return what B @ A is multiplied by.

        It is alpha / r, or alpha / sqrt(r) (rank-stabilised LoRA, arXiv:2312.03732).
        """
        rank, alpha = self.layer_rank(layer), _by_pattern(self.alpha_pattern, layer, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def put(model: Any, config: dict[str, Any], given: dict[str, mx.array]) -> list[mx.array]:
    """Put an adapter on a model, in place, from its configuration and tensors; returns what the model has of them.

    A is `[r, in]`, B `[out, r]`, a DoRA magnitude `[out]`. Raises `EngineLoadError`.
    """
    settings = _settings(config)
    layers: dict[str, nn.Module] = dict(model.named_modules())
    found: dict[str, dict[str, mx.array]] = {}
    for key, array in given.items():
        if match := TENSOR.fullmatch(key):
            found.setdefault(match["layer"], {})[match["part"]] = array
        else:
            _check_whole(key, array, layers)
    if not found:
        raise _refused("holds no LoRA tensors")
    places = {layer: _place(layer, layers) for layer in found}
    adapted: dict[str, nn.Module] = {}
    own = []
    for layer, place in places.items():
        if place in adapted:
            raise _refused(f"adapts {layer} by two names")
        adapted[place], arrays = _adapted(layer, layers[place], found[layer], settings)
        own += arrays
    _check_targets(settings, adapted.keys(), layers)
    model.update_modules(tree_unflatten([*adapted.items()]))
    return own


class _InputEmbedding(LoRAEmbedding):  # type: ignore[misc]
    """Leaves the output alone where the head is tied to it: in PEFT the head has the model's own weights."""

    def as_linear(self, x: mx.array) -> mx.array:
        logits: mx.array = self.embedding.as_linear(x)
        return logits


def _adapted(
    name: str, layer: nn.Module, parts: dict[str, mx.array], settings: PeftSettings
) -> tuple[nn.Module, list[mx.array]]:
    """Return a layer with its adapter around it, and the tensors that this brought."""
    embeds = isinstance(layer, nn.Embedding | nn.QuantizedEmbedding)
    if not embeds and not isinstance(layer, nn.Linear | nn.QuantizedLinear):
        raise _refused(f"adapts {name}, which is a {type(layer).__name__} here: only plain layers can be adapted")
    if embeds and settings.use_dora:
        raise _refused(f"adapts {name} by DoRA, which is not supported for embeddings")
    kind = "lora_embedding_" if embeds else "lora_"
    magnitude = {"lora_magnitude_vector"} if settings.use_dora else set()
    wanted = {f"{kind}A", f"{kind}B", *magnitude}
    if parts.keys() != wanted:
        missing, extra = wanted - parts.keys(), parts.keys() - wanted
        raise _refused(f"lacks {name}.{min(missing)}" if missing else f"holds {name}.{min(extra)}, which has no use")
    rank, (rows, columns) = settings.layer_rank(name), _dims(layer)
    # An embedding is a product with rows of its weight, a linear layer one with columns.
    inputs, outputs = (rows, columns) if embeds else (columns, rows)
    shapes = {f"{kind}A": (rank, inputs), f"{kind}B": (outputs, rank), "lora_magnitude_vector": (outputs,)}
    for part, array in sorted(parts.items()):
        if array.shape != shapes[part]:
            raise _refused(f"has {name}.{part} of shape {array.shape} where {shapes[part]} is needed")
    one: Any
    if embeds:
        one = _InputEmbedding(rows, columns, rank, scale=settings.layer_scale(name))
        one.embedding = layer
    else:
        one = (DoRALinear if settings.use_dora else LoRALinear).from_base(
            layer, r=rank, scale=settings.layer_scale(name)
        )
    one.lora_a, one.lora_b = parts[f"{kind}A"].T, parts[f"{kind}B"].T
    if magnitude:
        one.m = parts["lora_magnitude_vector"]
    one.eval()
    return one, [one.lora_a, one.lora_b, *([one.m] if magnitude else [])]


def _settings(config: dict[str, Any]) -> PeftSettings:
    if config.get("peft_type") != "LORA":
        raise _refused(f"has the peft_type {config.get('peft_type')!r}: only LORA is supported", CONFIG)
    uses = [name for name in config if name.startswith("use_") and name not in SUPPORTED_USES]
    for name in (*UNSUPPORTED, *uses):
        if config.get(name):
            raise _refused(f"sets {name}, which is not supported", CONFIG)
    try:
        settings = msgspec.convert(config, PeftSettings)
        for pattern in (*(settings.rank_pattern or {}), *(settings.alpha_pattern or {})):
            re.compile(pattern)
    except (msgspec.ValidationError, re.error) as error:
        raise _refused(f"can't be read: {error}", CONFIG) from error
    drawn = settings.init_lora_weights
    if isinstance(drawn, str) and drawn.lower() not in HARMLESS_INITS:
        raise _refused(
            f"sets init_lora_weights to {drawn!r}, which is for a model with other weights of its own; "
            "PEFT can save it as a plain LoRA (path_initial_model_for_weight_conversion)",
            CONFIG,
        )
    return settings


def _place(layer: str, layers: Mapping[str, nn.Module]) -> str:
    if place := _find(layer, layers):
        return place
    raise _refused(f"adapts {layer}, which the model does not have")


def _find(layer: str, layers: Mapping[str, nn.Module]) -> str:
    """Where a layer of transformers is in a model of mlx-lm; empty if nowhere. Text models may be wrapped in either."""
    match = CORE.fullmatch(layer)
    rest = match["rest"] if match else layer
    places = (layer, f"model.{rest}", f"language_model.model.{rest}", f"language_model.{rest}", rest)
    return next((place for place in places if place in layers), "")


def _check_whole(key: str, array: mx.array, layers: Mapping[str, nn.Module]) -> None:
    """Raise `EngineLoadError` for a tensor that is no LoRA, unless it repeats what the model has.

    PEFT adds embeddings and heads whole, as they were, where one of them is adapted.
    """
    if key.endswith(".bias"):
        raise _refused(f"holds a trained bias, {key}, which is not supported")
    match = WHOLE.fullmatch(key)
    layer: Any = layers.get(_find(match["layer"], layers)) if match else None
    if match is None or layer is None or "weight" not in layer:
        raise _refused(f"holds {key}, which is neither LoRA nor a weight of the model")
    own, near = layer.weight, SAME
    if quantised := "scales" in layer:
        own = mx.dequantize(
            own, layer.scales, layer.get("biases"), group_size=layer.group_size, bits=layer.bits, mode=layer.mode
        )
        near = SAME_QUANTISED
    own, array = own.astype(mx.float32), array.astype(mx.float32)
    if own.shape != array.shape or mx.linalg.norm(own - array).item() > near * mx.linalg.norm(own).item():
        but = " (but for quantisation)" if quantised else ""
        raise _refused(f"holds weights of its own for {match['layer']}, which are not the model's{but}")


def _check_targets(settings: PeftSettings, adapted: Set[str], layers: Mapping[str, nn.Module]) -> None:
    """Raise `EngineLoadError` where the configuration names layers that the model has, and the file has none of."""
    if not isinstance(settings.target_modules, list) or settings.exclude_modules:
        return
    for target in settings.target_modules:
        meant = {name for name in layers if name == target or name.endswith(f".{target}")}
        if meant and not meant & adapted:
            raise _refused(f"lacks every tensor of {target}, which {CONFIG} names in target_modules")


def _by_pattern(patterns: Mapping[str, float] | None, layer: str, default: float) -> float:
    """Return the first pattern that the whole name, or its end behind a dot, matches, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return value
    return default


def _dims(layer: Any) -> tuple[int, int]:
    """Rows and columns of a layer's weight, as they are without quantisation."""
    rows, columns = layer.weight.shape
    return rows, columns * 32 // layer.bits if "scales" in layer else columns


def _refused(what: str, file: str = WEIGHTS) -> EngineLoadError:
    return EngineLoadError(f"{file} {what}")
