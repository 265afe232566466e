"""The tiny models' tokenizer and chat template: Qwen's control tokens, words learnt from the generated corpus.

Any text must come back from encode and decode as it was.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from models import bpe, corpus

GEMMA_IMAGE = "<image_soft_token>"
"""What Gemma's tokenizer has a name for, besides the marks around it; Qwen's has none."""

# Qwen's own: words with at most one leading space or sign, digits one by one, runs of signs, runs of white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def train(*, vocab_size: int, seed: int, paragraphs: int, pictures: Sequence[str] = ()) -> Tokenizer:
    """Train a tokenizer of exactly `vocab_size` tokens, `pictures` (the marks of images) the last of them.

    Raises `ValueError` where the corpus is too small for that.
    """
    texts = corpus.lines(seed, paragraphs)
    return bpe.train(texts, split=_SPLIT, control=(*bpe.CONTROL, *pictures), vocab_size=vocab_size)


def write(tokenizer: Tokenizer, folder: Path, *, context_length: int, pictures: Sequence[str] = ()) -> None:
    """Put the tokenizer's files into a model folder."""
    named: dict[str, str] = {}
    if GEMMA_IMAGE in pictures:
        named = dict(zip(("boi_token", "eoi_token", "image_token"), pictures, strict=True))
    bpe.write(tokenizer, folder, template=_TEMPLATE, context_length=context_length, named=named)
