"""Harmony, the output format of gpt-oss: an answer is messages, each behind a header that says what it is. Pure.

`<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`. Thoughts are messages
of the channel `analysis`; messages with a recipient are calls; all others are content. What gives an answer this
structure are control tokens, so they are found as tokens: the same names out of ordinary tokens are text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from worker.text.channels import ChannelText, Detokenizer, Piece
from worker.text.markers import NORMAL, REASONING, TOOL, Markers
from worker.text.states import compile_states
from worker.text.tool_calls import harmony
from worker.text.tool_calls.blocks import ToolBlocks
from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.streaming import BlockReader, EmitPiece

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", harmony.MESSAGE, "<|channel|>"
CONSTRAIN, RETURN, CALL = "<|constrain|>", "<|return|>", "<|call|>"
CONTROL = (START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL)
ENDS = (END, RETURN, CALL)
"""What ends a message; `<|return|>` and `<|call|>` end the answer, too, where the model's settings say so."""
ASSISTANT = "assistant"
THOUGHTS = "analysis"
NO_FUNCTIONS = frozenset({ASSISTANT, "user", "all", "self"})
"""Recipients that are nobody's function."""
BETWEEN = "\n\n"
"""Between the texts of two messages that a client sees as one."""
LONGEST_HEADER = 400
"""What is longer is none."""
HEADER = "header"

_SPEAKER = "|".join(ASSISTANT[:count] for count in range(len(ASSISTANT), 0, -1))
_HEADER_BEGUN = re.compile(rf"\s*(?:{_SPEAKER})?\s*(?:to=\S*\s*|to?)?")
"""What an answer may begin with, before the first control token, where it begins with a header."""
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_WORD = re.compile(r"\s*(?!to=)([^\s<]+)")
_STRING_BORDER = re.compile(r'\\(?:.|\Z)|"', re.DOTALL)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of a message says: who speaks in which channel, and to whom."""

    role: str = ""
    channel: str = ""
    recipient: str = ""

    @property
    def state(self) -> str:
        """The state that the message's text belongs to, unless it is a call."""
        return REASONING if self.channel.startswith(THOUGHTS) else NORMAL

    @property
    def is_call(self) -> bool:
        """Whether the message is for a function."""
        return bool(self.recipient) and self.recipient not in NO_FUNCTIONS


def read_header(text: str) -> Header:
    """Read what stands before `<|message|>`, control tokens by name; recipients stand in the one part or the other."""
    speaker, _, channel = text.rpartition(CHANNEL) if CHANNEL in text else (text, "", "")
    recipient = _RECIPIENT.search(channel) or _RECIPIENT.search(speaker)
    role, name = _WORD.match(speaker), _WORD.match(channel)
    return Header(
        role=role[1] if role else "", channel=name[1] if name else "", recipient=recipient[1] if recipient else ""
    )


def harmony_markers(vocabulary: Mapping[str, int]) -> Markers | None:
    """Return the markers of a model whose tokens are Harmony's; None for any other."""
    if not all(name in vocabulary for name in CONTROL):
        return None
    return Markers(
        controls={vocabulary[name]: name for name in CONTROL},
        think_start=f"{CHANNEL}{THOUGHTS}{MESSAGE}",
        think_end=END,
        tool_start=harmony.tool_call_start,
        tool_end=harmony.tool_call_end,
    )


def open_message(controls: Mapping[int, str], prompt: Sequence[int]) -> list[int]:
    """Return the tokens of the message that a prompt leaves open, from its role on; empty where it leaves none."""
    ids = {name: token for token, name in controls.items()}
    # The membership test runs in C.
    if ids[START] not in prompt:
        return []
    begin = next(at for at in range(len(prompt), 0, -1) if prompt[at - 1] == ids[START])
    opened = [*prompt[begin:]]
    return opened if {ids[name] for name in ENDS}.isdisjoint(opened) else []


