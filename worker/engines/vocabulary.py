"""Token ids as text and bytes, one at a time, for log-probabilities and for what a client may name by id."""

from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer, _byte_decoder


class Vocabulary:
    """The text of single tokens. Lossy where a token is part of a character; the bytes are exact where known."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer
        self._known: dict[int, tuple[str, bytes]] = {}

    def __getitem__(self, token: int) -> tuple[str, bytes]:
        """Text and bytes of one token id."""
        found = self._known.get(token)
        if found is None:
            raw = self._raw(token)
            found = self._known[token] = (raw.decode("utf-8", "replace"), raw)
        return found

    def _raw(self, token: int) -> bytes:
        match self._detokenizer:
            case BPEStreamingDetokenizer(tokenmap=names) if token < len(names):
                decoder = _byte_decoder()
                return b"".join(
                    bytes([decoder[letter]]) if letter in decoder else letter.encode() for letter in names[token]
                )
            case SPMStreamingDetokenizer(tokenmap=raws) if token < len(raws):
                raw: bytes = raws[token].replace("\u2581".encode(), b" ")
                return raw
            case _:
                text: str = self._tokenizer.decode([token])
                return text.encode()
