"""A byte-level BPE tokenizer with Qwen's control tokens and chat template, trained on the generated corpus.

Owns every file of a model folder that has to do with text. Any text must come back from encode and decode as it was.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models import corpus

ENDS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end an answer; the first one ends a turn of a chat."""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Text to the detokenizer: a server has to see them to tell reasoning and calls from the answer."""
CONTROL = _SPECIAL + _MARKERS
"""Every control token; they have the last ids of the vocabulary, in this order."""

GEMMA_IMAGE = "<image_soft_token>"
"""What Gemma's tokenizer has a name for, besides the marks around it; Qwen's has none."""

# Qwen's own: words with at most one leading space or sign, digits one by one, runs of signs, runs of white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


def train(*, vocab_size: int, seed: int, paragraphs: int, pictures: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens, `pictures` (the marks of images) among them and last of all.

    Raises `ValueError` where the corpus is too small for that.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL) - len(pictures),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.lines(seed, paragraphs), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _MARKERS])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pictures])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus supports {tokenizer.get_vocab_size()} tokens, {vocab_size} were asked for")
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path, *, context_length: int, pictures: Sequence[str] = ()) -> None:
    """Put the tokenizer's files into a model folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    template = _TEMPLATE_FILE.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": ENDS[0],
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in _SPECIAL or token in pictures,
            }
            for token in (*CONTROL, *pictures)
        },
    }
    if GEMMA_IMAGE in pictures:
        config["extra_special_tokens"] = dict(zip(("boi_token", "eoi_token", "image_token"), pictures, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
