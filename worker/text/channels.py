"""Tokens of one choice in, channel-tagged text and tool calls out. Pure: no model, no socket, no clock.

What comes out is a function of the tokens alone, however often it is collected: a job that is resumed feeds the
tokens its client already has, throws the pieces away and goes on with exactly the text that is still missing.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from protocol.messages import ToolCall
from worker.text.markers import NORMAL, REASONING, TOOL, Markers
from worker.text.states import VISIBLE, Edge, TextState, compile_states
from worker.text.tool_calls.blocks import ToolBlocks
from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.streaming import BlockReader, EmitPiece

MALFORMED_LIMIT = 8
"""After so many blocks that are no calls, tool markers are plain text: it bounds the work of reading them again."""

_SPACE = " \t\r\n"


class Detokenizer(Protocol):
    """mlx-lm's streaming detokenizer: it holds back what is no whole character yet."""

    def add_token(self, token: int) -> object: ...  # noqa: D102
    def finalize(self) -> object: ...  # noqa: D102
    @property
    def last_segment(self) -> str: ...  # noqa: D102


class Sink(Protocol):
    """Where the text of a state goes."""

    def append(self, text: str, /) -> None: ...  # noqa: D102


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What became certain since the last piece. `finish` is set in the last one only."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = []
    finish: str | None = None


