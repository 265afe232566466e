"""Texts that cost a tokenizer most, and a tokenizer with as many control tokens as any."""

import json
import shutil
from pathlib import Path

KINDS = {
    "words": "the quick brown fox jumps over it. ",
    "one letter": "a",
    "spaces": " ",
    "line breaks": "\n",
    "NULs": "\0",
    "digits": "0123456789",
    "control prefixes": "<|",
    "half a control token": "<|reserved_special_token_2",
    "control tokens": "<|im_start|>",
    "combining marks": "\u0301\u0327",
    "emoji": "😀",
    "ligatures": "\ufdfa",
    "quotes": "'",
    "ideographs": "漢",
}
NAMES = (
    *(f"<|reserved_special_token_{number}|>" for number in range(256)),
    *(f"<SPECIAL_{number}>" for number in range(500)),
    "[INST]",
    "[/INST]",
    "<|eot_id|>",
    "<|eot",
)
"""As Llama 3 and Mistral have them, and one that is another's beginning."""
VOCABULARY = 130_000
LONGEST_TOKEN = " " * 128


def hostile_text(kind: str, characters: int) -> str:
    part = KINDS[kind]
    return (part * (characters // len(part) + 1))[:characters]


def write_crowded(plain: Path, folder: Path, *, context_length: int) -> Path:
    """Copy a model; its tokenizer gets `NAMES`, a token of 128 spaces, and words up to the size of a large vocabulary.

    The weights stay: such a model may be asked for tokens, not for answers that hold the new ones.
    """
    shutil.copytree(plain, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    taken = {token["id"] for token in content["added_tokens"]}
    size = max(*words.values(), *taken) + 1
    for number in range(size, VOCABULARY):
        words[f"unused{number}"] = number
    names = [*NAMES, LONGEST_TOKEN]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] += [
        {"id": VOCABULARY + at, "content": name, "special": name != LONGEST_TOKEN, **flags}
        for at, name in enumerate(names)
    ]
    path.write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context_length}))
    return folder
