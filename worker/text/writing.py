"""A tool block while it is being written: of formats whose arguments are JSON, what is certain before the block ends.

Pure. What comes out depends on the text alone, not on how it was cut; whether all of it is a call is for `calls`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

_JSON = r'\s*\{\s*"name"\s*:\s*"(?P<name>[\w.:-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)'
HEADS = MappingProxyType(
    {
        "json_tools": re.compile(_JSON),
        "longcat": re.compile(_JSON),
        "llama3": re.compile(
            r'(?:\s*\}\s*;\s*\{\s*"name")?\s*:\s*"(?P<name>[\w.:-]+)"\s*,\s*"parameters"\s*:\s*(?=\{)'
        ),
        "mistral": re.compile(r"\s*(?P<name>[\w-]+)\s*\[ARGS\]\s*(?=\{)"),
        "kimi_k2": re.compile(
            r"\s*(?:<\|tool_call_end\|>)?\s*(?:<\|tool_call_begin\|>)?\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]+):\d+)"
            r"\s*<\|tool_call_argument_begin\|>\s*(?=\{)"
        ),
    }
)
"""By parser: what stands before the arguments of a call."""
LONGEST_HEAD = 400
"""What is longer is none, so that a block of another kind is not searched over and over."""

_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)


Emit = Callable[[str | None, str | None, str], None]
"""Takes `(name, id, text)` where a call begins, and `(None, None, text)` where it goes on."""


class Writing:
    """One block."""

    def __init__(
        self,
        head: "re.Pattern[str]",
        names: Collection[str],
        *,
        most: int | None,
        emit: Emit,
    ) -> None:
        """At most `most` calls, of functions in `names`: anything else is left to the whole block's parser."""
        self._head = head
        self._names = names
        self._left = most
        self._emit = emit
        self._held = ""
        self._within = False
        self._open: list[str] = []
        self._over = most == 0
        self.begun = 0
        """Calls that have been told of."""

    def add(self, text: str) -> None:
        """More of the block."""
        if self._over:
            return
        text = self._held + text
        self._held = ""
        while text and not self._over:
            text = self._go_on(text) if self._within else self._begin(text)

    def _begin(self, text: str) -> str:
        found = self._head.match(text[:LONGEST_HEAD])
        if found is None:
            self._over = len(text) >= LONGEST_HEAD
            self._held = text
            return ""
        name = found["name"]
        if name not in self._names:
            self._over = True
            return ""
        self._within = True
        self.begun += 1
        self._emit(name, found.groupdict().get("id"), "")
        return text[found.end() :]

    def _go_on(self, text: str) -> str:
        """Pass on what belongs to the arguments; returns what follows them."""
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
                self._end()
                self._emit(None, None, text[:at])
                return text[at:]
        certain = len(text) - len(self._held)
        if certain:
            self._emit(None, None, text[:certain])
        return ""

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

    def _end(self) -> None:
        self._within = False
        if self._left is not None:
            self._left -= 1
            self._over = self._left == 0


def written_calls(
    tools: Sequence[Mapping[str, Any]], parser: str, *, parallel: bool
) -> Callable[[Emit], Writing] | None:
    """How blocks of a model with that parser are read while they are written; None: not before their end."""
    head = HEADS.get(parser)
    if head is None:
        return None
    names = {tool["function"]["name"] for tool in tools}
    return lambda emit: Writing(head, names, most=None if parallel else 1, emit=emit)
