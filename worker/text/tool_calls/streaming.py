"""A tool block while it is being written: where its calls begin and end, by the syntax of its format.

Pure. What comes out depends on the text alone, not on how it was cut. A marker within a string is a part of it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import msgspec
import regex

from worker.text.tool_calls.calls import as_json, calls_in
from worker.text.tool_calls.coercion import fit_arguments
from worker.text.tool_calls.formats import FORMATS, LONGEST_HEAD, LiteralSyntax, ToolFormat
from worker.text.tool_calls.objects import JSON, Dialect, ObjectReader
from worker.text.tool_calls.tags import TagPatterns, TagReader, tag_patterns

EmitPiece = Callable[[str | None, str | None, str], None]
"""Takes `(name, id, text)` where a call begins, and `(None, None, text)` where it goes on."""


class Outcome(Enum):
    """What a block turned out to be.

    `BROKEN`: a call that was begun has no end. `CUT`: nothing has been begun, nor is it text. `UNKNOWN`: this reader
    does not know.
    """

    CALLS = auto()
    NO_CALL = auto()
    BROKEN = auto()
    CUT = auto()
    UNKNOWN = auto()


class BlockPatterns(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for in blocks of a format.

    `heads` stand before arguments, with whether these are JSON; `body` before a block that is JSON as a whole.
    `brackets` are the last of a call, and what parts it from the next; `end` and `next_heads` have them in front.
    """

    heads: Sequence[tuple["regex.Pattern[str]", bool]]
    body: "regex.Pattern[str]"
    brackets: "regex.Pattern[str]"
    end: "regex.Pattern[str]"
    next_heads: Sequence[tuple["regex.Pattern[str]", bool]]
    dialect: Dialect | None
    tags: TagPatterns | None


def block_patterns(form: ToolFormat) -> BlockPatterns:
    """Return what is looked for in blocks of a format."""
    heads = [(head.pattern, head is form.json_head) for head in (form.json_head, form.head) if head is not None]
    after = "" if isinstance(form.syntax, LiteralSyntax) else form.syntax.after
    dialect = None
    if isinstance(literal := form.syntax, LiteralSyntax):
        dialect = Dialect(quote=literal.quote, assign=literal.assign, python=not literal.quote, bare=True)
    names = [regex.escape(name) for name in regex.findall(r"<[^<>]*>|(?<=>)\w+(?=<)|```", after)]
    behind = rf"(?:[\s}}\]),;]|{'|'.join(names)})*" if names else r"[\s}\]),;]*"
    start = f"(?:{regex.escape(form.start)})?" if not form.begins else ""
    return BlockPatterns(
        heads=[(regex.compile(head), is_json) for head, is_json in heads],
        body=regex.compile(_LLAMA_BODY if form.begins else r"\s*(?=[\[{])"),
        brackets=regex.compile(behind),
        # Without an end marker, nothing matches it.
        end=regex.compile(behind + regex.escape(form.end) if form.end else r"(?!)"),
        next_heads=[(regex.compile(f"{behind}{start}{head}"), is_json) for head, is_json in heads],
        dialect=dialect,
        tags=tag_patterns(form),
    )


_LLAMA_BODY = r'\s*(?=\{\s*"(?:type"\s*:\s*"function"|function"\s*:\s*\{))'


