"""A BERT of a few thousand random weights with a tokenizer of its own: what sentence models look like on disk."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = tuple(f"w{number}" for number in range(200))
LIMIT = 48
WIDTH = 32


def write(
    folder: Path, *, pooling: dict[str, Any] | None = None, prefix: str = "", ending: bool = False, **extras: Any
) -> Path:
    """Write the model; `pooling` is `1_Pooling/config.json`, `extras` are further JSON files by name.

    With `ending` one special token stands behind a text, and none before it.
    """
    folder.mkdir(parents=True)
    vocabulary = {name: at for at, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]" if ending else "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH,
        "intermediate_size": 64, "max_position_embeddings": LIMIT, "vocab_size": len(vocabulary), "pad_token_id": 0,
    }  # fmt: skip
    _json(folder / "config.json", config)
    mx.save_safetensors(str(folder / "model.safetensors"), _weights(config, prefix))
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    if pooling is not None:
        modules.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
        _json(folder / "1_Pooling" / "config.json", pooling)
        _json(folder / "modules.json", modules)
    for name, content in extras.items():
        _json(folder / f"{name}.json", content)
    return folder


def _weights(config: dict[str, Any], prefix: str) -> dict[str, mx.array]:
    chance = mx.random.split(mx.random.key(3), 200)
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{at}.{name}.weight": (width, width), f"{at}.{name}.bias": (width,)}
        shapes |= {f"{at}.intermediate.dense.weight": (inner, width), f"{at}.intermediate.dense.bias": (inner,)}
        shapes |= {f"{at}.output.dense.weight": (width, inner), f"{at}.output.dense.bias": (width,)}
    found = {
        name: 3.0 / shape[-1] ** 0.5 * mx.random.normal(shape, key=chance[at])
        for at, (name, shape) in enumerate(shapes.items())
    }
    norms = ["embeddings.LayerNorm"]
    norms += [
        f"encoder.layer.{layer}.{part}.LayerNorm" for layer in range(2) for part in ("attention.output", "output")
    ]
    for norm in norms:
        found |= {f"{norm}.weight": mx.ones(width), f"{norm}.bias": mx.zeros(width)}
    found["embeddings.position_ids"] = mx.arange(config["max_position_embeddings"])[None]
    return {prefix + name: array for name, array in found.items()}


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
