"""Arguments that a model writes within tags of their own, found while the block is written.

A value is bare text, so it may hold the very tag that ends it. A closing tag ends a value where another argument or
the end of the call follows, and the end of the block only where no later one would end it as well.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import regex

from worker.text.tool_calls.coercion import fit_value
from worker.text.tool_calls.formats import TagSyntax, ToolFormat, loose_pattern
from worker.text.tool_calls.schemas import types_of

WINDOW = 1000
"""Characters in which a closing tag stands with all that follows it."""
LONGEST_DOUBT = 1000
"""Characters behind the end of a block that may turn out to belong to it."""

_CDATA = regex.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", regex.DOTALL)
_CDATA_BEGUN = regex.compile(r"\s*<!\[CDATA\[")


class TagPatterns(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for: what may `follow` a head or a value, and the `border` of a value with that behind it.

    Their groups: `key` opens an argument (`type` is its type where the format says it), `name` another call, `end` ends
    the block, `nested` begins a block within a value.
    """

    follow: "regex.Pattern[str]"
    border: "regex.Pattern[str]"
    start: str
    end: str
    trims: tuple[bool, bool]
    """Whether a line break at the beginning and the end of a value is the format's."""
    cdata: bool


def tag_patterns(form: ToolFormat) -> TagPatterns | None:
    """Return what is looked for in a format; None where it has no tags."""
    tags = form.tags or form.syntax
    if not isinstance(tags, TagSyntax) or form.head is None:
        return None
    opening = tags.pattern or loose_pattern(tags.opening)
    head = form.head.pattern.replace(r"\s*", r"\s{0,40}")
    after, end, closing = loose_pattern(tags.after), loose_pattern(form.end), loose_pattern(tags.closing)
    start = regex.escape(form.start)
    ways = [f"(?:{opening})", rf"(?:{after}\s{{0,40}})?(?P<end>{end})"]
    if after:
        ways.append(rf"{after}\s{{0,40}}(?:{start})?{head}")
    follow = rf"\s{{0,40}}(?:{'|'.join(ways)})"
    nested = rf"(?P<nested>{start}\s{{0,40}}{regex.sub(r'[(][?]P<[a-z]+>', '(?:', head)})"
    return TagPatterns(
        follow=regex.compile(follow),
        border=regex.compile(f"{closing}{follow}|{nested}"),
        start=form.start,
        end=form.end,
        trims=(tags.opening.endswith("\n"), tags.closing.startswith("\n")),
        cdata=tags.cdata,
    )


