"""Tiny random models with a given tokenizer: everything is real but the weights."""

import json
import shutil
from pathlib import Path
from typing import Any

from vocabularies.fetching import FILES

HIDDEN = 32


def make_tiny_model(tokenizer: Path, folder: Path, *, template: str | None = None, **config: Any) -> Path:
    """Write a random two-layer Llama with such a tokenizer to `folder` and return it.

    `template` replaces the tokenizer's chat template; `config` adds to, or replaces, what stands in `config.json`.
    """
    # Imported here, because it costs seconds.
    from models import weights

    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copy(tokenizer / file, folder / file)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if template is not None:
        settings["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    end = settings.get("eos_token")
    end = end["content"] if isinstance(end, dict) else end
    full = {
        "model_type": "llama",
        "vocab_size": (max(ids) // 64 + 1) * 64,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": HIDDEN // 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "eos_token_id": next(token["id"] for token in content["added_tokens"] if token["content"] == end),
        "torch_dtype": "float32",
        **config,
    }
    weights.write(full, folder, seed=0, norm_centre=1.0, silent=[])
    (folder / "config.json").write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
    return folder
