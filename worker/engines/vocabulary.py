"""Token ids as text and bytes: for detokenizing, for log-probabilities, for what a client may name by id.

The text of tokens is what the tokenizer's own decoder makes of all of them, control tokens included. mlx-lm's
detokenizers are picked by the looks of a file and differ from it, so none of them is used.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from tokenizers import Tokenizer, decoders

from worker.engines.tokenizing import cleans_spaces, plain_decoder, token_names
from worker.text.channels import Detokenizer
from worker.text.decoder_rules import DecoderRules, Map, ReplaceText, Strip, UnknownDecoderError, byte_of, read_rules
from worker.text.detokenizer import (
    ByteDetokenizer,
    CleanFilter,
    EndingDetokenizer,
    FilteredDetokenizer,
    PieceDetokenizer,
    ReplaceFilter,
    StreamedDetokenizer,
    StripFilter,
    TextFilter,
    WindowDetokenizer,
)

log = logging.getLogger("worker")

SAMPLES, SAMPLE_TOKENS = 64, 16
"""Sequences of ids whose text is compared at load with what the tokenizer says, and how long they are."""
MARK, LETTER = "▁", "Ġ"
"""What a word begins with in SentencePiece's vocabularies, and in byte-level ones."""


class Vocabulary:
    """What each token id stands for."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is mlx-lm's wrapper; a decoder that can't spell the vocabulary is replaced in it."""
        self._tokenizer = tokenizer
        self._names: Sequence[str | None] = ()
        self._rules: DecoderRules | None = None
        self._bytes: list[bytes] = []
        self._texts: Sequence[str | None] = ()
        self._byte_values: Mapping[int, int] = {}
        self._clean: Callable[[str], str] | None = None
        if (backend := plain_decoder(tokenizer)) is not None:
            self._read_tables(backend)

    @property
    def raws(self) -> Sequence[bytes] | None:
        """The bytes of each token id, where the tokenizer tells them."""
        rules = self._rules
        if rules is None or not all(isinstance(one, Strip) for one in rules.filters):
            return None
        if rules.byte_level:
            return self._bytes
        return PieceBytes(self._texts, self._byte_values) if rules.byte_fallback else None

    def make_detokenizer(self, *, answer: bool) -> Detokenizer:
        """Return a fresh one.

        An `answer` starts anew; anything else continues its prompt, and its first space counts.
        """
        if self._rules is None:
            return WindowDetokenizer(self._decode_tokens)
        filters = self._make_filters(self._rules, answer=answer)
        inner = self._make_inner(self._rules, answer=answer)
        return FilteredDetokenizer(inner, filters) if filters else inner

    def __getitem__(self, token: int) -> tuple[str, bytes]:
        """Text and bytes of one token id; the text is lossy where a token is part of a character."""
        rules = self._rules
        if rules is None:
            text = self._decode_tokens([token])
            return text, text.encode()
        if rules.byte_level:
            raw = self._bytes[token] if token < len(self._bytes) else b""
            return raw.decode("utf-8", "replace"), raw
        raw = PieceBytes(self._texts, self._byte_values)[token] if token < len(self._texts) else b""
        return raw.decode("utf-8", "replace"), raw

    # -- tables

    def _read_tables(self, backend: Tokenizer) -> None:
        names = token_names(backend)
        if _misspells(backend, names):
            log.warning("the tokenizer's decoder does not know byte-level names; it is replaced by one that does")
            backend.decoder = decoders.ByteLevel()
        try:
            rules = read_rules(json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None)
        except UnknownDecoderError as error:
            log.info("the tokenizer's decoder is followed at a distance: %s", error)
            return
        self._names = names
        texts = _apply(rules.maps, names)
        if rules.byte_level:
            letters = _byte_letters()
            self._bytes = [b"" if text is None else _bytes_of_name(text, letters) for text in texts]
        else:
            if rules.byte_fallback:
                named = {at: byte_of(text) for at, text in enumerate(texts) if text is not None and text[:3] == "<0x"}
                self._byte_values = {at: byte for at, byte in named.items() if byte is not None}
            self._texts = _apply(rules.later_maps, texts)
        self._clean = self._tokenizer.clean_up_tokenization if cleans_spaces(self._tokenizer) else None
        self._rules = rules
        if not self._agrees():
            log.warning("the tokenizer's decoder is not what its description says: it is followed at a distance")
            self._rules = None

    def _make_inner(self, rules: DecoderRules, *, answer: bool) -> StreamedDetokenizer:
        names = self._names
        if rules.byte_level:
            return ByteDetokenizer(self._bytes)

        def first(token: int, last: bool = False) -> str:
            return rules.text_of(names[token] or "", first=True, last=last)

        if not rules.byte_fallback and rules.ending:
            return EndingDetokenizer(
                self._texts,
                lambda token: rules.text_of(names[token] or "", first=False, last=True),
                first=first if answer else None,
            )
        return PieceDetokenizer(
            self._texts,
            byte_values=self._byte_values,
            read_run=rules.read_run,
            first=first if answer else None,
        )

    def _make_filters(self, rules: DecoderRules, *, answer: bool) -> list[TextFilter]:
        filters: list[TextFilter] = []
        for one in rules.filters:
            match one:
                case Strip(content, start, stop):
                    filters.append(StripFilter(content, start if answer else 0, stop))
                case ReplaceText(pattern, content):
                    filters.append(ReplaceFilter(pattern, content))
        if self._clean is not None:
            filters.append(CleanFilter(self._clean))
        return [one for one in filters if not one.done]

    def _decode_tokens(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def _agrees(self) -> bool:
        """Return whether the text of some tokens from everywhere is what the tokenizer says."""
        size = len(self._names)
        for sample in range(SAMPLES):
            tokens = [(sample + at * (size // SAMPLE_TOKENS + 1) * (sample + 1)) % size for at in range(SAMPLE_TOKENS)]
            made = self.make_detokenizer(answer=True)
            for token in tokens:
                made.add_token(token)
            made.finalize()
            if made.last_segment != self._decode_tokens(tokens):
                return False
        return True


class PieceBytes(Sequence[bytes]):
    """The bytes of each token of a vocabulary of texts, made when they are asked for."""

    def __init__(self, texts: Sequence[str | None], byte_values: Mapping[int, int]) -> None:
        self._texts = texts
        self._byte_values = byte_values

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, token: int) -> bytes: ...
    @overload
    def __getitem__(self, token: slice) -> Sequence[bytes]: ...
    def __getitem__(self, token: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(token, slice):
            return [self[at] for at in range(*token.indices(len(self)))]
        if token in self._byte_values:
            return bytes([self._byte_values[token]])
        return (self._texts[token] or "").encode()


def _misspells(backend: Tokenizer, names: Sequence[str | None]) -> bool:
    """Return whether names are byte-level ones and the decoder is SentencePiece's: it would leave `Ġ` in the text."""
    if backend.decoder is None:
        return False
    decoder = bytes(backend.decoder.__getstate__()).decode()
    if '"ByteLevel"' in decoder or not (MARK in decoder or '"ByteFallback"' in decoder):
        return False
    known = set(names)
    letters = sum(name is not None and name.startswith(LETTER) for name in names)
    marks = sum(name is not None and MARK in name for name in names)
    return letters > marks and known.issuperset(_byte_letters())


def _apply(maps: Sequence[Map], texts: Sequence[str | None]) -> Sequence[str | None]:
    """Return what steps of a decoder make of each token's text, behind others and before others."""
    for step in maps:
        texts = [None if text is None else step(text, False, False) for text in texts]
    return texts


def _bytes_of_name(name: str, letters: Mapping[str, int]) -> bytes:
    """Return what a token stands for: a byte-level name spells bytes as letters, a special token's is its text."""
    try:
        return bytes(map(letters.__getitem__, name))
    except KeyError:
        return name.encode()


def _byte_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level name stands for: printable ones themselves, then from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
