"""Tokens to text, one at a time, as the tokenizer's own decoder makes it of all of them. Knows tables, no tokenizer.

Each segment is handed out once and not kept, so that token 60,000 costs what the first did. What later tokens may still
change is held back: a character that is not complete, a run of bytes, spaces that may be dropped.
"""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from worker.text.decoder_rules import strip_end, strip_start

_decoder = codecs.getincrementaldecoder("utf-8")


class ByteDetokenizer:
    """For vocabularies whose tokens are known as bytes (byte-level BPE)."""

    def __init__(self, raw: Sequence[bytes]) -> None:
        """`raw` is the bytes of every token id."""
        self._raw = raw
        # Incomplete characters stay inside; bytes that are no UTF-8 come out as U+FFFD.
        self._decode = _decoder("replace").decode
        self._segment = ""

    def add_token(self, token: int) -> None:
        """Take one token id; ids beyond the vocabulary (padding of the output head) have no text."""
        if token >= len(self._raw):
            return
        text = self._decode(self._raw[token])
        self._segment = self._segment + text if self._segment else text

    def finalize(self) -> None:
        """Give up waiting for the rest of a character."""
        self._segment += self._decode(b"", True)

    @property
    def last_segment(self) -> str:
        """The text since the last time, whole characters only."""
        segment, self._segment = self._segment, ""
        return segment


class PieceDetokenizer:
    """For vocabularies whose tokens are texts, some of them perhaps a byte each (SentencePiece, WordPiece).

    A run of bytes is text once it has ended: one byte too many makes all of it U+FFFD.
    """

    def __init__(
        self,
        texts: Sequence[str | None],
        *,
        byte_values: Mapping[int, int],
        read_run: Callable[[bytes, bool], str],
        first: Callable[[int], str] | None,
    ) -> None:
        """`texts` are what tokens add behind others (None: there is no such token), `byte_values` those that are bytes.

        `read_run` returns the text of a run of these, and is told whether it begins the text; so does `first`, for any
        other token. Without `first` no token is the first one.
        """
        self._texts = texts
        self._byte_values = byte_values
        self._read_run = read_run
        self._first = first
        self._run = bytearray()
        self._segment = ""

    def add_token(self, token: int) -> None:
        """Take one token id; ids that are no token have no text."""
        if token in self._byte_values:
            self._run.append(self._byte_values[token])
            return
        text = self._texts[token] if token < len(self._texts) else None
        if text is None:
            return
        if self._run:
            text = self._end_run() + text
        elif self._first is not None:
            text, self._first = self._first(token), None
        self._segment = self._segment + text if self._segment else text

    def finalize(self) -> None:
        """Give up waiting for the rest of a character."""
        if self._run:
            self._segment += self._end_run()

    def _end_run(self) -> str:
        text = self._read_run(bytes(self._run), self._first is not None)
        self._first = None
        self._run.clear()
        return text

    @property
    def last_segment(self) -> str:
        """The text since the last time, whole characters only."""
        segment, self._segment = self._segment, ""
        return segment


class EndingDetokenizer:
    """For vocabularies whose last token has another text than it would have before others (BPE with `</w>`)."""

    def __init__(
        self, texts: Sequence[str | None], last: Callable[[int], str], *, first: Callable[[int, bool], str] | None
    ) -> None:
        """`texts` are as in `PieceDetokenizer`, `last` is what a token is at the end.

        `first` is what it is at the start, which may be the end, too.
        """
        self._texts = texts
        self._last = last
        self._first = first
        self._segment = ""
        self._rest = ("", "")
        """What the last token adds to its certain text, if others follow, and if none does."""

    def add_token(self, token: int) -> None:
        """Take one token id; ids that are no token have no text."""
        text = self._texts[token] if token < len(self._texts) else None
        if text is None:
            return
        last = self._last(token)
        if self._first is not None:
            text, last, self._first = self._first(token, False), self._first(token, True), None
        certain = next((at for at, pair in enumerate(zip(text, last, strict=False)) if pair[0] != pair[1]), None)
        certain = min(len(text), len(last)) if certain is None else certain
        self._segment += self._rest[0] + text[:certain]
        self._rest = (text[certain:], last[certain:])

    def finalize(self) -> None:
        """Take what came last for the last token."""
        self._segment += self._rest[1]
        self._rest = ("", "")

    @property
    def last_segment(self) -> str:
        """The text since the last time."""
        segment, self._segment = self._segment, ""
        return segment


