"""Control tokens in texts: broken as ever, at a cost that neither their number nor what a text spells out decides."""

import re
import time
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile_texts import KINDS, NAMES, hostile_text
from tests.support.interpreter_watch import InterpreterWatch
from worker.text import disarming
from worker.text.disarming import JOINER, Disarmer


def plainly(names: Collection[str], text: str) -> str:
    """By an alternation of all names, the longest first: what a disarmed text is defined as."""
    expression = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(expression, lambda found: found[0][0] + JOINER + found[0][1:], text)


@given(
    names=st.sets(st.text("<|ab[>", min_size=2, max_size=5), min_size=1, max_size=8),
    text=st.text("<|ab[>", max_size=60),
    size=st.integers(1, 9),
)
def test_names_are_broken_as_an_alternation_finds_them(names: set[str], text: str, size: int) -> None:
    """Any names, one inside or in front of another, wherever a slice of the text ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disarming, "SLICE_CHARACTERS", size)
        assert Disarmer(names).disarm_text(text) == plainly(names, text)


@given(st.lists(st.sampled_from([*NAMES, "<|", "_", "<|reserved_special_token_", "x", "\n"]), max_size=40))
def test_names_of_real_tokenizers_are_broken(parts: list[str]) -> None:
    """256 of Llama 3, 500 of Mistral."""
    text = "".join(parts)
    assert Disarmer(NAMES).disarm_text(text) == plainly(NAMES, text)


def test_texts_are_found_wherever_they_are() -> None:
    """Keys, values, lists; what is no text stays what it is. Without names everything does."""
    disarmer = Disarmer(["<s>"])
    value = {"<s>": ["a<s>", {"b": "<s>"}, 1, None, True]}
    broken = f"<{JOINER}s>"
    assert disarmer.disarm_text(value) == {broken: [f"a{broken}", {"b": broken}, 1, None, True]}
    assert Disarmer([]).disarm_text(value) is not None
    assert Disarmer([]).disarm_text(value) == value


@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_names_cost_what_one_does(kind: str) -> None:
    """A megabyte takes no longer with 760 names, and other threads run meanwhile."""
    text = hostile_text(kind, 1_000_000)
    disarmer = Disarmer(NAMES)
    with InterpreterWatch() as watch:
        began = time.thread_time()
        disarmer.disarm_text(text)
        took_s = time.thread_time() - began
    assert took_s < 2
    assert watch.longest_gap_s < 1
