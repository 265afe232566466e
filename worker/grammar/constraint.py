"""What one row may say next: where it stands before, in and behind the part under a grammar. Pure.

A function of the row's tokens alone, so a resumed row is brought to where it was by feeding it what it has said.
"""

from collections.abc import Collection, Sequence
from enum import Enum, auto
from typing import Any

import msgspec

from worker.grammar.marker_mask import MarkerMask
from worker.grammar.message_thoughts import MessageThoughts
from worker.grammar.thoughts import ThoughtLimit

_SPACE = b" \t\r\n"


class Phase(Enum):
    """Where a row stands. `OPENING` is the first token of an answer before which the model may still begin to think."""

    THINKING = auto()
    OPENING = auto()
    FOLLOWING = auto()
    WAITING = auto()
    ENDED = auto()


class OutputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Ids and texts that a model's output is made of, for all its rows. `marker_mask` has all markers of answers."""

    raws: Sequence[bytes]
    eos: frozenset[int]
    think_end: bytes
    think_start: int | None
    marker_mask: MarkerMask
    thinking_mask: MarkerMask


class GrammarSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a job holds its answers to.

    `grammar` is llguidance's (empty where it has been compiled). It constrains the answer from its start, or, with a
    `trigger`, what follows that text, up to `end`, each time it comes. `param` is the request's field, for errors.
    """

    grammar: str
    param: str
    trigger: bytes | None = None
    end: bytes = b""


class Constraint:
    """One row. `source`, `slot` and `sent` belong to `Masks`: who computes its masks, where, of how many `tokens`."""

    __slots__ = (
        "closed",
        "compile_s",
        "failed",
        "finished",
        "ignore_eos",
        "min_tokens",
        "output",
        "phase",
        "prefix",
        "said",
        "sent",
        "slot",
        "source",
        "spec",
        "stop_ids",
        "tail",
        "thoughts",
        "tokens",
    )

    def __init__(
        self, spec: GrammarSpec, output: OutputTokens, phase: Phase, *, ignore_eos: bool, source: Any = None
    ) -> None:
        self.spec = spec
        self.source = source
        self.output = output
        self.phase = phase
        self.ignore_eos = ignore_eos
        self.min_tokens = 0
        self.stop_ids: Collection[int] = ()
        """Tokens that end it, too, and may not come within its first `min_tokens`."""
        self.said = 0
        self.thoughts: ThoughtLimit | MessageThoughts | None = None
        """Where its thoughts are bounded."""
        self.prefix = b""
        """Text behind the marker that began the constrained part, within the same token."""
        self.tokens: list[int] = []
        """Tokens of the constrained part."""
        self.tail = b""
        self.slot: int | None = None
        self.sent = 0
        self.finished = False
        """Nothing may follow any more."""
        self.failed: str | None = None
        self.closed = False
        self.compile_s = 0.0
        """Processor time that went into its grammar; of several rows, one has all of it."""

    @property
    def constrained(self) -> bool:
        """Whether the grammar says what comes next."""
        return self.phase in (Phase.OPENING, Phase.FOLLOWING)

    @property
    def free(self) -> bool:
        """Whether anything may come next."""
        if self.failed is not None:
            return True
        return self.phase in (Phase.WAITING, Phase.ENDED) and self.forced is None

    @property
    def forced(self) -> int | None:
        """The only token that may come next, to close a thought; None: no thought has to be closed."""
        return None if self.thoughts is None else self.thoughts.forced

    @property
    def early(self) -> bool:
        """Whether it may not end yet."""
        return self.said < self.min_tokens

    def advance_tokens(self, token: int) -> None:
        """Take the next token of the row."""
        self.said += 1
        if self.thoughts is not None:
            self.thoughts.take_token(token)
        if self.phase is Phase.ENDED:
            return
        if token in self.output.eos:
            self.phase = Phase.ENDED
            return
        raw = self.output.raws[token] if token < len(self.output.raws) else b""
        self.tail += raw
        match self.phase:
            case Phase.THINKING:
                self._find_start(self.output.think_end)
            case Phase.WAITING:
                self._find_start(self.spec.trigger or b"")
            case Phase.OPENING if token == self.output.think_start:
                self.phase = Phase.THINKING
                self.tail = b""
            case _:
                self.phase = Phase.FOLLOWING
                self.tokens.append(token)
                self._find_end()
        # Nothing looks further back than the longest marker (and a token before it).
        self.tail = self.tail[-4 * self.output.marker_mask.longest :]

    def _find_start(self, marker: bytes) -> None:
        before, found, behind = self.tail.partition(marker)
        if not found:
            self.tail = before[-len(marker) :]
            return
        self.phase = Phase.FOLLOWING
        self.prefix = behind.lstrip(_SPACE)
        self.tokens = []
        self.tail = behind

    def _find_end(self) -> None:
        """End a constrained part within free text at its end marker, which its grammar lets through there only."""
        if self.spec.trigger is None or not self.spec.end:
            return
        _, found, behind = self.tail.partition(self.spec.end)
        if found:
            self.return_to_text(behind)

    def return_to_text(self, tail: bytes = b"") -> None:
        """Go back to free text (what began here was no call, or has ended)."""
        self.phase = Phase.WAITING
        self.tail = tail
        self.tokens = []
        self.closed = True

    def close(self) -> None:
        """Take note that the row has left."""
        self.phase = Phase.ENDED
        self.closed = True


_NO_MARKERS = MarkerMask((), (), ())
_NO_GRAMMAR = GrammarSpec(grammar="", param="thinking_budget")
_NO_OUTPUT = OutputTokens(
    raws=(), eos=frozenset(), think_end=b"", think_start=None, marker_mask=_NO_MARKERS, thinking_mask=_NO_MARKERS
)


def free_constraint(thoughts: ThoughtLimit | MessageThoughts) -> Constraint:
    """Make a constraint for a row that follows no grammar: only its thoughts are limited."""
    constraint = Constraint(_NO_GRAMMAR, _NO_OUTPUT, Phase.ENDED, ignore_eos=False)
    constraint.thoughts = thoughts
    return constraint
