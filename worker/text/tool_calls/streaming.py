"""A tool block while it is being written: what is certain of its calls before it ends.

Pure. What comes out depends on the text alone, not on how it was cut; whether all of it is a call is for `calls`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.delimited_arguments import MarkedArguments, Parse
from worker.text.tool_calls.delimiters import MARKS
from worker.text.tool_calls.json_arguments import JsonArguments

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
        "kimi_k3": re.compile(
            r"\s*(?:<\|close\|>json<\|sep\|>\s*<\|close\|>call<\|sep\|>)?\s*"
            r'<\|open\|>call tool="(?P<name>[\w.:-]+)"(?: index="\d+")?<\|sep\|>'
            r'\s*<\|open\|>json(?: type="object")?<\|sep\|>\s*(?=\{)'
        ),
    }
)
"""By parser: what stands before arguments that are JSON. Others are in `marks`; some models write either."""
LONGEST_HEAD = 400
"""What is longer is none, so that a block of another kind is not searched over and over."""

Emit = Callable[[str | None, str | None, str], None]
"""Takes `(name, id, text)` where a call begins, and `(None, None, text)` where it goes on."""


class Arguments(Protocol):
    """Of one call, while they are written."""

    def add_text(self, text: str, /) -> str | None:
        """More of the block. Returns what follows them, None while they go on."""

    def complete(self, arguments: str, /) -> None:
        """Tell what is left, where the block has ended before they did and is a call with these."""


Notation = tuple["re.Pattern[str]", Callable[[str, Callable[[str], None]], Arguments]]
"""What stands before the arguments of a call, and what reads those of a name."""


class Writing:
    """One block."""

    def __init__(
        self,
        notations: Sequence[Notation],
        names: Mapping[str, Any],
        *,
        most: int | None,
        emit: Emit,
    ) -> None:
        """At most `most` calls, of functions in `names`: anything else is left to the whole block's parser."""
        self._notations = notations
        self._names = names
        self._left = most
        self._emit = emit
        self._held = ""
        self._name = ""
        self._arguments: Arguments | None = None
        self._over = most == 0
        self.begun = 0
        """Calls that have been told of."""

    def add_text(self, text: str) -> None:
        """More of the block."""
        if self._over:
            return
        text = self._held + text
        self._held = ""
        while text and not self._over:
            text = self._go_on(text, self._arguments) if self._arguments is not None else self._begin(text)

    def end_calls(self, calls: Sequence[Call]) -> None:
        """The block is complete, and turned out to hold these."""
        if self._arguments is not None and self.begun <= len(calls):
            call = calls[self.begun - 1]
            if call.name == self._name:
                self._arguments.complete(call.arguments)

    def _begin(self, text: str) -> str:
        start = text[:LONGEST_HEAD]
        for head, arguments in self._notations:
            if found := head.match(start):
                self._name = found["name"]
                self._over = self._name not in self._names
                if not self._over:
                    self.begun += 1
                    self._emit(self._name, found.groupdict().get("id"), "")
                    self._arguments = arguments(self._name, self._told)
                return text[found.end() :]
        self._over = len(text) >= LONGEST_HEAD
        self._held = text
        return ""

    def _go_on(self, text: str, arguments: Arguments) -> str:
        """Read on; returns what follows the arguments."""
        rest = arguments.add_text(text)
        if rest is None:
            return ""
        self._arguments = None
        if self._left is not None:
            self._left -= 1
            self._over = self._left == 0
        return rest

    def _told(self, text: str) -> None:
        self._emit(None, None, text)


def written_calls(
    tools: Sequence[Mapping[str, Any]], parser: str, parse: Parse, *, parallel: bool
) -> Callable[[Emit], Writing] | None:
    """How blocks of a model with that parser are read while they are written; None: not before their end.

    `parse` reads a whole block of theirs.
    """
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    notations: list[Notation] = []
    if head := HEADS.get(parser):
        notations.append((head, lambda _, tell: JsonArguments(tell)))
    if marks := MARKS.get(parser):
        notations.append((marks.head, lambda name, tell: MarkedArguments(marks, name, schemas[name], parse, tell)))
    if not notations:
        return None
    return lambda emit: Writing(notations, schemas, most=None if parallel else 1, emit=emit)
