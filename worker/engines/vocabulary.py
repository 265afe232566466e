"""Token ids as text and bytes: for detokenizing, for log-probabilities, for what a client may name by id."""

from collections.abc import Sequence
from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer, _byte_decoder

from worker.text.channels import Detokenizer
from worker.text.detokenizer import ByteDetokenizer


class Vocabulary:
    """What each token id stands for. Where a tokenizer does not tell its bytes, mlx-lm's own detokenizer is used."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._raw = _bytes_of_tokens(tokenizer.detokenizer)
        self._spaced = isinstance(tokenizer.detokenizer, SPMStreamingDetokenizer)

    @property
    def raws(self) -> Sequence[bytes] | None:
        """The bytes of each token id, where the tokenizer tells them."""
        return self._raw

    def make_detokenizer(self, *, answer: bool) -> Detokenizer:
        """Return a fresh one.

        An `answer` starts anew; anything else continues its prompt, and its first space counts.
        """
        if self._raw is None:
            naive: Detokenizer = self._tokenizer.detokenizer
            return naive
        return ByteDetokenizer(self._raw, trim=answer and self._spaced)

    def __getitem__(self, token: int) -> tuple[str, bytes]:
        """Text and bytes of one token id; the text is lossy where a token is part of a character."""
        if self._raw is None:
            text: str = self._tokenizer.decode([token])
            return text, text.encode()
        raw = self._raw[token] if token < len(self._raw) else b""
        return raw.decode("utf-8", "replace"), raw


def _bytes_of_tokens(detokenizer: Any) -> Sequence[bytes] | None:
    match detokenizer:
        case BPEStreamingDetokenizer(tokenmap=names):
            decoder = _byte_decoder()
            return [_bytes_of_name(name, decoder) for name in names]
        case SPMStreamingDetokenizer(tokenmap=raws):
            return [raw.replace("\u2581".encode(), b" ") for raw in raws]
        case _:
            return None


def _bytes_of_name(name: str | None, decoder: dict[str, int]) -> bytes:
    """Return what a token stands for: a byte-level name spells bytes as letters, a special token's is its text."""
    if name is None:
        return b""
    try:
        return bytes([decoder[letter] for letter in name])
    except KeyError:
        return name.encode()
