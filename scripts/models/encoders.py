"""Tiny embedding models of real architectures: a config, weights from a seed, a tokenizer of words.

Written with NumPy alone, under the names that transformers gives the weights, so that PyTorch and MLX read the very
same folder. A model's vectors in PyTorch are what the tests compare with.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = 256
WIDTH = 64
INNER = 96
LAYERS = 3
HEADS = 4
HEAD = WIDTH // HEADS
KEYS = 2
LENGTHS = (1, 2, 3, 5, 9, 17, 33, 60, 90)
"""Of the texts that are compared: beyond the windows of `CONFIGS` too."""

Shapes = dict[str, tuple[int, ...]]

_SHARED = {
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "vocab_size": VOCABULARY, "max_position_embeddings": 128, "pad_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip
_DECODER = {
    **_SHARED, "num_key_value_heads": KEYS, "head_dim": HEAD, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "tie_word_embeddings": True, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "bert": {**_SHARED, "model_type": "bert", "architectures": ["BertModel"]},
        "xlm-roberta": {
            **_SHARED, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "pad_token_id": 1,
            "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        },
        "modernbert": {
            **_SHARED, "model_type": "modernbert", "architectures": ["ModernBertModel"], "norm_eps": 1e-5,
            "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "local_attention": 16,
            "global_attn_every_n_layers": 3, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3,
        },
        "qwen3": {**_DECODER, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rope_theta": 1000000.0},
        "qwen2": {**_DECODER, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0},
        "gemma3_text": {
            **_DECODER, "model_type": "gemma3_text", "architectures": ["Gemma3TextModel"], "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": HEAD, "sliding_window": 16,
            "_sliding_window_pattern": 3, "use_bidirectional_attention": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "hidden_activation": "gelu_pytorch_tanh",
        },
    }
)  # fmt: skip
POOLINGS: Mapping[str, str] = MappingProxyType({"modernbert": "cls", "qwen3": "lasttoken", "qwen2": "lasttoken"})


def write(name: str, folder: Path) -> Path:
    """Write the model `name` of `CONFIGS` into a new folder, and answer it."""
    folder.mkdir(parents=True)
    config = dict(CONFIGS[name])
    write_json(folder / "config.json", config)
    shapes = (
        _bert(config) if name in ("bert", "xlm-roberta") else _modernbert() if name == "modernbert" else _decoder(name)
    )
    save_file(weights(shapes), str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_tokenizer(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(folder / "1_Pooling" / "config.json", {f"pooling_mode_{_old(POOLINGS.get(name, 'mean'))}": True})
    if name == "gemma3_text":
        modules += [(f"{at}_Dense", "Dense") for at in (2, 3)]
        for at, layer in enumerate(dense(name), 2):
            write_json(
                folder / f"{at}_Dense" / "config.json", {"activation_function": "torch.nn.modules.linear.Identity"}
            )
            drawn = {"linear.weight": layer}
            save_file(drawn, str(folder / f"{at}_Dense" / "model.safetensors"), metadata={"format": "pt"})
    kinds = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    write_json(folder / "modules.json", kinds)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Write a model's `config.json` again, with other values; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})


def texts() -> list[list[int]]:
    """Return what is embedded for the comparison, as token ids that are no special ones."""
    random = np.random.default_rng(11)
    return [random.integers(4, VOCABULARY, length).tolist() for length in LENGTHS]


def dense(name: str) -> list[Any]:
    """Return the weights of the layers behind the pooling, (out, in) each."""
    if name != "gemma3_text":
        return []
    return list(weights({"dense.0.linear.weight": (INNER, WIDTH), "dense.1.linear.weight": (WIDTH, INNER)}).values())


def weights(shapes: Shapes) -> dict[str, Any]:
    """Draw wide weights, by name and seed alone: as libraries initialise them, all vectors are nearly the same."""
    found = {}
    for name, shape in shapes.items():
        random = np.random.default_rng((5, zlib.crc32(name.encode())))
        drawn = random.standard_normal(shape)
        if "norm" in name.lower() or "ln_q" in name:
            drawn = 0.1 * drawn + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias") or len(shape) < 2:
            drawn = 0.1 * drawn
        elif "embed" in name and len(shape) == 2:
            pass
        else:
            drawn = drawn * 2 / np.sqrt(np.prod(shape[1:]))
        found[name] = drawn.astype(np.float32)
    return found


def write_tokenizer(folder: Path, *extra: str) -> Tokenizer:
    """Write a tokenizer of the words `w4`, `w5`, …, whose numbers are their ids, and `extra` control tokens."""
    vocabulary = {f"w{at}": at for at in range(VOCABULARY - len(extra))}
    vocabulary |= {token: VOCABULARY - len(extra) + at for at, token in enumerate(extra)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(extra))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def _bert(config: Mapping[str, Any]) -> Shapes:
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], WIDTH),
        "embeddings.token_type_embeddings.weight": (config.get("type_vocab_size", 2), WIDTH),
        **_norm("embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{at}.{name}", WIDTH, WIDTH)
        shapes |= _linear(f"{at}.intermediate.dense", INNER, WIDTH) | _linear(f"{at}.output.dense", WIDTH, INNER)
        shapes |= _norm(f"{at}.attention.output.LayerNorm") | _norm(f"{at}.output.LayerNorm")
    return shapes


def _modernbert() -> Shapes:
    shapes: Shapes = {"embeddings.tok_embeddings.weight": (VOCABULARY, WIDTH)}
    norms = ["embeddings.norm", "final_norm"]
    for layer in range(LAYERS):
        at = f"layers.{layer}"
        norms += [f"{at}.mlp_norm", *([f"{at}.attn_norm"] if layer else [])]
        shapes |= {f"{at}.attn.Wqkv.weight": (3 * WIDTH, WIDTH), f"{at}.attn.Wo.weight": (WIDTH, WIDTH)}
        shapes |= {f"{at}.mlp.Wi.weight": (2 * INNER, WIDTH), f"{at}.mlp.Wo.weight": (WIDTH, INNER)}
    return shapes | {f"{norm}.weight": (WIDTH,) for norm in norms}


def _decoder(name: str) -> Shapes:
    # As published: whole language models have a prefix, folders of sentence-transformers have none.
    prefix = "model." if name == "qwen3" else ""
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (VOCABULARY, WIDTH), f"{prefix}norm.weight": (WIDTH,)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if name == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for layer in range(LAYERS):
        at = f"{prefix}layers.{layer}"
        shapes |= {f"{at}.{norm}.weight": (WIDTH,) for norm in norms}
        for part, out in (("q", HEADS), ("k", KEYS), ("v", KEYS)):
            shapes[f"{at}.self_attn.{part}_proj.weight"] = (out * HEAD, WIDTH)
            if name == "qwen2":
                shapes[f"{at}.self_attn.{part}_proj.bias"] = (out * HEAD,)
            if name in ("qwen3", "gemma3_text") and part != "v":
                shapes[f"{at}.self_attn.{part}_norm.weight"] = (HEAD,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (WIDTH, HEADS * HEAD)
        shapes |= {f"{at}.mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (WIDTH, INNER)
    return shapes


def _linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str) -> Shapes:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def _old(pooling: str) -> str:
    return pooling if pooling == "lasttoken" else f"{pooling}_token" if pooling == "cls" else f"{pooling}_tokens"


def write_json(path: Path, content: Any) -> None:
    """Write a file of a model folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, default=dict))