class BlockReader:
    """Reader of one block.

    Arguments that are JSON, or as good as it, are emitted as they come. Of a call with arguments in tags the name is
    emitted, and the arguments when it has ended.
    """

    def __init__(
        self,
        form: ToolFormat,
        patterns: BlockPatterns,
        schemas: Mapping[str, Mapping[str, Any]],
        *,
        call_limit: int | None,
        emit: EmitPiece,
    ) -> None:
        """Emit at most `call_limit` calls. Those of functions in `schemas` are emitted while they are written."""
        self.outcome: Outcome | None = None
        """None while the block goes on."""
        self.refused_early = False
        """Whether it was seen at once that there is no call."""
        self._form = form
        self._patterns = patterns
        self._schemas = schemas
        self._calls_left = call_limit
        self._emit = emit
        self._read: Callable[[str], str | None] = self._read_head
        self._held = ""
        self._object: ObjectReader | None = None
        self._tags: TagReader | None = None
        self._parts: list[str] | None = None
        """Arguments, or a whole block, of which nothing is emitted before their end."""
        self.unfinished = False
        """Whether a call has been emitted, and not all of it."""
        self._called = False
        self._name: tuple[str, str | None] = ("", None)

    def add_text(self, text: str) -> str | None:
        """Read more of the block; return what follows it, None while it goes on."""
        if self.outcome is not None:
            return text
        text = self._held + text
        self._held = ""
        while text and self.outcome is None:
            rest = self._read(text)
            if rest is None:
                return None
            text = rest
        return None if self.outcome is None else text

    def end_text(self, *, cut: bool) -> str:
        """Take note that nothing follows, as the answer ended or was `cut`; return what is no part of the block."""
        held, rest = self._held, ""
        if self.outcome is not None:
            return ""
        if self._read == self._read_head:
            self._refuse(early=True)
            if cut and self._resembles_call(held):
                self.outcome = Outcome.CUT
        elif self._read == self._read_tail:
            self.outcome = Outcome.CALLS
            heads = any(head.match(held, partial=True) for head, _ in self._patterns.next_heads)
            if not (self._patterns.end.match(held, partial=True) or (cut and heads)):
                rest = self._after_brackets(held)
        elif self._tags is not None:
            found = self._tags.end_text(cut=cut)
            if found is None:
                self._break("", cut=cut)
            else:
                rest = found
                self.outcome = self.outcome or Outcome.CALLS
        elif not cut and self._object is not None and self._object.close():
            self._end_object()
            self.outcome = self.outcome or Outcome.CALLS
        else:
            self._break("", cut=cut)
        return rest

    # -- the parts of a block, each returning what follows it, None where all has been read or held

    def _read_head(self, text: str) -> str | None:
        start = text[:LONGEST_HEAD]
        for head, is_json in self._patterns.heads:
            if (found := head.match(start)) is not None:
                return self._begin_call(found, text, is_json=is_json)
        if len(text) < LONGEST_HEAD and any(head.match(text, partial=True) for head, _ in self._patterns.heads):
            self._held = text
            return None
        if found := self._patterns.body.match(start):
            self._parts = []
            self._object = ObjectReader(self._parts.append, end=self._form.end)
            self._read = self._read_object
            self._name = ("", None)
            return text[found.end() :]
        if len(text) < LONGEST_HEAD and self._patterns.body.match(text, partial=True):
            self._held = text
            return None
        self._refuse(early=True)
        return text

    def _begin_call(self, found: "regex.Match[str]", text: str, *, is_json: bool) -> str | None:
        name, own_id = found["name"], found.groupdict().get("id")
        if self._form.begins and name not in self._schemas:
            # An answer may look so.
            self._refuse(early=True)
            return text
        self._announce(name, own_id)
        if is_json or self._patterns.dialect is not None:
            dialect = JSON if is_json else self._patterns.dialect or JSON
            if not is_json and self._form.untyped:
                self._parts = []
            self._object = ObjectReader(self._put, dialect, end=self._form.end)
            self._read = self._read_object
        elif self._patterns.tags is not None:
            self._tags = TagReader(
                self._patterns.tags, name, self._schemas, begin_call=self._announce, end_call=self._end_tagged
            )
            self._read = self._read_tags
        return text[found.end() :]

    def _announce(self, name: str, own_id: str | None = None) -> None:
        """Begin a call, for all to see if it is one of those that were offered."""
        self._name = (name, own_id)
        self.unfinished = name in self._schemas and self._calls_left != 0
        self._parts = None if self.unfinished else []
        if self.unfinished:
            self._emit(name, own_id, "")

    def _put(self, text: str) -> None:
        if self._parts is None:
            self._emit(None, None, text)
        else:
            self._parts.append(text)

    def _read_object(self, text: str) -> str | None:
        reader = self._object
        rest = reader.add_text(text) if reader is not None else text
        if rest is None or reader is None:
            return rest
        if not reader.complete:
            # Brackets may be missing at the end of the block.
            found = self._patterns.end.match(rest[:LONGEST_HEAD], partial=True)
            if found is not None and found.partial and len(rest) < LONGEST_HEAD:
                self._held = rest
                return None
            if found is None or found.partial or not reader.close():
                return self._break(rest)
        self._end_object()
        return rest

    def _read_tags(self, text: str) -> str | None:
        tags = self._tags
        rest = tags.add_text(text) if tags is not None else text
        if tags is not None and tags.broken:
            return self._break(text)
        if rest is not None:
            self.outcome = self.outcome or Outcome.CALLS
        return rest

    def _read_tail(self, text: str) -> str | None:
        start = text[:LONGEST_HEAD]
        if found := self._patterns.end.match(start):
            self.outcome = Outcome.CALLS
            return text[found.end() :]
        for head, is_json in self._patterns.next_heads:
            if found := head.match(start):
                return self._begin_call(found, text, is_json=is_json)
        patterns = [self._patterns.end, *(head for head, _ in self._patterns.next_heads)]
        if len(text) < LONGEST_HEAD and any(pattern.match(text, partial=True) for pattern in patterns):
            self._held = text
            return None
        return self._skip_junk(text)

    def _skip_junk(self, text: str) -> str | None:
        """Read on behind words between a call and the end marker, if this is near."""
        form = self._form
        places = [(text.find(mark, 0, LONGEST_HEAD), mark) for mark in (form.end, form.start) if form.end]
        places = [place for place in places if place[0] >= 0]
        if not places and form.end and len(text) < LONGEST_HEAD:
            self._held = text
            return None
        self.outcome = Outcome.CALLS
        if not places:
            return self._after_brackets(text)
        at, mark = min(places)
        return text[at + len(mark) if mark == form.end else at :]

    def _after_brackets(self, text: str) -> str:
        found = self._patterns.brackets.match(text)
        return text[found.end() :] if found else text

    # -- ends

    def _end_object(self) -> None:
        written = "".join(self._parts or ())
        self._object = None
        if not self._name[0]:
            self._emit_body(written)
            return
        if self._parts is not None and self._form.untyped and self._patterns.dialect is not None:
            self._end_tagged(fit_arguments(json.loads(written), self._schemas.get(self._name[0]) or {}))
        else:
            self._end_call(written)

    def _emit_body(self, written: str) -> None:
        """Emit the calls of a block that is JSON as a whole."""
        try:
            calls = calls_in(json.loads(written), self._schemas, offered_only=bool(self._form.begins))
        except ValueError:
            self._refuse(early=False)
            return
        for call in calls[: self._calls_left]:
            self._emit(call.name, call.id, call.arguments)
            self._count_call()
        self._read = self._read_tail

    def _end_tagged(self, arguments: dict[str, Any]) -> bool:
        self._end_call(as_json(arguments))
        return self._calls_left != 0

    def _end_call(self, arguments: str) -> None:
        """Emit what is left of a call that is complete."""
        if self.unfinished:
            if arguments:
                self._emit(None, None, arguments)
        elif self._calls_left != 0:
            self._emit(*self._name, arguments)
        self.unfinished = False
        self._count_call()
        if self._tags is None:
            self._read = self._read_tail

    def _count_call(self) -> None:
        self._called = True
        if self._calls_left is not None:
            self._calls_left -= 1
            if self._calls_left == 0:
                self.outcome = Outcome.CALLS

    def _break(self, rest: str, *, cut: bool = False) -> str:
        """End the block at what can't belong to a call."""
        if self.unfinished:
            self.outcome = Outcome.BROKEN
        elif self._called:
            self.outcome = Outcome.CALLS
        elif cut:
            self.outcome = Outcome.CUT
        else:
            self._refuse(early=False)
        return rest

    def _refuse(self, *, early: bool) -> None:
        if self._called:
            self.outcome = Outcome.CALLS
        else:
            self.outcome = Outcome.UNKNOWN if self._form.loose else Outcome.NO_CALL
            self.refused_early = early

    def _resembles_call(self, text: str) -> bool:
        return not self._form.begins or any(f'"{name}"' in text for name in self._schemas)


def block_readers(
    tools: Sequence[Mapping[str, Any]], parser: str, *, parallel: bool
) -> Callable[[EmitPiece], BlockReader] | None:
    """Return how blocks of a model with that parser are read; None: nothing is known of them but their markers."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    form = FORMATS.get(parser)
    if form is None:
        return None
    patterns = block_patterns(form)
    return lambda emit: BlockReader(form, patterns, schemas, call_limit=None if parallel else 1, emit=emit)
