"""Control tokens that a message spells out, broken by a joiner: text must not forge a role. Pure."""

import re
from collections.abc import Collection
from typing import Any

JOINER = "\u2060"
"""Word joiner, invisible."""
SLICE_CHARACTERS = 65_536
"""What is searched in one call: about a millisecond, in which no other thread runs."""


class Disarmer:
    """Certain names, broken in texts; what that costs depends on the text alone, not on how many names there are."""

    def __init__(self, names: Collection[str]) -> None:
        """`names` are of two characters at least."""
        self._names = re.compile(_prefix_tree(names)) if names else None
        self._longest = max(map(len, names), default=0)

    def disarm_text(self, value: Any) -> Any:
        """Return the same text, list or dict with a joiner behind the first character of each name in its texts.

        Of names that begin at the same place the longest counts; none is looked for inside another.
        """
        match value:
            case str():
                return self._disarm(value)
            case dict():
                return {self.disarm_text(key): self.disarm_text(part) for key, part in value.items()}
            case list():
                return [self.disarm_text(part) for part in value]
            case _:
                return value

    def _disarm(self, text: str) -> str:
        if self._names is None:
            return text
        if len(text) <= SLICE_CHARACTERS:
            return self._names.sub(lambda found: found[0][0] + JOINER + found[0][1:], text)
        pieces = []
        done = at = 0
        while at < len(text):
            end = at + SLICE_CHARACTERS
            # A name that begins within the slice may end behind it.
            for found in self._names.finditer(text, at, end + self._longest - 1):
                if found.start() >= end:
                    break
                pieces += [text[done : found.start() + 1], JOINER]
                done = found.start() + 1
                at = found.end()
            at = max(at, end)
        return "".join([*pieces, text[done:]])


def _prefix_tree(names: Collection[str]) -> str:
    """Return an expression for the longest of the names at a place; it reads no character of the text twice.

    An alternation of the names themselves is tried name by name: hundreds of times at every `<|`.
    """
    root: dict[str, Any] = {}
    for name in names:
        node = root
        for letter in name:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _branches(root)


def _branches(node: dict[str, Any]) -> str:
    ways = []
    for letter, after in sorted(node.items()):
        if letter:
            # Straight on where there is no choice: expressions nest by choices, not by letters.
            spelled = letter
            while len(after) == 1 and "" not in after:
                [(letter, after)] = after.items()
                spelled += letter
            ways.append(re.escape(spelled) + _branches(after))
    if not ways:
        return ""
    inner = "|".join(ways)
    if "" in node:
        return f"(?:{inner})?"
    return inner if len(ways) == 1 else f"(?:{inner})"
