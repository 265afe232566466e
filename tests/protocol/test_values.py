"""Values as people write them."""

from collections.abc import Callable

import pytest

from protocol.values import choice, path, seconds, size, switch, whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("17", 17),
        ("512MB", 512 << 20),
        ("512 mib", 512 << 20),
        ("1.5k", 1536),
        ("2G", 2 << 30),
        ("16T", 16 << 40),
    ],
)
def test_size_when_written_with_or_without_a_unit(text: str, expected: int) -> None:
    """Powers of 1024, in any case, with or without B."""
    assert size(text) == expected


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((size, text) for text in ("", "-1", "MB", "1PB", "1e3", "17T", "1 2")),
        *((seconds, text) for text in ("", "0", "-1", "1e3", "86401", "inf", "nan")),
        *((switch, text) for text in ("", "2", "maybe")),
        *((whole(1, 99), text) for text in ("", "0", "100", "-1", "1.0", "1__0", "_1", "1_", "9" * 99)),
        *((choice("a", "b"), text) for text in ("", "c")),
        *((path, text) for text in ("", " ", "a\0b")),
    ],
)
def test_value_is_refused_when_it_means_nothing(read: Callable[[str], object], text: str) -> None:
    """With a sentence that says what is allowed."""
    with pytest.raises(ValueError, match=r"^must be "):
        read(text)
