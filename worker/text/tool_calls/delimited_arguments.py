"""Arguments between marks while they are written, told as the JSON that the whole call will give.

What is text by the tool's schema is told piece by piece, any other value at its end, as the format's own parser reads
it. What is not understood waits for the end of the block. A call that goes on in a way that contradicts what has been
told is left unfinished: nobody takes that for a call, and nothing is taken back.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from worker.text.states import TextState
from worker.text.tool_calls import holdback as certainty
from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.delimiters import CLOSE, ESCAPE, ESCAPES, OTHER, TEXT, Delimiters, Slot
from worker.text.tool_calls.schemas import types_of

LONGEST_OPENING = 400
"""What is longer is none, so that what is not understood is not searched over and over."""
LONGEST_DOUBT = 64
"""Where so many characters leave a doubt, the value waits for its end, so that they are not looked at over and over."""

Parse = Callable[[str], list[Call]]


class PartialJson:
    """A JSON object as far as it has been told; the end of a text only with what follows it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` gets each piece."""
        self._tell = tell
        self._pieces: list[str] = []
        self._quote = ""

    def begin(self, key: str) -> None:
        """A text by the name of `key`."""
        self._say(f'{self._next}{_quoted(key)}: "')
        self._quote = '"'

    def text(self, text: str) -> None:
        """More of it."""
        self._say(_quoted(text)[1:-1])

    def members(self, members: str) -> None:
        """Members by themselves, as they stand between the braces of an object."""
        if members:
            self._say(self._next + members)
            self._quote = ""

    def end(self) -> None:
        """No more members come."""
        self._say(self._quote + ("}" if self._pieces else "{}"))

    def complete(self, arguments: str, *, within: bool) -> None:
        """Tell what is missing of `arguments`, unless it contradicts what was told `within` a value.

        A member that comes twice is told twice: who reads JSON takes the last.
        """
        told = "".join(self._pieces)
        if arguments.startswith(told):
            self._say(arguments[len(told) :])
            return
        if within:
            return
        known, final = json.loads(f"{told}{self._quote}}}"), json.loads(arguments)
        if known.keys() <= final.keys():
            news = {key: final[key] for key in final if key not in known or _quoted(final[key]) != _quoted(known[key])}
            self.members(_quoted(news)[1:-1])
            self.end()

    @property
    def _next(self) -> str:
        return self._quote + (", " if self._pieces else "{")

    def _say(self, text: str) -> None:
        self._pieces.append(text)
        self._tell(text)


class MarkedArguments:
    """Those of one call."""

    def __init__(
        self, marks: Delimiters, name: str, schema: Mapping[str, Any], parse: Parse, tell: Callable[[str], None]
    ) -> None:
        """`parse` reads whole blocks and raises `ValueError`; `tell` gets what is certain."""
        self._marks = marks
        self._before, self._after = marks.alone[0].replace("{}", name), marks.alone[1]
        self._schema = schema
        self._parse = parse
        self._told = PartialJson(tell)
        self._held = ""
        self._lost = False
        self._slot: Slot | None = None
        self._key = self._opening = ""
        self._doubts: tuple[certainty.Doubt, ...] | None = ()
        self._begun = False
        self._kept: list[str] = []

    def add_text(self, text: str) -> str | None:
        """More of the block. Returns what follows the call, None while it goes on."""
        text = self._held + text
        self._held = ""
        while text and not self._lost:
            slot = self._slot
            if slot is not None and slot.state is not None:
                text = self._go_on(text, slot, slot.state)
                continue
            if self._marks.end is not None and (found := self._marks.end.match(text)):
                self._told.end()
                return text[found.end() :]
            text = self._open(text)
        return None

    def complete(self, arguments: str) -> None:
        """The block has ended, and is a call with these arguments."""
        self._told.complete(arguments, within=self._slot is not None and self._begun)

    # -- between values

    def _open(self, text: str) -> str:
        head = text[:LONGEST_OPENING]
        for slot in self._marks.slots:
            if found := slot.opening.match(head):
                groups = found.groupdict()
                self._begin(slot, groups["key"], groups.get("member", found[0]))
                return text[found.end() :]
        self._lost = len(text) >= LONGEST_OPENING
        self._held = text
        return ""

    def _begin(self, slot: Slot, key: str, opening: str) -> None:
        if slot.state is None:
            self._tell_alone(opening)
            return
        self._slot, self._key, self._opening = slot, key, opening
        self._doubts = self._doubts_of(slot, key)
        self._begun = False

    def _doubts_of(self, slot: Slot, key: str) -> tuple[certainty.Doubt, ...] | None:
        """Where what the value begins with may make it something other than text; None: it may be that anyhow."""
        own = () if slot.doubt is None else (slot.doubt,)
        properties = self._schema.get("properties") or {}
        if slot.kind == TEXT:
            return own
        if slot.kind == OTHER or key not in properties:
            return None
        types = types_of(properties[key], self._schema)
        if types == {"string"}:
            return own
        return (*own, certainty.literal) if not types or "string" in types else None

    # -- within a value

    def _go_on(self, text: str, slot: Slot, state: TextState) -> str:
        """Take what belongs to the value; returns what follows it."""
        found = state.first_match(text)
        if found is None:
            certain = state.certain_length(text)
            self._held = text[certain:]
            self._take(text[:certain], slot)
            return ""
        start, edge = found
        self._take(text[:start], slot)
        rest = text[start + len(edge.text) :]
        if edge.target == CLOSE:
            self._close(slot)
        elif edge.target != ESCAPE or (rest and rest[0] not in ESCAPES):
            self._lost = True
        elif not rest:
            self._held = edge.text
        else:
            self._take(ESCAPES[rest[0]], slot)
            return rest[1:]
        return rest

    def _take(self, text: str, slot: Slot) -> None:
        if self._doubts is None:
            self._kept.append(text)
            return
        text = "".join(self._kept) + text
        start, end = slot.cut(text, self._begun)
        body = text[start:end]
        if body and not self._begun:
            if not any(doubt(body[:LONGEST_DOUBT]) for doubt in self._doubts):
                self._told.begin(self._key)
                self._begun = True
            elif len(body) >= LONGEST_DOUBT:
                self._doubts = None
        if body and self._begun:
            self._told.text(body)
            text = text[end:]
        self._kept = [text]

    def _close(self, slot: Slot) -> None:
        kept = "".join(self._kept)
        self._kept = []
        if not self._begun:
            self._slot = None
            self._tell_alone(self._opening + kept + slot.closing)
        elif slot.ended is not None and not slot.ended.fullmatch(kept):
            self._lost = True
        else:
            self._slot = None

    def _tell_alone(self, member: str) -> None:
        try:
            [call] = self._parse(self._before + member + self._after)
        except ValueError:
            self._lost = True
        else:
            self._told.members(call.arguments[1:-1])


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
