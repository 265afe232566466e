"""The vision model's language, taken over from a chat model of the same sizes.

The chat model's Qwen3 normalises queries and keys of each head, Qwen2-VL does not: what the norms do on the average is
folded into the weights before them. That is close enough to start from, and saves learning English a second time.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

from training import network, text, train
from training.batches import Packer

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def copy_weights(model: Any, folder: Path, settings: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Set the weights of `model`'s language model from a chat model's folder; answers the hash of that one's weights.

    Raises `ValueError` where the two do not match.
    """
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if different := [name for name in (*_SIZES, "vocab_size") if theirs[name] != settings[name]]:
        raise ValueError(f"{folder} has another {', '.join(different)}")
    if json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) != json.loads(tokenizer.to_str()):
        raise ValueError(f"{folder} has another tokenizer")
    chat: Any = network.build(theirs)
    weights = folder / "model.safetensors"
    chat.load_weights(str(weights))
    chat.set_dtype(mx.float32)
    block, _ = next(Packer(text.SampleEncoder(tokenizer), seed=1, shapes=train.FULL.plan.shapes).blocks())
    tokens, bias, *_ = network.arrays(block)
    x = chat.model.embed_tokens(tokens)
    language = model.language_model.model
    language.embed_tokens.weight = chat.model.embed_tokens.weight
    language.norm.weight = chat.model.norm.weight
    for mine, other in zip(language.layers, chat.model.layers, strict=True):
        seen = other.input_layernorm(x)
        attention = other.self_attn
        mine.self_attn.q_proj.weight = _folded(attention.q_proj.weight, attention.q_norm, seen, attention.n_heads)
        mine.self_attn.k_proj.weight = _folded(attention.k_proj.weight, attention.k_norm, seen, attention.n_kv_heads)
        for projection in ("q_proj", "k_proj", "v_proj"):
            getattr(mine.self_attn, projection).bias = mx.zeros_like(getattr(mine.self_attn, projection).bias)
        mine.self_attn.v_proj.weight = attention.v_proj.weight
        mine.self_attn.o_proj.weight = attention.o_proj.weight
        mine.mlp.update(other.mlp.parameters())
        mine.input_layernorm.weight = other.input_layernorm.weight
        mine.post_attention_layernorm.weight = other.post_attention_layernorm.weight
        x = other(x, bias, None)
    mx.eval(model.parameters())
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def _folded(weight: mx.array, norm: Any, seen: mx.array, heads: int) -> mx.array:
    """Return the projection, divided by the mean size of each head's output and times the norm's weights."""
    output = (seen @ weight.T).reshape(-1, heads, weight.shape[0] // heads)
    size = mx.mean(mx.sqrt(mx.mean(output**2, axis=-1)), axis=0)
    return (weight.reshape(heads, -1, weight.shape[1]) * (norm.weight[None, :] / size[:, None])[..., None]).reshape(
        weight.shape
    )
