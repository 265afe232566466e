"""What a tokenizer's decoder makes of its tokens' names, as tables and as filters of the text behind them. Pure.

A decoder is given as the JSON that the tokenizers library has for it: a chain of steps from names to one text. Some
work on each token by itself, some join all tokens; behind such a one the others work on the whole text.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import msgspec

Map = Callable[[str, bool, bool], str]
"""A token's text, by its text before, whether it is the first one, and whether it is the last."""
_BYTE = re.compile(r"<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>")
_WORD_PIECE_SPACES = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class UnknownDecoderError(ValueError):
    """A chain of steps that can't be followed token by token here."""


class Strip(msgspec.Struct, frozen=True):
    """Take so many of a character, at most, from the start and from the end of a text."""

    content: str
    start: int
    stop: int


class ReplaceText(msgspec.Struct, frozen=True):
    """Replace a text wherever it stands, also across tokens."""

    pattern: str
    content: str


class DecoderRules(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder, taken apart.

    `maps` come first. Then, with `byte_level`, names spell bytes as letters; with `byte_fallback` some tokens are a
    byte each, a run of which makes characters, and `later_maps` follow. `filters` work on the text of all tokens.
    """

    maps: tuple[Map, ...] = ()
    byte_level: bool = False
    byte_fallback: bool = False
    later_maps: tuple[Map, ...] = ()
    filters: tuple[Strip | ReplaceText, ...] = ()

    @property
    def ending(self) -> bool:
        """Whether the last token's text is another one than it would be before others."""
        return any(isinstance(step, partial) and step.func is _end_word for step in (*self.maps, *self.later_maps))

    def read_run(self, run: bytes, first: bool) -> str:
        """Return the text of a run of tokens that are a byte each; `first`: it begins the text."""
        try:
            pieces = [run.decode()]
        except UnicodeDecodeError:
            pieces = ["\ufffd"] * len(run)
        later = DecoderRules(maps=self.later_maps)
        return "".join(later.text_of(piece, first=first and at == 0, last=False) for at, piece in enumerate(pieces))

    def text_of(self, name: str, *, first: bool, last: bool) -> str:
        """Return what a token's name becomes, but for the bytes that it spells."""
        return reduce(lambda text, step: step(text, first, last), (*self.maps, *self.later_maps), name)


def read_rules(decoder: dict[str, Any] | None) -> DecoderRules:
    """Take a decoder's JSON apart. Raises `UnknownDecoderError`."""
    if decoder is None:
        return DecoderRules(maps=(_join_names,))
    maps: list[Map] = []
    later: list[Map] | None = None
    filters: list[Strip | ReplaceText] = []
    joined = byte_level = False
    for step in _steps(decoder):
        kind = step["type"]
        if kind == "Fuse":
            joined = True
        elif joined:
            filters.append(_read_filter(step))
        elif kind == "ByteLevel" and later is None:
            byte_level = joined = True
        elif kind == "ByteFallback" and later is None:
            later = []
        else:
            (maps if later is None else later).append(_read_map(step))
    rules = DecoderRules(
        maps=tuple(maps),
        byte_level=byte_level,
        byte_fallback=later is not None,
        later_maps=tuple(later or ()),
        filters=tuple(filters),
    )
    if rules.ending and (rules.byte_level or rules.byte_fallback):
        raise UnknownDecoderError("bytes are put together, and words end with a mark")
    return rules


def byte_of(name: str) -> int | None:
    """Return the byte that a name like `<0x0A>` stands for."""
    found = _BYTE.fullmatch(name)
    return int(found[1], 16) if found else None


def _steps(decoder: dict[str, Any]) -> Sequence[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for one in decoder["decoders"] for step in _steps(one)]


def _read_filter(step: dict[str, Any]) -> Strip | ReplaceText:
    match step:
        case {"type": "Strip", "content": content, "start": start, "stop": stop}:
            return Strip(content, start, stop)
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
            return ReplaceText(pattern, content)
    raise UnknownDecoderError(f"{step['type']} works on all of a text")


def _read_map(step: dict[str, Any]) -> Map:
    match step:
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
            return partial(_replace, pattern, content)
        case {"type": "Strip", "content": content, "start": start, "stop": stop}:
            return partial(_strip, content, start, stop)
        case {"type": "Metaspace", "replacement": mark}:
            return partial(_read_mark, mark, step.get("prepend_scheme", "always") != "never")
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            return partial(_join_pieces, prefix, cleanup)
        case {"type": "BPEDecoder", "suffix": suffix}:
            return partial(_end_word, suffix)
    raise UnknownDecoderError(f"{step['type']} is not known")


def _join_names(text: str, first: bool, _last: bool) -> str:
    return text if first else f" {text}"


def _replace(pattern: str, content: str, text: str, _first: bool, _last: bool) -> str:
    return text.replace(pattern, content)


def _strip(content: str, start: int, stop: int, text: str, _first: bool, _last: bool) -> str:
    return strip_end(strip_start(text, content, start), content, stop)


def _read_mark(mark: str, prefixed: bool, text: str, first: bool, _last: bool) -> str:
    """Read SentencePiece's mark for a space: at the start of a text there are none, where one was put before it."""
    return text.replace(mark, "" if first and prefixed else " ")


def _join_pieces(prefix: str, cleanup: bool, text: str, first: bool, _last: bool) -> str:
    if not first:
        text = text.removeprefix(prefix) if prefix and text.startswith(prefix) else f" {text}"
    if cleanup:
        for found, instead in _WORD_PIECE_SPACES:
            text = text.replace(found, instead)
    return text


def _end_word(suffix: str, text: str, _first: bool, last: bool) -> str:
    return text.replace(suffix, "" if last else " ") if suffix else text


def strip_start(text: str, content: str, most: int) -> str:
    """Return a text without so many of a character at its start."""
    count = min(most, len(text) - len(text.lstrip(content)))
    return text[count:]


def strip_end(text: str, content: str, most: int) -> str:
    """Return a text without so many of a character at its end."""
    count = min(most, len(text) - len(text.rstrip(content)))
    return text[: len(text) - count]
