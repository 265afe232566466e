"""A tool block while it is being written: what is certain of its calls before it ends.

Pure. What comes out depends on the text alone, not on how it was cut; whether all of it is a call is for `calls`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.formats import FORMATS
from worker.text.tool_calls.json_arguments import JsonArguments

LONGEST_HEAD = 400
"""What is longer is none, so that a block of another kind is not searched over and over."""

EmitPiece = Callable[[str | None, str | None, str], None]
"""Takes `(name, id, text)` where a call begins, and `(None, None, text)` where it goes on."""


class BlockReader:
    """Reader of one block.

    Arguments that are JSON are emitted as they come. Of a call with other arguments the name is emitted, and nothing
    more of the block before its end: then the whole block's parser has the arguments.
    """

    def __init__(
        self,
        heads: Sequence[tuple["re.Pattern[str]", bool]],
        names: Mapping[str, Any],
        *,
        call_limit: int | None,
        emit: EmitPiece,
    ) -> None:
        """Emit at most `call_limit` calls, of functions in `names`: anything else is left to the whole block's parser.

        `heads` are what stands before arguments, and whether these are JSON.
        """
        self._heads = heads
        self._names = names
        self._calls_left = call_limit
        self._emit = emit
        self._held = ""
        self._arguments: JsonArguments | None = None
        self._awaited = ""
        self._over = call_limit == 0
        self.begun = 0
        """Calls that have been emitted, the last one perhaps without all of its arguments."""

    def add_text(self, text: str) -> None:
        """Read more of the block."""
        if self._over:
            return
        text = self._held + text
        self._held = ""
        while text and not self._over:
            text = self._go_on(text, self._arguments) if self._arguments is not None else self._begin(text)

    def end_block(self, calls: Sequence[Call]) -> None:
        """Take what the complete block turned out to hold."""
        # A call of another name contradicts what was emitted: that stays without arguments, which is no call.
        if self._awaited and self.begun <= len(calls) and (call := calls[self.begun - 1]).name == self._awaited:
            self._emit(None, None, call.arguments)

    def _begin(self, text: str) -> str:
        start = text[:LONGEST_HEAD]
        for head, is_json in self._heads:
            if found := head.match(start):
                name = found["name"]
                self._over = not is_json or name not in self._names
                if name in self._names:
                    self.begun += 1
                    self._emit(name, found.groupdict().get("id"), "")
                    if is_json:
                        self._arguments = JsonArguments(lambda text: self._emit(None, None, text))
                    else:
                        self._awaited = name
                return text[found.end() :]
        self._over = len(text) >= LONGEST_HEAD
        self._held = text
        return ""

    def _go_on(self, text: str, arguments: JsonArguments) -> str:
        """Read on; return what follows the arguments."""
        rest = arguments.add_text(text)
        if rest is None:
            return ""
        self._arguments = None
        if self._calls_left is not None:
            self._calls_left -= 1
            self._over = self._calls_left == 0
        return rest


def block_readers(
    tools: Sequence[Mapping[str, Any]], parser: str, *, parallel: bool
) -> Callable[[EmitPiece], BlockReader] | None:
    """Return how blocks of a model with that parser are read while they are written; None: not before their end."""
    names = {tool["function"]["name"]: tool for tool in tools}
    form = FORMATS.get(parser)
    if form is None:
        return None
    heads = [(head, head is form.json_head) for head in (form.json_head, form.head) if head is not None]
    return lambda emit: BlockReader(heads, names, call_limit=None if parallel else 1, emit=emit)
