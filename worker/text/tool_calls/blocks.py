"""The tool calls of one choice: the text of tool blocks in, calls and pieces of calls out. Pure; finds no markers."""

from collections.abc import Callable

from protocol.messages import ToolCall
from protocol.parts import joined_calls
from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.streaming import BlockReader, EmitPiece


class ToolBlocks:
    """One block after the other. What was emitted of a call stays, whatever its block turns out to be."""

    def __init__(
        self,
        *,
        parse: Callable[[str], list[Call]] | None,
        make_reader: Callable[[EmitPiece], BlockReader] | None,
        ids: Callable[[int], str],
        parallel: bool,
    ) -> None:
        """Take what `ChannelText` takes."""
        self._parse = parse
        self._make_reader = make_reader
        self._ids = ids
        self._parallel = parallel
        self._text: list[str] = []
        self._pieces: list[ToolCall] = []
        self._reader: BlockReader | None = None
        self.count = 0
        """Calls so far."""
        self.whole = False
        """Whether the last block has been understood to its end."""

    @property
    def text(self) -> str:
        """The inside of the block so far."""
        return "".join(self._text)

    @property
    def waiting(self) -> bool:
        """Whether `take_calls` has something to give."""
        return bool(self._pieces)

    def append(self, text: str) -> None:
        """Add text to the block."""
        if self._reader is None and self._make_reader is not None and not self._text:
            self._reader = self._make_reader(self._emit)
        self._text.append(text)
        if self._reader is not None:
            self._reader.add_text(text)

    def take_calls(self) -> list[ToolCall]:
        """Take what has become certain since the last time."""
        pieces, self._pieces = self._pieces, []
        return joined_calls(pieces) if len(pieces) > 1 else pieces

    def end_block(self, *, cut: bool = False) -> bool:
        """End the block, which is complete, or was `cut` off before its end marker. False: it is no call, but text."""
        text, reader = self.text, self._reader
        self._text.clear()
        self._reader = None
        begun = reader.begun if reader is not None else 0
        calls: list[Call] = []
        if self._parse is not None and not cut:
            try:
                calls = self._parse(text)
            except ValueError:
                calls = []
        self.whole = bool(calls)
        if reader is not None:
            reader.end_block(calls)
        for call in calls[begun : None if self._parallel else 1]:
            self._emit(call.name, call.id, call.arguments)
        return bool(calls or begun)

    def _emit(self, name: str | None, own_id: str | None, arguments: str) -> None:
        if name is None:
            self._pieces.append(ToolCall(self.count - 1, "", "", arguments))
            return
        index = self.count
        self.count += 1
        self._pieces.append(ToolCall(index, own_id or self._ids(index), name, arguments))
