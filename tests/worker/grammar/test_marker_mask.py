"""Markers that must not be put together, and where a row stands."""

import numpy as np
import pytest

from worker.grammar.constraint import Constraint, GrammarSpec, OutputTokens, Phase
from worker.grammar.marker_mask import MarkerMask

RAWS = [b"<", b"tool", b">", b"<tool>", b"a", b"ol>x", b"<to", b"l", b" ", b"</t>", b"</", b"t>"]
NAMES = {raw: token for token, raw in enumerate(RAWS)}


def allowed(tail: bytes, *, ignored: tuple[int, ...] = ()) -> set[bytes]:
    mask = np.array([0xFFFFFFFF], dtype=np.uint32)
    MarkerMask(["<tool>"], RAWS, ignored).forbid_marker(mask, tail)
    return {raw for token, raw in enumerate(RAWS) if int(mask[0]) >> token & 1}


@pytest.mark.parametrize(
    ("tail", "forbidden"),
    [(b"", {b"<tool>"}), (b"<tool", {b"<tool>", b">"}), (b"x<to", {b"<tool>", b"ol>x"}), (b"tool", {b"<tool>"})],
)
def test_only_what_completes_a_marker_is_forbidden(tail: bytes, forbidden: set[bytes]) -> None:
    """Whatever its pieces are, and whatever the completing token brings along."""
    assert set(RAWS) - allowed(tail) == forbidden


def test_token_of_the_marker_is_left_to_the_grammar_when_it_is_a_control_token() -> None:
    """The grammar lets it through where it is meant."""
    assert allowed(b"", ignored=(NAMES[b"<tool>"],)) == set(RAWS)


def constraint(phase: Phase, *, trigger: bytes | None = None) -> Constraint:
    mask = MarkerMask([], RAWS, ())
    start = NAMES[b"a"]
    output = OutputTokens(
        raws=RAWS, eos=frozenset({99}), think_end=b"</t>", think_start=start, marker_mask=mask, thinking_mask=mask
    )
    spec = GrammarSpec(grammar="g", param="p", trigger=trigger, end=b"</t>")
    return Constraint(spec, output, phase, ignore_eos=False)


def test_constrained_part_begins_behind_reasoning_when_its_end_is_spelled_out() -> None:
    """The end marker counts in pieces, too; text behind it in the same token is the grammar's, white space nobody's."""
    for spelled in ([b"</t>"], [b"</", b"t>"]):
        row = constraint(Phase.THINKING)
        for raw in (b"a", *spelled):
            assert row.phase is Phase.THINKING
            row.advance_tokens(NAMES[raw])
        assert (row.phase, row.tokens, row.prefix) == (Phase.FOLLOWING, [], b"")
        row.advance_tokens(NAMES[b"a"])
        assert row.tokens == [NAMES[b"a"]]


def test_thinking_may_begin_with_the_first_token_only() -> None:
    """Afterwards the same token is part of the answer."""
    row = constraint(Phase.OPENING)
    row.advance_tokens(NAMES[b"a"])
    assert row.phase is Phase.THINKING
    row = constraint(Phase.OPENING)
    row.advance_tokens(NAMES[b" "])
    row.advance_tokens(NAMES[b"a"])
    assert (row.phase, len(row.tokens)) == (Phase.FOLLOWING, 2)


def test_rule_comes_and_goes_when_calls_stand_in_free_text() -> None:
    """From each start marker to its end marker; text behind a start marker in the same token belongs to the call."""
    row = constraint(Phase.WAITING, trigger=b"<to")
    for raw in (b"a", b"<", b"tool"):
        assert row.free
        row.advance_tokens(NAMES[raw])
    assert (row.phase, row.prefix) == (Phase.FOLLOWING, b"ol")
    row.advance_tokens(NAMES[b"a"])
    row.advance_tokens(NAMES[b"</t>"])
    assert (row.phase, row.closed) == (Phase.WAITING, True)
    row.advance_tokens(NAMES[b"<to"])
    assert (row.phase, row.tokens, row.prefix) == (Phase.FOLLOWING, [], b"")
    row.advance_tokens(99)
    assert row.phase is Phase.ENDED
