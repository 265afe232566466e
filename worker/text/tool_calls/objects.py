"""Arguments that a model writes as an object, brought to JSON character by character, up to the bracket that ends them.

What comes out is JSON whatever came in: line breaks within strings are escaped, commas before a bracket dropped,
Python's constants and quotes replaced. Where that leaves a doubt the object is broken, and says so.
"""

import json
import re
from collections.abc import Callable
from types import MappingProxyType

import msgspec

DEEPEST = 500
"""Lists and objects within each other; clients' parsers end somewhat beyond."""
LONGEST_WORD = 4000
"""A number, or a word without quotes. Python's `json` reads no integer beyond 4300 digits."""

_CONSTANTS = MappingProxyType(
    {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LOOSE_NUMBER = re.compile(r"\+?(-?)(0|[1-9][0-9]*(?:_[0-9]+)*|)(?:(\.)([0-9]*))?((?:[eE][+-]?[0-9]+)?)")
_SPACE = re.compile(r"[ \t\r\n]+")
_GAP = re.compile(r"[ \t\r\n]{0,40}")
_WORD = re.compile(r"[^\s,:=<>\[\]{}()\"']+")
_BARE_NAME = re.compile(r"[^,:=<>\[\]{}()\"'\n]+")
_BARE_TEXT = re.compile(r"[^,<\[\]{}()]+")
_TEXT = re.compile(r'[^"\\\x00-\x1f]+')
_OTHER_TEXT = re.compile(r"[^'\"\\\x00-\x1f]+")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_PYTHON_ESCAPE = re.compile(r"\\(?:(?P<hex>x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8})|(?P<octal>[0-7]{1,3})|(?P<other>[av'\n]))")
_BEGUN_PYTHON_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]?|U[0-9a-fA-F]{0,7}|[0-7]{1,2})?\Z")
_PYTHON_LETTERS = MappingProxyType({"a": "\\u0007", "v": "\\u000b", "'": "'", "\n": ""})
_CLOSING = MappingProxyType({"{": "}", "[": "]", "(": ")"})


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How an object is written.

    Strings stand between quotes as in JSON or Python, or between `quote`s, where nothing is escaped. `assign` follows
    the names of arguments. `python`: its escapes, and triple quotes. `bare`: a word without quotes is text.
    """

    quote: str = ""
    assign: str = ":"
    python: bool = False
    bare: bool = False


JSON = Dialect()


class ObjectReader:
    """Reader of one value, from its opening bracket on."""

    def __init__(self, emit: Callable[[str], None], dialect: Dialect = JSON, *, end: str = "") -> None:
        """`emit` gets JSON as it becomes certain. `end` is what may follow where the last bracket is missing."""
        self.complete = False
        self._emit = emit
        self._dialect = dialect
        self._end = end
        self._out: list[str] = []
        self._held = ""
        self._open: list[str] = []
        self._quote = ""
        self._name = False
        """Whether the string that is being read is a name."""
        self._awaited = "value"
        self._comma = ""
        """A comma that is only written if something follows."""

    def add_text(self, text: str) -> str | None:
        """Read more; return what follows the value, or what can't belong to it; None while it goes on.

        `complete` tells which.
        """
        text = self._held + text
        self._held = ""
        at = 0
        rest = None
        while at < len(text):
            if self._quote:
                read = self._read_quoted if self._quote == self._dialect.quote else self._read_string
                at = read(text, at)
                continue
            if found := _SPACE.match(text, at):
                self._write_space(found[0])
                at = found.end()
                continue
            after = self._read_token(text, at)
            if after is None:
                self._held = text[at:]
                break
            if after == at or self.complete:
                rest = text[after:]
                break
            at = after
        if self._out:
            self._emit("".join(self._out))
            self._out.clear()
        return rest

    def close(self) -> bool:
        """Write the brackets that are missing where the text has ended; return False where more than these is."""
        quote = self._dialect.quote
        if self._quote and self._quote == quote and self._held.startswith(quote):
            self._held = ""
            self._end_string()
        # No word goes on behind it.
        if self._quote or self.add_text("<") != "<" or self._awaited in ("value", "assign") or not self._open:
            return False
        self._emit("".join("}" if bracket == "{" else "]" for bracket in map(self._shape, reversed(self._open))))
        self.complete = True
        return True

    # -- between strings

    def _read_token(self, text: str, at: int) -> int | None:
        """Return where what begins at `at` ends: there, where nothing does; None where it may go on."""
        letter = text[at]
        if letter in "}])":
            return self._close_bracket(letter, at)
        match self._awaited:
            case "comma" if letter == ",":
                self._comma = ","
                self._awaited = "name" if self._within_object else "item"
                return at + 1
            case "assign" if letter == ":" or (letter == self._dialect.assign and len(self._open) == 1):
                self._out.append(":")
                self._awaited = "value"
                return at + 1
            case "comma" | "assign":
                return at
            case _:
                return self._begin_value(text, at, letter)

    def _begin_value(self, text: str, at: int, letter: str) -> int | None:
        name = self._awaited == "name"
        if letter in "{[(":
            # Round ones are for arguments and tuples.
            if name or len(self._open) == DEEPEST or (letter == "(" and not self._dialect.python):
                return at
            self._write(self._shape(letter))
            self._open.append(letter if self._open or letter != "(" else "()")
            self._awaited = "name" if self._within_object else "item"
            return at + 1
        if quote := self._quote_at(text, at, letter):
            if quote == "?":
                return None
            self._write('"')
            self._quote = quote
            self._name = name
            return at + len(quote)
        return self._read_word(text, at, name)

    def _quote_at(self, text: str, at: int, letter: str) -> str:
        """Return the quote at `at`; empty: none, `?`: it may become one."""
        own = self._dialect.quote
        if own and letter == own[0]:
            if text.startswith(own, at):
                return own
            return "?" if own.startswith(text[at:]) else ""
        if letter not in "\"'":
            return ""
        if self._dialect.python:
            # An empty string, or the beginning of a longer quote.
            if text.startswith(letter * 3, at):
                return letter * 3
            if letter * 3 == text[at : at + 3] + letter * (3 - len(text[at : at + 3])):
                return "?"
        return letter

    def _read_word(self, text: str, at: int, name: bool) -> int | None:
        bare = self._dialect.bare
        found = ((_BARE_NAME if name else _BARE_TEXT) if bare else _WORD).match(text, at)
        if found is None or found.end() - at > LONGEST_WORD:
            return at
        if found.end() == len(text):
            return None
        word = found[0].rstrip()
        written = json.dumps(word, ensure_ascii=False) if name else _scalar(word, bare=bare)
        if written is None:
            return at
        self._write(written)
        self._awaited = "assign" if name else "comma"
        return at + len(word)

    def _close_bracket(self, letter: str, at: int) -> int:
        if not self._open or self._awaited in ("value", "assign") or _CLOSING[self._open[-1][0]] != letter:
            return at
        bracket = self._shape(self._open.pop())
        self._out += [self._comma[1:], "}" if bracket == "{" else "]"]
        self._comma = ""
        self._awaited = "comma"
        self.complete = not self._open
        return at + 1

    @property
    def _within_object(self) -> bool:
        return self._shape(self._open[-1]) == "{"

    def _shape(self, bracket: str) -> str:
        """Return what a bracket is in JSON; `()` around arguments, `(` around a tuple."""
        if bracket == "(":
            return "[" if self._open else "{"
        return "{" if bracket == "()" else bracket

    def _write(self, text: str) -> None:
        """Write what is no bracket at the end."""
        self._out += [self._comma, text]
        self._comma = ""

    def _write_space(self, space: str) -> None:
        if self._comma:
            self._comma += space
        else:
            self._out.append(space)

    # -- within strings

    def _end_string(self) -> None:
        self._out.append('"')
        self._quote = ""
        self._awaited = "assign" if self._name else "comma"

    def _read_string(self, text: str, at: int) -> int:
        """Return how far the string has been read; what may become something else is held."""
        quote = self._quote
        plain = _TEXT if quote == '"' else _OTHER_TEXT
        while at < len(text):
            if found := plain.match(text, at):
                self._out.append(found[0])
                at = found.end()
                continue
            letter = text[at]
            if letter == "\\":
                after = self._read_escape(text, at)
                if after is None:
                    self._held = text[at:]
                    return len(text)
                at = after
                continue
            if text.startswith(quote, at):
                self._end_string()
                return at + len(quote)
            if quote.startswith(text[at:]):
                self._held = text[at:]
                return len(text)
            self._out.append(letter if letter == "'" else json.dumps(letter)[1:-1])
            at += 1
        return at

    def _read_escape(self, text: str, at: int) -> int | None:
        if found := _ESCAPE.match(text, at):
            self._out.append(found[0])
            return found.end()
        python = self._dialect.python
        if _BEGUN_ESCAPE.match(text, at) or (python and _BEGUN_PYTHON_ESCAPE.match(text, at)):
            return None
        if python and (found := _PYTHON_ESCAPE.match(text, at)):
            if found["other"]:
                self._out.append(_PYTHON_LETTERS[found["other"]])
                return found.end()
            number = int(found["hex"][1:], 16) if found["hex"] else int(found["octal"], 8)
            if number < 0x110000:
                self._out.append(json.dumps(chr(number))[1:-1])
                return found.end()
        if text[at + 1] == "'":
            self._out.append("'")
            return at + 2
        # A backslash that escapes nothing is one.
        self._out.append("\\\\")
        return at + 1

    def _read_quoted(self, text: str, at: int) -> int:
        """Read a string without escapes: a quote ends it where what follows is none of it."""
        quote = self._quote
        while (found := text.find(quote[0], at)) >= 0:
            self._out.append(json.dumps(text[at:found], ensure_ascii=False)[1:-1])
            at = found
            if not text.startswith(quote, at):
                if quote.startswith(text[at:]):
                    self._held = text[at:]
                    return len(text)
                self._out.append(quote[0])
                at += 1
                continue
            gap = _GAP.match(text, at + len(quote))
            behind = text[gap.end() :] if gap else ""
            if not behind or (self._end.startswith(behind) and behind != self._end):
                self._held = text[at:]
                return len(text)
            if behind[0] in (":" if self._name else "," + _CLOSING[self._open[-1][0]]) or (
                self._end and behind.startswith(self._end)
            ):
                self._end_string()
                return at + len(quote)
            self._out.append(json.dumps(quote)[1:-1])
            at += len(quote)
        self._out.append(json.dumps(text[at:], ensure_ascii=False)[1:-1])
        return len(text)


def _scalar(word: str, *, bare: bool) -> str | None:
    """Return what a word without quotes is in JSON; None: nothing."""
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _NUMBER.fullmatch(word):
        return word
    loose = _LOOSE_NUMBER.fullmatch(word)
    if loose and (loose[2] or loose[4]):
        fraction = f".{loose[4] or '0'}" if loose[3] else ""
        return f"{loose[1]}{loose[2].replace('_', '') or '0'}{fraction}{loose[5]}"
    return json.dumps(word, ensure_ascii=False) if bare else None


def to_json(text: str) -> str:
    """Return as JSON a text that is one list or object. Raises `ValueError` where it is none."""
    out: list[str] = []
    reader = ObjectReader(out.append)
    rest = reader.add_text(text)
    if not reader.complete if rest is None else (not reader.complete or rest.strip()):
        raise ValueError("no object")
    return "".join(out)
