#!/usr/bin/env python3
"""Makes tiny models of real architectures: folders as MLX and the hub have them, from a config and a seed.

    python scripts/make_models.py OUT_DIR [NAME ...]

Folders that are there already, made from the same recipe, are kept. Downloads nothing.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.recipes import CONTEXT_LENGTH, RECIPES, Recipe
from models.vision_recipes import VISION_RECIPES

NAMES = tuple(RECIPES)
"""Models that read text."""
VISION_NAMES = tuple(VISION_RECIPES)
"""Models that see."""
_ALL = {**RECIPES, **VISION_RECIPES}
_STAMP = ".recipe"
_SOURCES = Path(__file__).with_name("models")


def make(name: str, out: Path) -> Path:
    """Make the model `name` as `out/name`, unless it is there already, and answer that folder.

    Several processes may do so at once: a folder appears complete or not at all. Raises `KeyError` for a name not
    in `NAMES` or `VISION_NAMES`.
    """
    recipe = _ALL[name]
    stamp = _stamp(name)
    folder = out / name
    if _is_made(folder, stamp):
        return folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as scratch:
        fresh = Path(scratch) / name
        fresh.mkdir()
        _fill(fresh, recipe)
        (fresh / _STAMP).write_text(stamp)
        _replace(folder, fresh, stamp)
    return folder


def _fill(folder: Path, recipe: Recipe) -> None:
    # Imported here, because they cost seconds that a folder already made should not.
    from models import bpe, tokenizer, weights

    pictures = tuple(recipe.tokens.values())
    text = tokenizer.train(vocab_size=recipe.vocab_size, seed=0, paragraphs=recipe.corpus_paragraphs, pictures=pictures)
    tokenizer.write(text, folder, context_length=CONTEXT_LENGTH, pictures=pictures)
    ends = [text.token_to_id(token) for token in bpe.ENDS]
    shared = {
        "vocab_size": recipe.vocab_size,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": recipe.tied,
        "eos_token_id": ends[0],
        "torch_dtype": "float32",
    }
    config: dict[str, Any] = {
        **recipe.config,
        **shared,
        **{name: text.token_to_id(token) for name, token in recipe.tokens.items()},
    }
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], **shared}
    silent = [text.token_to_id(token) for token in (*bpe.CONTROL, *pictures) if token not in bpe.ENDS]
    weights.write(config, folder, seed=recipe.seed, norm_centre=recipe.norm_centre, silent=silent)
    _write_json(folder / "config.json", config)
    for name, content in recipe.files.items():
        _write_json(folder / name, content)
    _write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1], **recipe.generation})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _stamp(name: str) -> str:
    """Return a text that changes with everything that the folder depends on."""
    digest = hashlib.sha256(name.encode())
    for source in (Path(__file__), *sorted(path for path in _SOURCES.iterdir() if path.is_file())):
        digest.update(source.read_bytes())
    for library in ("mlx-lm", "mlx-vlm", "numpy", "tokenizers"):
        digest.update(version(library).encode())
    return digest.hexdigest()


def _is_made(folder: Path, stamp: str) -> bool:
    try:
        return (folder / _STAMP).read_text() == stamp
    except OSError:
        return False


def _replace(folder: Path, fresh: Path, stamp: str) -> None:
    """Put `fresh` where `folder` is. Where another process has just done so, its folder stays."""
    if folder.exists() and not _is_made(folder, stamp):
        folder.rename(fresh.with_name("old"))
    try:
        fresh.rename(folder)
    except OSError:
        if not _is_made(folder, stamp):
            raise


def main(arguments: list[str] | None = None) -> int:
    """Make the models named on the command line, or all of them, with a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(_ALL)}; default: all")
    options = parser.parse_args(arguments)
    # The project itself (`worker`) is needed too, and a script has only its own folder on its path.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    if unknown := [name for name in options.names if name not in _ALL]:
        parser.error(f"no model named {', '.join(unknown)}: there are {', '.join(_ALL)}")
    for name in options.names or _ALL:
        started = time.perf_counter()
        kept = _is_made(options.out / name, _stamp(name))
        folder = make(name, options.out)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(
            f"{'kept' if kept else 'made'} {folder}: {size / 1e6:.1f} MB in {time.perf_counter() - started:.1f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
