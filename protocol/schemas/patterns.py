"""Formats and expressions of JSON schemas as grammars take them, which look neither ahead nor behind. Pure."""

import re
from collections.abc import Iterator
from types import MappingProxyType

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"}
)
"""Those that grammars know."""
HINTS = frozenset(
    {
        "binary", "password", "path", "file-path", "directory-path", "new-path", "socket-path", "json-string", "text",
        "textarea", "multi-line", "markdown", "html", "char", "color-name", "string",
    }
)  # fmt: skip
"""Formats that say what a text is for: any text is one."""
_UUID = "^[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-{}[0-9a-fA-F]{{3}}-[89abAB][0-9a-fA-F]{{3}}-[0-9a-fA-F]{{12}}$"
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
PATTERNS = MappingProxyType(
    {
        "base64": _BASE64,
        "byte": _BASE64,
        "base64url": "^[A-Za-z0-9_-]*={0,2}$",
        "jwt": r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*$",
        "json-pointer": "^(?:/(?:[^/~]|~[01])*)*$",
        "ipv4network": rf"^{_BYTE}(?:\.{_BYTE}){{3}}/(?:3[0-2]|[12]?[0-9])$",
        **{f"uuid{version}": _UUID.format(version) for version in range(1, 9)},
    }
)
"""Formats that grammars don't know, as expressions."""
_DATE = r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])$"
NAMES = MappingProxyType({"uuid": _UUID.format("[0-9a-fA-F]"), "date": _DATE})
"""Formats that grammars know, as expressions for names of properties."""
MOST_CONDITIONS = 8
"""Expressions that one is taken apart into."""
_BEYOND = re.compile(r"\\(?:[1-9bBAGZzc]|k<)|\((?=\?<?[=!])")
"""What no automaton follows, or what means something else to one."""


def as_patterns(pattern: str) -> list[str] | None:
    r"""Return expressions that a text must all fit for the given one to fit, itself last; None where there are none.

    What an expression looks ahead for at its beginning is one of its own: `^(?=.*\d).{8,}$` asks for a digit
    and for eight characters.
    """
    found: list[str] = []
    while pattern.startswith("^(?=") and len(found) < MOST_CONDITIONS:
        end = _closing(pattern, 1)
        if end is None:
            return None
        found.append(f"^(?:{pattern[4:end]})")
        pattern = f"^{pattern[end + 1 :]}"
    # A bar at the top would leave what stands before it without the conditions.
    if found and _has_top_choice(pattern):
        return None
    found.append(pattern)
    if any(_BEYOND.match(one, at) for one in found for at, character in _characters(one, 0) if character in "\\("):
        return None
    return found


def _closing(pattern: str, start: int) -> int | None:
    """Return where the group that opens at `start` closes."""
    depth = 0
    for at, character in _characters(pattern, start):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return at
    return None


def _has_top_choice(pattern: str) -> bool:
    depth = 0
    for _, character in _characters(pattern, 0):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == "|":
            return True
    return False


def _characters(pattern: str, start: int) -> Iterator[tuple[int, str]]:
    """Yield characters that mean something, with their places: none that is escaped, and none of a class."""
    at, inside = start, False
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            if not inside:
                yield at, character
            at += 2
            continue
        if inside:
            inside = character != "]"
        elif character == "[":
            inside = True
            # A bracket that comes first is one of the class.
            at += pattern[at + 1 : at + 2] == "^"
            at += pattern[at + 1 : at + 2] == "]"
        else:
            yield at, character
        at += 1