class TagReader:
    """Reader of the calls of one block, behind the first one's name."""

    def __init__(
        self,
        patterns: TagPatterns,
        name: str,
        schemas: Mapping[str, Mapping[str, Any]],
        *,
        begin_call: Callable[[str], None],
        end_call: Callable[[dict[str, Any]], bool],
    ) -> None:
        """Tell of each further call when it begins, and of each call's arguments when it has ended.

        `end_call` returns whether further calls are wanted.
        """
        self.broken = False
        self._patterns = patterns
        self._schemas = schemas
        self._begin_call = begin_call
        self._end_call = end_call
        self._nesting = True
        self._window = ""
        self._fresh = True
        """Whether something may be found in the window that was not there before."""
        self._rest: str | None = None
        self._enter_call(name)

    def add_text(self, text: str) -> str | None:
        """Read more; return what follows the block, None while it goes on or once it is `broken`."""
        self._read.append(text)
        self._window += text
        self._fresh = self._fresh or ">" in text
        while self._rest is None and not self.broken and (self._read_value() if self._within else self._read_between()):
            self._fresh = True
        return self._rest

    def end_text(self, *, cut: bool) -> str | None:
        """Take note that nothing follows; return what follows the block, None where it is not complete.

        Half an end marker, or none, ends it unless it was `cut`.
        """
        end, added = self._patterns.end, ""
        if not cut:
            added = next(end[size:] for size in range(len(end), -1, -1) if self._window.endswith(end[:size]))
            self.add_text(added)
        if self._rest is None and self._within and self._ended is not None:
            self._end_block()
        if self._rest is not None:
            self._rest = self._rest.removesuffix(added)
        if self._rest is None and self._within and self._depth:
            # What began within a value was no block.
            self._nesting = False
            text, self._window = "".join(self._read), ""
            self._enter_call(self._name)
            self.add_text(text)
            return self.end_text(cut=cut) if self._rest is None else self._rest
        return self._rest

    def _enter_call(self, name: str) -> None:
        self._name = name
        self._arguments: dict[str, Any] = {}
        self._within = False
        self._depth = 0
        self._ended: str | None = None
        """The value that is being read, where the block seems to have ended behind it."""
        self._read = [self._window] if self._window else []
        """All since the call's name."""

    def _take_border(self, found: "regex.Match[str]") -> None:
        """Go on behind an argument's opening tag or another call's name."""
        groups = found.groupdict()
        if groups["key"] is not None:
            self._key = groups["key"].strip()
            self._type = groups.get("type")
            self._within = True
            self._value: list[str] = []
            self._depth = 0
            self._ended = None
            return
        if not self._end_call(self._arguments) or groups["end"] is not None:
            self._rest = self._window
        else:
            self._begin_call(groups["name"])
            self._enter_call(groups["name"])

    def _read_between(self) -> bool:
        """Read up to the next argument or the end; return whether there is more to read."""
        found = self._patterns.follow.match(self._window, partial=True)
        if found is None or (found.partial and len(self._window) > WINDOW):
            self.broken = True
            return False
        if found.partial:
            return False
        self._window = self._window[found.end() :]
        self._take_border(found)
        return True

    def _read_value(self) -> bool:
        """Read up to the value's end; return whether there is more to read."""
        doubt = LONGEST_DOUBT
        if self._ended is not None:
            behind = "".join(self._value[1:])
            if (behind + self._window).lstrip().startswith(self._patterns.start):
                return self._end_block()
            doubt -= len(behind)
        window = self._window
        found = self._patterns.border.search(window) if self._fresh else None
        self._fresh = False
        if self._ended is not None and (found.end() if found else len(window)) > doubt:
            return self._end_block()
        if found is None:
            if len(window) > 2 * WINDOW:
                self._value.append(window[:-WINDOW])
                self._window = window[-WINDOW:]
            return False
        before, self._window = window[: found.start()], window[found.end() :]
        groups = found.groupdict()
        if self._within_cdata(before):
            self._value.append(window[: found.end()])
        elif groups["nested"] is not None:
            if self._ended is not None:
                self._window = window
                return self._end_block()
            self._depth += self._nesting
            self._value.append(window[: found.end()])
        elif self._depth:
            self._depth -= groups["end"] is not None
            self._value.append(window[: found.end()])
        elif groups["end"] is not None:
            self._ended = "".join([*self._value, before])
            self._value = [self._ended + found[0]]
        else:
            self._end_value("".join([*self._value, before]))
            self._take_border(found)
        return True

    def _end_block(self) -> bool:
        """End the block where it last seemed to have ended."""
        self._rest = "".join(self._value[1:]) + self._window
        self._end_value(self._ended or "")
        self._end_call(self._arguments)
        return False

    def _within_cdata(self, before: str) -> bool:
        if not self._patterns.cdata:
            return False
        return _CDATA_BEGUN.match(
            self._value[0] if self._value else before
        ) is not None and not before.rstrip().endswith("]]>")

    def _end_value(self, text: str) -> None:
        self._within = False
        first, last = self._patterns.trims
        if first:
            text = text.removeprefix("\n")
        if last:
            text = text.removesuffix("\n")
        if self._patterns.cdata and (found := _CDATA.fullmatch(text)):
            text = found[1]
        schema = self._schemas.get(self._name) or {}
        properties = schema.get("properties") or {}
        types = types_of(properties[self._key], schema) if self._key in properties else frozenset()
        self._arguments[self._key] = fit_value(text, types, written_as=self._type)
