"""Small tokenizers with every kind of decoder, and mixtures that nobody would make on purpose, as mlx-lm wraps them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    NaiveStreamingDetokenizer,
    SPMStreamingDetokenizer,
    TokenizerWrapper,
)
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PIECES = (
    "▁",
    "▁▁",
    "▁Hello",
    "Hello",
    "!",
    "▁How",
    "▁are",
    "you",
    "▁,",
    ".",
    "ö",
    "▁日本",
    "a▁b",
    "'",
    "s",
    "▁n",
    "\n",
)
ODD = (
    "",
    "<0x+1>",
    "<0xZZ>",
    "<0x4>",
    " ",
    "  two ",
    "##ing",
    "##",
    "word",
    "end</w>",
    "</w>",
    "in</w>side</w>",
    "﷽",
    "▁'▁",
)
CLEANED = (" .", " ?", "?", " ' ", "'", " n't", " 'm", " 's", "ve", " 've", "re", "v", "r", "n", "t", " do not", "x")
LETTERS = tuple(bytes_to_unicode().values())
WORDS = ("ĠHow", "Hello", "Ġare", "Ġyou", "ĠĠ", "Ċ", "ĠnÃ¶", "æĹ¥æľ¬", "ðŁĺ", "Ģ", "é", "日本", "Ġ日", "a b")
ADDED = (AddedToken("<|end|>", special=True, normalized=False), AddedToken("<think>", normalized=False))

_SPM = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
DECODERS: Mapping[str, Callable[[], Any]] = {
    "none": lambda: None,
    "byte-level": decoders.ByteLevel,
    "byte-level in a sequence": lambda: decoders.Sequence([decoders.ByteLevel()]),
    "byte-level, stripped": lambda: decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
    "replaced, then byte-level": lambda: decoders.Sequence([decoders.Replace("▁", "Ġ"), decoders.ByteLevel()]),
    "SentencePiece": lambda: decoders.Sequence([*_SPM, decoders.Strip(" ", 1, 0)]),
    "SentencePiece, no space before": lambda: decoders.Sequence([*_SPM]),
    "SentencePiece, not fused": lambda: decoders.Sequence([*_SPM[:2], decoders.Strip(" ", 1, 0)]),
    "SentencePiece, two spaces": lambda: decoders.Sequence([*_SPM, decoders.Strip(" ", 2, 0)]),
    "SentencePiece, bytes first": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " ")]),
    "SentencePiece, Metaspace": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "bytes alone": decoders.ByteFallback,
    "Metaspace": decoders.Metaspace,
    "Metaspace, first": lambda: decoders.Metaspace(prepend_scheme="first"),
    "Metaspace, never": lambda: decoders.Metaspace(prepend_scheme="never"),
    "Metaspace, another mark": lambda: decoders.Metaspace(replacement="!"),
    "WordPiece": decoders.WordPiece,
    "WordPiece, not cleaned": lambda: decoders.WordPiece(cleanup=False),
    "WordPiece, another prefix": lambda: decoders.WordPiece(prefix="▁"),
    "BPE": decoders.BPEDecoder,
    "BPE, another suffix": lambda: decoders.BPEDecoder(suffix="o"),
    "BPE, replaced": lambda: decoders.Sequence([decoders.Replace("▁", "</w>"), decoders.BPEDecoder()]),
    "fused": lambda: decoders.Sequence([decoders.Fuse(), decoders.Replace("! ", "?"), decoders.Strip("H", 3, 0)]),
    "replaced": lambda: decoders.Replace("l", "<0x41>"),
    "replaced, then bytes": lambda: decoders.Sequence([decoders.Replace("word", "<0x41>"), decoders.ByteFallback()]),
}
"""By what they are."""
AT_A_DISTANCE: Mapping[str, Callable[[], Any]] = {
    "CTC": lambda: decoders.CTC(pad_token="!"),
    "fused, then Metaspace": lambda: decoders.Sequence([decoders.Fuse(), decoders.Metaspace()]),
    "BPE with bytes": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.BPEDecoder()]),
}
"""Those that can't be followed token by token."""
DETOKENIZERS = (BPEStreamingDetokenizer, SPMStreamingDetokenizer, NaiveStreamingDetokenizer)
"""What mlx-lm may have picked."""


UNREADABLE = ("<0xZZ>", "<0x4>")
"""Names that mlx-lm's detokenizer for SentencePiece can't be made with."""
ALL = (*PIECES, *ODD, *CLEANED, *WORDS, *BYTES, *LETTERS)


def make_tokenizer(
    decoder: Any, *, clean: bool = False, detokenizer: Any = NaiveStreamingDetokenizer, names: Sequence[str] = ALL
) -> Any:
    """Return mlx-lm's wrapper of a tokenizer with tokens of these names, and two control tokens."""
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_tokens([*ADDED])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=clean, eos_token="<|end|>")
    return TokenizerWrapper(fast, detokenizer, eos_token_ids=[])