class ChannelText:
    """One choice.

    Markers and stop strings are found in the text, across token borders; what completes first counts. Text that
    may still become one is held back, and only as long as it may.

    - A stop string ends content (`stopped`): what precedes it is emitted, nothing behind it. It is not looked for
      inside reasoning, tool blocks and headers, nor across a marker, nor in the white space that is dropped.
    - White space at the start of reasoning, behind it and behind a tool call is dropped: templates put it there.
    - A tool block that is no call is text, markers included, of the state it was opened in, and is read again as
      such: thoughts that mention `<tool_call>` stay thoughts, and a good call behind a bad start is found.
    """

    stopped: str | None
    """`stop` once a stop string matched, `tool_calls` once the only call that was asked for is there."""
    reasoning_tokens: int
    """Tokens fed while reasoning, those that completed its markers included."""

    def __init__(
        self,
        *,
        detokenizer: Detokenizer,
        markers: Markers,
        initial: str,
        stop: Sequence[str],
        parse_calls: Callable[[str], list[Call]] | None,
        make_reader: Callable[[EmitPiece], BlockReader] | None = None,
        call_ids: Callable[[int], str],
        parallel_calls: bool,
    ) -> None:
        """Start in state `initial`.

        Args:
            detokenizer: fresh, and this choice's own.
            markers: of the model; `Markers()` for plain text.
            initial: see `markers.initial_state`.
            stop: stop strings; empty ones are ignored.
            parse_calls: raises `ValueError` for what is no call. None: no calls were asked for, tool blocks are text.
            make_reader: makes what reads a block while it is written, in formats that can be read so.
            call_ids: the id of call number i, where the model gives none; must give the same id again on a replay.
            parallel_calls: False ends the answer behind its first call.

        """
        self.stopped = None
        self.reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._add_token = detokenizer.add_token
        self._markers = markers
        self._stop = stop
        self._parallel_calls = parallel_calls
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._block = ToolBlocks(
            parse=parse_calls,
            make_reader=make_reader,
            ids=call_ids,
            parallel=parallel_calls,
            ends=[text for text, _ in markers.transitions.get(TOOL, ())],
        )
        self._malformed_count = 0
        self._held = ""
        self._opened_by = ("", NORMAL)
        self._after_block = next((target for _, target in markers.transitions.get(TOOL, ())), NORMAL)
        self._tools = parse_calls is not None
        self._states = compile_states(markers, stop=stop, tools=self._tools, initial=initial)
        self._enter(initial)
        self._trim = initial == REASONING

    def feed_token(self, token: int) -> None:
        """Add one generated token (not the end of sequence, which has no text). Ignored once `stopped`."""
        if self.stopped is not None:
            return
        self._add_token(token)
        segment = self._detokenizer.last_segment
        thinking = self._thinking
        if segment:
            if self._held or self._trim or self._may_begin(segment) is not None:
                self._scan(segment)
                thinking = thinking or self._thinking
            else:
                self._sink.append(segment)
        if thinking:
            self.reasoning_tokens += 1

    def take_pieces(self) -> Piece | None:
        """Take what became certain since the last call; None where nothing did."""
        text, reasoning = self._text, self._reasoning
        if not (text or reasoning or self._block.waiting):
            return None
        piece = Piece(text="".join(text), reasoning="".join(reasoning), calls=self._block.take_calls())
        if text:
            text.clear()
        if reasoning:
            reasoning.clear()
        return piece

    def finish_text(self, reason: str) -> Piece:
        """Return the last piece, with everything that was held back.

        `reason` is `stop` (end of sequence, or `stopped`) or `length`. A block without its end marker is a call if
        it parses, but not after `length`: lenient parsers read a call that was cut off as one with fewer arguments.
        """
        if self.stopped is None:
            self._detokenizer.finalize()
            self._scan(self._detokenizer.last_segment)
            self._flush(cut=reason == "length")
        reason = self.stopped or reason
        if self._block.count and reason == "stop" and not self._block.unfinished:
            reason = "tool_calls"
        return Piece(
            text="".join(self._text), reasoning="".join(self._reasoning), calls=self._block.take_calls(), finish=reason
        )

    def start_stops(self, stop: Sequence[str]) -> None:
        """Look for stop strings from here on."""
        self._stop = stop
        tools = self._tools and self._malformed_count < MALFORMED_LIMIT
        self._states = compile_states(self._markers, stop=stop, tools=tools, initial=self._state.name)
        trim = self._trim
        self._enter(self._state.name)
        self._trim = trim

    # -- states

    def _enter(self, name: str) -> None:
        state = self._states[name]
        self._state: TextState = state
        # The inside of a block has a syntax, by which its end is found.
        self._may_begin = _always if name == TOOL else state.may_begin
        self._thinking = name == REASONING
        # Hidden text collects in a list that nobody reads.
        sinks: dict[str, Sink] = {NORMAL: self._text, REASONING: self._reasoning}
        self._sink = sinks.get(name, [])
        self._trim = False

    def _scan(self, segment: str) -> None:
        """Sort a segment, and what was held back before it, into the channels."""
        text = self._held + segment
        self._held = ""
        while self.stopped is None:
            if self._state.name == TOOL:
                self._block.append(text)
                if self._block.outcome is None:
                    return
                text = self._leave_block()
                continue
            if self._trim:
                text = text.lstrip(_SPACE)
            match = self._state.first_match(text)
            if match is None:
                certain = self._state.certain_length(text)
                self._held = text[certain:]
                self._emit(text[:certain])
                return
            start, edge = match
            self._emit(text[:start])
            text = self._follow(edge, text[start + len(edge.text) :])

    def _emit(self, text: str) -> None:
        if text:
            self._sink.append(text)
            self._trim = False

    def _follow(self, edge: Edge, rest: str) -> str:
        """Go where a matched edge leads; return the text to read on."""
        target = edge.target
        if target is None:
            self.stopped = "stop"
            return ""
        origin = self._state.name
        if target == TOOL:
            self._opened_by = (edge.text, origin)
            if self._markers.kept_start:
                rest = edge.text + rest
        trim = self._trim or REASONING in (origin, target)
        self._enter(target)
        self._trim = trim and target in VISIBLE
        return rest

    def _flush(self, *, cut: bool) -> None:
        while self._state.name == TOOL and self.stopped is None:
            self._scan(self._leave_block(cut=cut))
        if self.stopped is None:
            self._emit(self._held)

    # -- calls

    def _leave_block(self, *, cut: bool = False) -> str:
        """End a tool block; return the text to read on."""
        block = self._block
        text = block.text
        if not block.end_block(cut=cut):
            return self._reopen(text)
        if not block.whole and not cut:
            # What was sent of a call can't be taken back, and can't be finished.
            self.stopped = "stop"
        elif block.whole and not self._parallel_calls:
            self.stopped = "tool_calls"
        self._enter(self._after_block)
        self._trim = True
        return block.rest

    def _reopen(self, rest: str) -> str:
        """Go back to where a block that is no call began; return the text to read again."""
        marker, origin = self._opened_by
        self._malformed_count += not self._block.refused_early
        if self._malformed_count == MALFORMED_LIMIT:
            self._states = compile_states(self._markers, stop=self._stop, tools=False, initial=origin)
        self._enter(origin if origin in VISIBLE else NORMAL)
        self._emit(marker)
        return rest.removeprefix(marker) if self._markers.kept_start else rest


def _always(_: str) -> bool:
    return True
