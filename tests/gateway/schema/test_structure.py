"""Structure of JSON texts, counted without parsing them."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.schema.structure import Bounds, Structure, text_bytes

TEXTS = st.text(alphabet='a,[]{}:"\\\n\u00e9\U0001f600', max_size=8)
DOCUMENTS = st.recursive(
    st.none() | st.integers() | st.booleans() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def counted(text: bytes, *borders: int) -> Structure:
    """The text, fed in pieces."""
    found, start = Structure(), 0
    for border in (*sorted(borders), len(text)):
        found.count_slice(text[start:border])
        start = max(start, border)
    return found


def walked(value: Any) -> tuple[int, int, int]:
    """Values, containers and keys of a parsed document."""
    children = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    below = [walked(child) for child in children]
    values, containers, keys = (sum(column) for column in zip(*below, strict=True)) if below else (0, 0, 0)
    return (
        values + 1,
        containers + isinstance(value, (dict, list)),
        keys + (len(value) if isinstance(value, dict) else 0),
    )


@given(DOCUMENTS, st.booleans(), st.lists(st.integers(0, 200), max_size=6))
@settings(deadline=None)
def test_structure_is_counted_when_strings_are_full_of_it(document: Any, escaped: bool, borders: list[int]) -> None:
    """Containers and keys exactly, values never too few, wherever the text was cut."""
    text = json.dumps(document, ensure_ascii=escaped).encode()
    values, containers, keys = walked(document)
    found = counted(text, *[min(border, len(text)) for border in borders])
    assert (found.arrays + found.objects, found.keys) == (containers, keys)
    # An empty container, which has no first value, counts for two.
    assert values <= found.values <= values + containers


@given(DOCUMENTS)
@settings(deadline=None)
def test_quick_count_is_never_less_when_strings_count_too(document: Any) -> None:
    """What passes quickly would pass exactly."""
    text = json.dumps(document).encode()
    quick, exact = Structure(), counted(text)
    quick.count_upper_bound(text)
    assert quick.values >= exact.values
    assert quick.arrays + quick.objects >= exact.arrays + exact.objects


@pytest.mark.parametrize("run", range(6))
def test_quote_ends_a_string_when_backslashes_before_it_are_even(run: int) -> None:
    """Also where a slice ends between any two of them."""
    text = b'["' + b"\\" * run + b'"' + (b"," if run % 2 else b',"') + b'"]'
    for border in range(len(text)):
        assert counted(text, border).values == (2 if run % 2 else 3)


def test_excess_is_named_when_there_is_too_much() -> None:
    """Values or containers, with the bound; nothing where all is within."""
    found = counted(b"[1,[2],{}]")
    assert found.find_excess(Bounds(values=6, containers=3)) == ""
    assert found.find_excess(Bounds(values=5, containers=3)) == "more than 5 values"
    assert found.find_excess(Bounds(values=6, containers=2)) == "more than 2 lists and objects"


def test_text_is_estimated_wider_when_a_character_makes_it_so() -> None:
    """ASCII as it is; with a character beyond the BMP four bytes each, and the copy in UTF-8."""
    assert text_bytes(b"a" * 10) == 10
    assert text_bytes("é".encode() * 5) == 30
    assert text_bytes("😀aaaaaa".encode()) == 50
    assert text_bytes(b"\\ud83d\\ude00") == 60


def test_counting_is_fast_when_all_is_quotes() -> None:
    """A slice of nothing but strings, the slowest kind, takes milliseconds."""
    piece = b'"",' * 87_381
    took = []
    for _ in range(5):
        found, began = Structure(), time.thread_time()
        found.count_slice(piece)
        took.append(time.thread_time() - began)
    assert min(took) < 0.03
