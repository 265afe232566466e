"""Byte-level BPE, as Qwen has it: what the tokenizers of the tiny and of the demo models have in common.

Knows no text: which words it learns from, where they are split and what the chat template says is the caller's.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ENDS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end an answer; the first one ends a turn of a chat."""
_MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Text to the detokenizer: a server has to see them to tell reasoning and calls from the answer."""
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_MARKERS)
"""The control tokens of every model here."""


def train(texts: Iterable[str], *, split: str, control: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer of exactly `vocab_size` tokens, `control` the last of them, in this order.

    `split` is a pattern: no token reaches beyond one match of it. Raises `ValueError` where the texts are too few.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    for token in control:
        special = token not in _MARKERS
        added = AddedToken(token, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the texts support {tokenizer.get_vocab_size()} tokens, {vocab_size} were asked for")
    return tokenizer


def write(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    template: Path,
    context_length: int,
    named: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Put the tokenizer's files into a model folder. `named` are control tokens that programs ask for by a name."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": ENDS[0],
        "pad_token": ENDS[1],
        "unk_token": None,
        **({"extra_special_tokens": dict(named)} if named else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
