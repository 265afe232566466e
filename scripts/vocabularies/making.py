"""A tokenizer of any size, where none of a real model can be had; what a real one lacks for pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

TRAINED = 4096
"""Tokens that are learnt from text; the others are made of pairs of these."""
PARAGRAPHS = 8000


def make_tokenizer(size: int, folder: Path) -> Path:
    """Write a byte-level tokenizer of so many tokens, and its settings, to `folder`, unless it is there already."""
    # Imported here, because it costs seconds.
    from models import bpe, tokenizer

    if (folder / "tokenizer_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(tokenizer.train(vocab_size=TRAINED, seed=0, paragraphs=PARAGRAPHS).to_str())
    _add_pairs(content, size)
    tokenizer.write(Tokenizer.from_str(json.dumps(content)), folder, context_length=1 << 20)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["eos_token"] = bpe.ENDS[0]
    settings["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _add_pairs(content: dict[str, Any], size: int) -> None:
    """Add merges of learnt tokens, the longest first, until a `tokenizer.json` has so many tokens."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    added = content["added_tokens"]
    learnt = sorted(vocabulary.keys() - {token["content"] for token in added}, key=lambda name: (-len(name), name))
    merges: list[list[str]] = content["model"]["merges"]
    number = len(vocabulary)
    for first in learnt:
        for second in learnt:
            if number + len(added) >= size:
                break
            if first + second not in vocabulary:
                vocabulary[first + second] = number
                number += 1
                merges.append([first, second])
    for token in added:
        # Control tokens have the last ids, as everywhere.
        vocabulary.pop(token["content"], None)
        token["id"], number = number, number + 1


def add_control_tokens(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Add what is missing of these tokens to the `tokenizer.json` in a folder; return all of their ids."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([*names])
    tokenizer.save(str(path))
    return {name: tokenizer.token_to_id(name) for name in names}
