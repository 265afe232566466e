"""Detokenizers over given pieces, and a short way to run a choice."""

import codecs
from collections.abc import Callable, Iterable, Sequence

import pytest

from worker.text.channels import ChannelText, Detokenizer, Piece
from worker.text.markers import Markers
from worker.text.tool_calls.calls import Call
from worker.text.tool_calls.streaming import BlockReader, EmitPiece


class Pieces:
    """Token i is the i-th piece; bytes are decoded as they become whole characters."""

    def __init__(self, pieces: Sequence[str | bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        piece = self._pieces[token]
        self.last_segment = self._decoder.decode(piece) if isinstance(piece, bytes) else piece

    def finalize(self) -> None:
        self.last_segment = self._decoder.decode(b"", final=True)


QWEN = Markers(
    transitions={
        "normal": [("<think>", "reasoning"), ("<tool_call>", "tool")],
        "reasoning": [("</think>", "normal"), ("<tool_call>", "tool")],
        "tool": [("</tool_call>", "normal")],
    },
    think_start="<think>",
    think_end="</think>",
    tool_start="<tool_call>",
    tool_end="</tool_call>",
)


def parse_word(block: str) -> list[Call]:
    """`a b` is a call of `a` and one of `b`; anything but letters and blanks is malformed."""
    names = block.split()
    if not names or not all(name.isalpha() for name in names):
        raise ValueError(block)
    return [Call(name=name, arguments="{}") for name in names]


def merge(pieces: Iterable[Piece | None]) -> Piece:
    """One piece that says what all of them say."""
    found = [piece for piece in pieces if piece is not None]
    return Piece(
        text="".join(piece.text for piece in found),
        reasoning="".join(piece.reasoning for piece in found),
        calls=[call for piece in found for call in piece.calls],
        finish=found[-1].finish,
    )


class Run:
    """A choice that was fed all its pieces: what each token made certain, and the end."""

    def __init__(self, choice: ChannelText, tokens: int, reason: str) -> None:
        self.choice = choice
        self.steps: list[Piece | None] = []
        for token in range(tokens):
            choice.feed_token(token)
            self.steps.append(choice.take_pieces())
        self.stopped = choice.stopped
        self.last = choice.finish_text(reason)
        self.whole = merge([*self.steps, self.last])

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.whole.calls]


def choice_of(
    detokenizer: Detokenizer,
    *,
    markers: Markers = QWEN,
    initial: str = "normal",
    stop: Sequence[str] = (),
    parse: Callable[[str], list[Call]] | None = parse_word,
    make_reader: Callable[[EmitPiece], BlockReader] | None = None,
    parallel_calls: bool = True,
) -> ChannelText:
    return ChannelText(
        detokenizer=detokenizer,
        markers=markers,
        initial=initial,
        stop=stop,
        parse_calls=parse,
        make_reader=make_reader,
        call_ids=lambda index: f"call_{index}",
        parallel_calls=parallel_calls,
    )


@pytest.fixture(scope="session")
def run() -> Callable[..., Run]:
    """Feed pieces (or one text, character by character) to a choice and finish it."""

    def feed(pieces: Sequence[str | bytes], *, reason: str = "stop", **options: object) -> Run:
        return Run(choice_of(Pieces(pieces), **options), len(pieces), reason)  # type: ignore[arg-type]

    return feed


@pytest.fixture(scope="session")
def make_choice() -> Callable[..., ChannelText]:
    def make(
        pieces: Sequence[str | bytes] = (), detokenizer: Detokenizer | None = None, **options: object
    ) -> ChannelText:
        return choice_of(detokenizer or Pieces(pieces), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def qwen() -> Markers:
    return QWEN


@pytest.fixture(scope="session")
def merged() -> Callable[[Iterable[Piece | None]], Piece]:
    return merge