def begun_answer(controls: Mapping[int, str], prompt: Sequence[int]) -> list[int]:
    """Return what a prompt has of the answer's first message behind `<|start|>assistant`: usually nothing."""
    opened = open_message(controls, prompt) if controls else []
    first = next((at for at, token in enumerate(opened) if token in controls), len(opened))
    return opened[first:]


class HarmonyText:
    """One choice of a model that writes Harmony; see `ChannelText`, whose rules for stops and calls hold here, too.

    - Texts of several messages of a kind are one text, with an empty line between.
    - A call whose text is no JSON object is text of its channel. Control tokens within a string of a call are text.
    - A message of another role than the assistant's ends the answer: it is none of it.
    - An answer without a header is content.
    """

    stopped: str | None
    """See `ChannelText`."""
    reasoning_tokens: int
    """Tokens fed while reasoning, those that began and ended it included."""

    def __init__(
        self,
        *,
        detokenizer: Detokenizer,
        controls: Mapping[int, str],
        opened: Sequence[int],
        stop: Sequence[str],
        parse_calls: Callable[[str], list[Call]] | None,
        make_reader: Callable[[EmitPiece], BlockReader] | None = None,
        call_ids: Callable[[int], str],
        parallel_calls: bool,
    ) -> None:
        """Take what `ChannelText` takes.

        `controls` are those of `Markers`; `opened` is what `open_message` has found in the prompt.
        """
        self.stopped = None
        self.reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._controls = controls
        self.start_stops(stop)
        self._calls_wanted = parse_calls is not None
        self._parallel_calls = parallel_calls
        self._block = ToolBlocks(parse=parse_calls, make_reader=make_reader, ids=call_ids, parallel=parallel_calls)
        self._texts: Mapping[str, list[str]] = MappingProxyType({NORMAL: [], REASONING: []})
        self._said: set[str] = set()
        self._held = ""
        self._broken = False
        self._await_header(bare=not opened)
        self._read_opened(opened)

    def feed_token(self, token: int) -> None:
        """Add one generated token (not the end of sequence, which has no text). Ignored once `stopped`."""
        if self.stopped is not None:
            return
        thinking = self._state == REASONING
        name = self._controls.get(token)
        if name is None:
            self._detokenizer.add_token(token)
            if segment := self._detokenizer.last_segment:
                self._write(segment)
        else:
            self._end_characters()
            if self._in_string:
                self._write(name)
            else:
                self._take_control(name)
        if thinking or self._state == REASONING:
            self.reasoning_tokens += 1

    def take_pieces(self) -> Piece | None:
        """Take what became certain since the last call; None where nothing did."""
        if not (any(self._texts.values()) or self._block.waiting):
            return None
        return self._take()

    def finish_text(self, reason: str) -> Piece:
        """Return the last piece, with everything that was held back; see `ChannelText`."""
        if self.stopped is None:
            self._end_characters()
            cut = reason == "length"
            if self._state != HEADER:
                self._end_message(cut=cut)
            elif self._bare:
                self._open_text(NORMAL, self._header)
                self._flush()
        reason = self.stopped or reason
        if self._block.count and reason == "stop" and not self._broken:
            reason = "tool_calls"
        return self._take(reason)

    def _take(self, finish: str | None = None) -> Piece:
        text, reasoning = ("".join(self._texts[state]) for state in (NORMAL, REASONING))
        for texts in self._texts.values():
            texts.clear()
        return Piece(text=text, reasoning=reasoning, calls=self._block.take_calls(), finish=finish)

    def _end_characters(self) -> None:
        """Give up waiting for the rest of a character."""
        self._detokenizer.finalize()
        if segment := self._detokenizer.last_segment:
            self._write(segment)

    def start_stops(self, stop: Sequence[str]) -> None:
        """Look for stop strings from here on."""
        self._stops = compile_states(Markers(transitions={REASONING: []}), stop=stop, tools=False, initial=NORMAL)

    # -- messages

    def _read_opened(self, opened: Sequence[int]) -> None:
        """Read the header of the message that the prompt leaves open; what it holds is no part of the answer."""
        for token in opened:
            self.feed_token(token)
            if self._controls.get(token) == MESSAGE:
                break
        if self.stopped:
            # Another's message: nothing says what follows it.
            self.stopped = None
            self._await_header(bare=True)
        self.reasoning_tokens = 0

    def _await_header(self, header: str = "", *, bare: bool) -> None:
        """Read on in a header that begins so; a `bare` one without any control token."""
        self._state = HEADER
        self._header = header
        self._bare = bare
        self._in_string = self._escaped = False

    def _take_control(self, name: str) -> None:
        if self._state == HEADER:
            if name == MESSAGE:
                self._open_message(read_header(self._header))
            elif name in (CHANNEL, CONSTRAIN):
                self._header += name
                self._bare = False
            else:
                self._await_header(bare=name != START)
        elif name not in (MESSAGE, CONSTRAIN):
            self._end_message()
            # A channel's name without what belongs before it: the end of the message was left out.
            self._await_header(name if name == CHANNEL else "", bare=name in ENDS)

    def _open_message(self, header: Header) -> None:
        if header.role not in ("", ASSISTANT):
            self.stopped = "stop"
        elif header.is_call and self._calls_wanted:
            self._state = TOOL
            self._visible = header.state
            self._head = header.recipient + MESSAGE
            self._block.append(self._head)
        else:
            self._open_text(header.state)

    def _open_text(self, state: str, text: str = "") -> None:
        self._state = state
        self._between = BETWEEN if state in self._said else ""
        if text:
            self._write(text)

    def _end_message(self, *, cut: bool = False) -> None:
        if self._state == TOOL:
            self._end_call(cut=cut)
        else:
            self._flush()

    def _end_call(self, *, cut: bool) -> None:
        body = self._block.text.removeprefix(self._head)
        if self._block.end_block(cut=cut):
            if not self._block.whole and not cut:
                # What was sent of it can't be taken back, and is no call.
                self._broken = True
                self.stopped = "stop"
            elif not self._parallel_calls and not cut:
                self.stopped = "tool_calls"
        elif not cut:
            self._open_text(self._visible, body)
            self._flush()

    # -- text

    def _write(self, text: str) -> None:
        """Add text where the state has it."""
        if self._state == TOOL:
            self._block.append(text)
            self._follow_string(text)
        elif self._state == HEADER:
            self._header += text
            if len(self._header) > LONGEST_HEADER or (self._bare and not _HEADER_BEGUN.fullmatch(self._header)):
                self._open_text(NORMAL, self._header if self._bare else self._header.rpartition(CHANNEL)[2])
        elif self._held or self._stops[self._state].may_begin(text) is not None:
            self._find_stop(self._held + text)
        else:
            self._emit(text)

    def _find_stop(self, text: str) -> None:
        self._held = ""
        stops = self._stops[self._state]
        match = stops.first_match(text)
        if match is not None:
            self._emit(text[: match[0]])
            self.stopped = "stop"
            return
        certain = stops.certain_length(text)
        self._held = text[certain:]
        self._emit(text[:certain])

    def _flush(self) -> None:
        held, self._held = self._held, ""
        if self.stopped is None:
            self._emit(held)

    def _emit(self, text: str) -> None:
        if text:
            self._texts[self._state].append(self._between + text)
            self._between = ""
            self._said.add(self._state)

    def _follow_string(self, text: str) -> None:
        """Take note of whether the arguments of a call have come to within a string."""
        if self._escaped:
            text, self._escaped = text[1:], False
        for found in _STRING_BORDER.finditer(text):
            if found[0] == '"':
                self._in_string = not self._in_string
            elif len(found[0]) == 1:
                self._escaped = True


ChoiceText = ChannelText | HarmonyText
"""The text of one choice, in whichever format."""
