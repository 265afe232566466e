"""What of a text between two marks is certain while it is written: which ends may yet be trimmed, and what may yet turn
out to be no text. Pure.

Whatever is certain of a text stays so for all that may follow it; so what is told depends on no cut.
"""

import re
from collections.abc import Callable

Cut = Callable[[str, bool], tuple[int, int]]
"""From a text, and whether some of the value was told before it, to where the certain part begins and ends."""
Doubt = Callable[[str], bool]
"""Whether what begins so may be read as something other than this text."""


def whole(text: str, _: bool) -> tuple[int, int]:
    """All of it."""
    return 0, len(text)


def stripped(text: str, begun: bool) -> tuple[int, int]:
    """Without white space at the ends."""
    return 0 if begun else len(text) - len(text.lstrip()), len(text.rstrip())


def lines(text: str, begun: bool) -> tuple[int, int]:
    """Without the line break after the opening and the one before the closing mark."""
    return 0 if begun else int(text.startswith("\n")), len(text) - text.endswith("\n")


CDATA = "<![CDATA["
CDATA_END = re.compile(r"\]\]>\s*")
_CDATA_TAIL = re.compile(r"\]\]>\s*\Z|\]{1,2}\Z")


def cdata(text: str, _: bool) -> tuple[int, int]:
    """Up to what may be the end of an XML section of characters."""
    found = _CDATA_TAIL.search(text)
    return 0, found.start() if found else len(text)


def null(text: str) -> bool:
    """mlx-lm takes the word in any case for a value of its own."""
    return "null".startswith(text.lower())


_NAMES = ("null", "None", "true", "True", "false", "False", "NaN", "Infinity")
_PREFIXES = frozenset(("r", "b", "u", "f", "br", "rb", "fr", "rf"))
_NUMBER = re.compile(r"-?[\d.eE+-]*")
_WORD = re.compile(r"[^\W\d]\w*")
_NO_LITERAL = frozenset("</*@$%&|;:,>!?=)]}^~`")
"""No literal of JSON or Python begins with these."""


def json(text: str) -> bool:
    """Whether it may be JSON."""
    return (
        text[0] in '{["'
        or _NUMBER.fullmatch(text) is not None
        or any(name.startswith(text) for name in (*_NAMES, "-Infinity"))
    )


def literal(text: str) -> bool:
    """Whether it may be a literal of JSON or Python, by its first word."""
    word = _WORD.match(text)
    if word is None:
        return text[0] not in _NO_LITERAL
    if word.end() == len(text):
        return text.lower() in _PREFIXES or any(name.startswith(text) for name in _NAMES)
    return word[0] in _NAMES or (word[0].lower() in _PREFIXES and text[word.end()] in "\"'")
