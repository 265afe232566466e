"""The tool calls of one choice: the text of tool blocks in, calls and pieces of calls out. Pure."""

import contextlib
from collections.abc import Callable, Sequence

from protocol.messages import ToolCall
from protocol.parts import joined_calls
from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.streaming import BlockReader, EmitPiece, Outcome


class ToolBlocks:
    """One block after the other. What was emitted of a call stays, whatever its block turns out to be."""

    def __init__(
        self,
        *,
        parse: Callable[[str], list[Call]] | None,
        make_reader: Callable[[EmitPiece], BlockReader] | None,
        ids: Callable[[int], str],
        parallel: bool,
        ends: Sequence[str] = (),
    ) -> None:
        """Take what `ChannelText` takes. `ends` are the markers that end a block of which no more is known."""
        self._parse = parse
        self._make_reader = make_reader
        self._ids = ids
        self._parallel = parallel
        self._ends = [end for end in ends if end]
        self._text: list[str] = []
        self._pieces: list[ToolCall] = []
        self._reader: BlockReader | None = None
        self._tail = ""
        self.outcome: Outcome | None = None
        """What the block is; None while it goes on."""
        self.rest = ""
        """What follows the last block, of all that was added."""
        self.count = 0
        """Calls so far."""
        self.unfinished = False
        """Whether a call has no end."""
        self.whole = False
        """Whether the last block has been understood to its end."""
        self.refused_early = False
        """Whether the last block was seen at once to be no call."""

    @property
    def text(self) -> str:
        """All that has been added of the block, and behind it."""
        return "".join(self._text)

    @property
    def waiting(self) -> bool:
        """Whether `take_calls` has something to give."""
        return bool(self._pieces)

    def append(self, text: str) -> None:
        """Add text to the block."""
        if not self._text:
            self._reader = self._make_reader(self._emit) if self._make_reader is not None else None
            self._tail = ""
        self._text.append(text)
        if self.outcome is not None:
            self.rest += text
        elif self._reader is None:
            self._find_end(text)
        elif (rest := self._reader.add_text(text)) is not None:
            self._take_outcome(self._reader, rest)

    def take_calls(self) -> list[ToolCall]:
        """Take what has become certain since the last time."""
        pieces, self._pieces = self._pieces, []
        return joined_calls(pieces) if len(pieces) > 1 else pieces

    def end_block(self, *, cut: bool = False) -> bool:
        """End the block: nothing follows that belongs to it, or it was `cut` off. False: it is no call, but text."""
        if self.outcome is None and self._reader is not None:
            rest = self._reader.end_text(cut=cut)
            self._take_outcome(self._reader, rest)
        if self.outcome is None:
            self._parse_block(self._inside() if not cut or not self._ends else None)
        outcome, self.outcome = self.outcome, None
        self.refused_early = self._reader is not None and self._reader.refused_early
        self.whole = outcome is Outcome.CALLS
        self._text.clear()
        self._reader = None
        return outcome is not Outcome.NO_CALL

    def _take_outcome(self, reader: BlockReader, rest: str) -> None:
        self.outcome, self.rest = reader.outcome, rest
        if self.outcome is Outcome.UNKNOWN:
            self.outcome, self.rest = None, ""
            self._reader = None
            self._tail = ""
            self._find_end(self.text)
        elif reader.unfinished:
            self.unfinished = True

    def _find_end(self, text: str) -> None:
        """Look for an end marker in a block of which no more is known."""
        window = self._tail + text
        found = [(at + len(end), end) for end in self._ends if (at := window.find(end)) >= 0]
        if not found:
            self._tail = window[-max(map(len, self._ends), default=0) :]
            return
        at, end = min(found)
        whole = self.text
        at += len(whole) - len(window)
        self.rest = whole[at:]
        self._parse_block(whole[: at - len(end)])

    def _inside(self) -> str:
        """Return the text of a block without an end marker; half a marker is no part of it."""
        text = self.text
        halves = (end[:size] for end in self._ends for size in range(len(end) - 1, 0, -1))
        return text.removesuffix(next((half for half in halves if text.endswith(half)), ""))

    def _parse_block(self, text: str | None) -> None:
        calls: list[Call] = []
        if self._parse is not None and text is not None:
            with contextlib.suppress(ValueError):
                calls = self._parse(text)
        self.outcome = Outcome.CALLS if calls else Outcome.NO_CALL
        for call in calls[: None if self._parallel else 1]:
            self._emit(call.name, call.id, call.arguments)

    def _emit(self, name: str | None, own_id: str | None, arguments: str) -> None:
        if name is None:
            self._pieces.append(ToolCall(self.count - 1, "", "", arguments))
            return
        index = self.count
        self.count += 1
        self._pieces.append(ToolCall(index, own_id or self._ids(index), name, arguments))
