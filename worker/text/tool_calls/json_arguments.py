"""Arguments that a model writes as a JSON object: each character is told as it is, up to the brace that ends them."""

import re
from collections.abc import Callable

_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)


class JsonArguments:
    """Those of one call."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` gets what is certain."""
        self._tell = tell
        self._held = ""
        self._open: list[str] = []

    def add_text(self, text: str) -> str | None:
        """More of the block. Returns what follows the arguments, None while they go on."""
        text = self._held + text
        self._held = ""
        at = 0
        while at < len(text):
            if self._open and self._open[-1] == '"':
                at = self._string(text, at)
                continue
            found = _STRUCTURE.search(text, at)
            if found is None:
                break
            at = found.end()
            if found[0] in '"{[':
                self._open.append(found[0])
                continue
            self._open.pop()
            if not self._open:
                self._tell(text[:at])
                return text[at:]
        certain = len(text) - len(self._held)
        if certain:
            self._tell(text[:certain])
        return None

    def complete(self, _: str) -> None:
        """Nothing is left to tell: what ended before its brace is no object."""

    def _string(self, text: str, at: int) -> int:
        """Where the string that `at` is in ends; a backslash at the end of the text has to wait for what it escapes."""
        found = _STRING_END.match(text, at)
        if found is not None:
            self._open.pop()
            return found.end()
        backslashes = len(text) - len(text[at:].rstrip("\\")) - at
        if backslashes % 2:
            self._held = "\\"
        return len(text)
