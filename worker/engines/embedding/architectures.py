"""Architectures of text encoders: whose model file builds one, and how token ids become hidden states in it.

Attention in both directions runs on the layers of mlx-embeddings, with masks from here; attention to earlier tokens
alone runs on mlx-lm's models, whose texts are padded behind their ends: no token of a text ever looks there.
Refuses configurations that the model files would misread: wrong vectors look like right ones.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from worker.engines.base import EngineLoadError
from worker.engines.skip_init import enter_package

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """One `model_type`.

    `build` makes the encoder, without weights, from a config. `hidden` takes it, token ids (texts, length) and which
    of them are none of padding, and answers (texts, length, width). `prefix` may stand before the weights' names.
    """

    build: Callable[[dict[str, Any]], Any]
    hidden: Callable[[Any, mx.array, Mask], mx.array]
    prefix: str = "model."
    expects: Mapping[str, tuple[Any, ...]] = MappingProxyType({})


def architecture(config: dict[str, Any]) -> Architecture:
    """Return what `config` describes. Raises `EngineLoadError` for what is not known here."""
    kind = str(config["model_type"])
    found = ARCHITECTURES.get(kind)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise EngineLoadError(
            f"embedding models of type {kind!r} are not supported (only {known}); "
            "a model that writes text is started with --model-type chat"
        )
    for key, allowed in found.expects.items():
        if config.get(key, allowed[0]) not in allowed:
            raise EngineLoadError(f"{kind} with {key} {config[key]!r} is not supported")
    return found


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config as model files read it.

    `transformers` 5 nests the rotary parameters, which were at the top before.
    """
    rope = config.get("rope_parameters") or {}
    full = rope if "rope_theta" in rope else rope.get("full_attention") or {}
    near = rope.get("sliding_attention") or {}
    nested = {
        "rope_theta": full.get("rope_theta"),
        "rope_scaling": full if full.get("rope_type", "default") != "default" else None,
        "rope_local_base_freq": near.get("rope_theta"),
        "global_rope_theta": full.get("rope_theta"),
        "local_rope_theta": near.get("rope_theta"),
        "sliding_window_pattern": config.get("_sliding_window_pattern"),
    }
    return {name: value for name, value in nested.items() if value is not None} | config


def window(config: dict[str, Any]) -> int:
    """Return how far a token sees to either side in layers that don't see everything; 0 where all do."""
    return int(config.get("local_attention") or config.get("sliding_window") or 0) // 2


# -- both directions ---------------------------------------------------------


def _bert(model: Any, tokens: mx.array, mask: Mask) -> mx.array:
    full, _ = _masks(mask, 0)
    hidden = model.embeddings(tokens)
    for layer in model.encoder.layer:
        hidden = layer.attention.output(_attend(layer.attention.self, hidden, full), hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden


def _attend(attention: Any, hidden: mx.array, mask: mx.array | None) -> mx.array:
    """Do in one step what the model files do in three, with the scores of all heads in memory."""
    heads = [attention.transpose_for_scores(part(hidden)) for part in (attention.query, attention.key, attention.value)]
    scale = attention.attention_head_size**-0.5
    found = mx.fast.scaled_dot_product_attention(*heads, scale=scale, mask=mask)
    return found.transpose(0, 2, 1, 3).reshape(hidden.shape)


def _modernbert(model: Any, tokens: mx.array, mask: Mask) -> mx.array:
    full, near = _masks(mask, window(vars(model.config)))
    hidden = model.embeddings(tokens)
    for layer in model.layers:
        (hidden,) = layer(hidden, attention_mask=full, sliding_window_mask=near)
    return model.final_norm(hidden)


def _gemma(model: Any, tokens: mx.array, mask: Mask) -> mx.array:
    full, near = _masks(mask, window(vars(model.config)))
    hidden = model.embed_tokens(tokens)
    hidden = hidden * mx.array(model.config.hidden_size**0.5, dtype=hidden.dtype)
    for layer in model.layers:
        hidden = layer(hidden, near if layer.self_attn.is_sliding else full, None)
    return model.norm(hidden)


def _masks(mask: Mask, reach: int) -> tuple[mx.array | None, mx.array | None]:
    """Who sees whom, in layers that see everything and in those with a window; None: everybody everybody."""
    length = mask.shape[1]
    full = None if mask.all() else mx.array(mask)[:, None, None, :]
    if not reach or length <= reach + 1:
        return full, full
    place = np.arange(length)
    distance = np.abs(place[:, None] - place[None])
    near = mx.array(distance <= reach)[None, None]
    if full is None:
        return None, near
    # Padding sees at least itself: a row that sees nothing is not a number, and spreads.
    return full, (full & near) | mx.array(distance == 0)[None, None]


# -- one direction -----------------------------------------------------------


def _causal(model: Any, tokens: mx.array, _mask: Mask) -> mx.array:
    hidden: mx.array = model(tokens)
    return hidden


# -- building ----------------------------------------------------------------


def _embeddings(name: str, part: str = "Model") -> Callable[[dict[str, Any]], Any]:
    def build(config: dict[str, Any]) -> Any:
        module = _mlx_embeddings(name)
        return getattr(module, part)(module.ModelArgs.from_dict(config))

    return build


def _layered(name: str, part: str, *, every: str, first: int) -> Callable[[dict[str, Any]], Any]:
    """Of layers with a window and without: the model files know patterns only, a config may list layers."""
    plain = _embeddings(name, part)

    def build(config: dict[str, Any]) -> Any:
        step = int(config.get(every) or {"modernbert": 3}.get(name, 6))
        pattern = [(at + first) % step == 0 for at in range(int(config["num_hidden_layers"]))]
        listed = [kind == "full_attention" for kind in config.get("layer_types") or ()]
        if listed and listed != pattern:
            raise EngineLoadError(f"{name} with these layer_types is not supported")
        return plain(config)

    return build


def _language(name: str) -> Callable[[dict[str, Any]], Any]:
    def build(config: dict[str, Any]) -> Any:
        module = importlib.import_module(f"mlx_lm.models.{name}")
        return module.Model(module.ModelArgs.from_dict(config)).model

    return build


def _mlx_embeddings(name: str) -> Any:
    enter_package("mlx_embeddings")
    return importlib.import_module(f"mlx_embeddings.models.{name}")


_GELU = MappingProxyType({"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)})
# Some decoders were retrained to look both ways, by code of their own that is not run here.
_ONE_WAY = MappingProxyType(
    {"is_causal": (True,), "hidden_act": ("silu",), "use_bidirectional_attention": (False, None)}
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "bert": Architecture(build=_embeddings("bert"), hidden=_bert, prefix="bert.", expects=_GELU),
        "xlm-roberta": Architecture(build=_embeddings("xlm_roberta"), hidden=_bert, prefix="roberta.", expects=_GELU),
        "modernbert": Architecture(
            build=_layered("modernbert", "ModernBertModel", every="global_attn_every_n_layers", first=0),
            hidden=_modernbert,
            expects={"hidden_activation": ("gelu",), "rope_scaling": (None,)},
        ),
        "gemma3_text": Architecture(
            build=_layered("gemma3_text", "Gemma3Model", every="sliding_window_pattern", first=1),
            hidden=_gemma,
            expects={"use_bidirectional_attention": (True,), "hidden_activation": ("gelu_pytorch_tanh",)},
        ),
        "qwen3": Architecture(build=_language("qwen3"), hidden=_causal, expects=_ONE_WAY),
        "qwen2": Architecture(build=_language("qwen2"), hidden=_causal, expects=_ONE_WAY),
    }
)
"""By `model_type`."""
