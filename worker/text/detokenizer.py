"""Tokens to text, one at a time, never splitting a character. Knows the bytes of each token and nothing else."""

import codecs
from collections.abc import Sequence

_decoder = codecs.getincrementaldecoder("utf-8")


class ByteDetokenizer:
    """For vocabularies whose tokens are known as bytes (byte-level BPE, SentencePiece).

    Each segment is handed out once and not kept, so that token 60,000 costs what the first did.
    With `trim`, a space at the very start is dropped, as SentencePiece models put one before their first word.
    """

    def __init__(self, raw: Sequence[bytes], *, trim: bool = False) -> None:
        """`raw` is the bytes of every token id."""
        self._raw = raw
        self._trim = trim
        # Incomplete characters stay inside; bytes that are no UTF-8 come out as U+FFFD.
        self._decode = _decoder("replace").decode
        self._segment = ""

    def add_token(self, token: int) -> None:
        """Take one token id; ids beyond the vocabulary (padding of the output head) have no text."""
        if token >= len(self._raw):
            return
        text = self._decode(self._raw[token])
        if self._trim and text:
            self._trim = False
            text = text.removeprefix(" ")
        self._segment = self._segment + text if self._segment else text

    def finalize(self) -> None:
        """Give up waiting for the rest of a character."""
        self._segment += self._decode(b"", True)

    @property
    def last_segment(self) -> str:
        """The text since the last time, whole characters only."""
        segment, self._segment = self._segment, ""
        return segment