class WindowDetokenizer:
    """For tokenizers of which nothing is known but that they decode: the last tokens are decoded again and again."""

    CONTEXT, MOST = 32, 96
    """Tokens that are kept to decode the next ones behind, and when it is cut down to them."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._known = 0
        """Characters of the tokens' text that have been handed out."""
        self._segment = ""

    def add_token(self, token: int) -> None:
        """Take one token id."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        certain = text.rstrip("\ufffd")
        # What never becomes a character is not waited for.
        if len(text) - len(certain) > len(self._tokens[-4:]):
            certain = text
        if len(certain) > self._known:
            self._segment += certain[self._known :]
            self._known = len(certain)
        if len(self._tokens) > self.MOST and self._known == len(text):
            self._tokens = self._tokens[-self.CONTEXT :]
            self._known = len(self._decode(self._tokens))

    def finalize(self) -> None:
        """Give up waiting for the rest of a character."""
        if self._tokens:
            self._segment += self._decode(self._tokens)[self._known :]
        self._tokens, self._known = [], 0

    @property
    def last_segment(self) -> str:
        """The text since the last time."""
        segment, self._segment = self._segment, ""
        return segment


class TextFilter(Protocol):
    """Changes a text that comes in pieces, as it would change all of it at once."""

    @property
    def done(self) -> bool:
        """Whether it will change nothing more."""

    def feed_text(self, text: str) -> str:
        """Return what is certain of the text so far, but for what was returned before."""

    def finish_text(self) -> str:
        """Return the rest."""


class StripFilter:
    """Takes so many of a character, at most, from the start and from the end of a text."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content = content
        self._start = start
        self._stop = stop
        self._held = ""

    @property
    def done(self) -> bool:
        """See `TextFilter`."""
        return not (self._start or self._stop)

    def feed_text(self, text: str) -> str:
        """See `TextFilter`."""
        if self._start and text:
            rest = strip_start(text, self._content, self._start)
            self._start = self._start - (len(text) - len(rest)) if not rest else 0
            text = rest
        if not self._stop:
            return text
        text = self._held + text
        certain = strip_end(text, self._content, self._stop)
        self._held = text[len(certain) :]
        return certain

    def finish_text(self) -> str:
        """See `TextFilter`: what is held is what is taken from the end."""
        return ""


class ReplaceFilter:
    """Replaces a text wherever it stands."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern = pattern
        self._content = content
        self._held = ""

    @property
    def done(self) -> bool:
        """See `TextFilter`."""
        return False

    def feed_text(self, text: str) -> str:
        """See `TextFilter`."""
        *whole, rest = (self._held + text).split(self._pattern)
        # The longest end that may yet become the pattern.
        most = min(len(rest), len(self._pattern) - 1)
        held = next((count for count in range(most, 0, -1) if self._pattern.startswith(rest[-count:])), 0)
        self._held = rest[len(rest) - held :]
        return "".join(piece + self._content for piece in whole) + rest[: len(rest) - held]

    def finish_text(self) -> str:
        """See `TextFilter`."""
        held, self._held = self._held, ""
        return held


class CleanFilter:
    """Drops the spaces before punctuation and short forms that `clean` does, which is transformers' own function.

    It replaces texts that begin with a space. None of these reaches over two neighbours that are no spaces, but for
    those that stand within one: between any others a text can be cut before it is cleaned.
    """

    _CUT = re.compile(r"[^ ](?=[^ ])(?!(?<=n)'|(?<=')[tmsvr]|(?<=v)e|(?<=r)e)")

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._held = ""

    @property
    def done(self) -> bool:
        """See `TextFilter`."""
        return False

    def feed_text(self, text: str) -> str:
        """See `TextFilter`."""
        text = self._held + text
        cut = max((found.end() for found in self._CUT.finditer(text)), default=0)
        self._held = text[cut:]
        return self._clean(text[:cut])

    def finish_text(self) -> str:
        """See `TextFilter`."""
        held, self._held = self._held, ""
        return self._clean(held)


class StreamedDetokenizer(Protocol):
    """What all of these are."""

    def add_token(self, token: int) -> None: ...  # noqa: D102
    def finalize(self) -> None: ...  # noqa: D102
    @property
    def last_segment(self) -> str: ...  # noqa: D102


class FilteredDetokenizer:
    """Another detokenizer, with filters behind it."""

    def __init__(self, inner: StreamedDetokenizer, filters: Sequence[TextFilter]) -> None:
        self._inner = inner
        self._filters = [*filters]
        self._segment = ""
        self.add_token = inner.add_token

    def finalize(self) -> None:
        """Give up waiting for anything."""
        self._inner.finalize()
        text = self._inner.last_segment
        for one in self._filters:
            text = one.feed_text(text) + one.finish_text()
        self._segment += text

    @property
    def last_segment(self) -> str:
        """The text since the last time, as far as it is certain."""
        text = self._inner.last_segment
        if self._filters and text:
            for one in self._filters:
                text = one.feed_text(text)
            self._filters = [one for one in self._filters if not one.done]
        if self._segment:
            text, self._segment = self._segment + text, ""
        return text
