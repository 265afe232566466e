"""Arguments that a model writes as a JSON object: emitted character by character, up to the brace that ends them."""

import re
from collections.abc import Callable

_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)


class JsonArguments:
    """The arguments of one call."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """`emit` gets what is certain."""
        self._emit = emit
        self._held = ""
        self._open: list[str] = []

    def add_text(self, text: str) -> str | None:
        """Read more of the block; return what follows the arguments, None while they go on."""
        text = self._held + text
        self._held = ""
        at = 0
        while at < len(text):
            if self._open and self._open[-1] == '"':
                at = self._string_end(text, at)
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
                self._emit(text[:at])
                return text[at:]
        certain = len(text) - len(self._held)
        if certain:
            self._emit(text[:certain])
        return None

    def _string_end(self, text: str, at: int) -> int:
        """Return where the string that `at` is in ends."""
        found = _STRING_END.match(text, at)
        if found is not None:
            self._open.pop()
            return found.end()
        backslashes = len(text) - len(text[at:].rstrip("\\")) - at
        # A backslash at the end has to wait for what it escapes.
        if backslashes % 2:
            self._held = "\\"
        return len(text)
