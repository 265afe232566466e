"""From a trainer to a model folder that mlx-lm or mlx-vlm loads, with the record of how it came about."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from models import bpe
from tokenizers import Tokenizer

from training import text
from training.training import Trainer, half_precision


def write(
    folder: Path,
    trainer: Trainer,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    run: Mapping[str, Any],
    *,
    libraries: Sequence[str],
) -> None:
    """Write weights (half precision), configuration, tokenizer and `training.json` into `folder`.

    `libraries` are those whose versions the record names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bpe.write(tokenizer, folder, template=text.TEMPLATE, context_length=settings["max_position_embeddings"])
    ends = [tokenizer.token_to_id(token) for token in bpe.ENDS]
    write_json(folder / "config.json", settings)
    # Greedy where a request says nothing: the model is small, and its second choices are worse than they look.
    generation = {"eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False, "temperature": 0.0}
    write_json(folder / "generation_config.json", generation)
    weights = folder / "model.safetensors"
    mx.save_safetensors(str(weights), half_precision(trainer.model), metadata={"format": "mlx"})
    record = {
        **run,
        "parameters": sum(value.size for _, value in tree_flatten(trainer.model.parameters())),
        "steps_done": trainer.step,
        "resumed_at_steps": trainer.resumed,
        "training_s": round(trainer.trained_s),
        "versions": {library: version(library) for library in libraries},
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "loss": trainer.curve,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    (folder / "training.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, indented for people."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
