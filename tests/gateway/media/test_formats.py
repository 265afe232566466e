"""Formats and sizes, read from the first bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.media.formats import ImageHeader, read_header
from tests.support.picture_files import picture

SIZE = (321, 45)
FILES = {
    "png": picture(SIZE),
    "gif": picture(SIZE, form="GIF"),
    "jpeg": picture(SIZE, form="JPEG"),
    "jpeg, progressive": picture(SIZE, form="JPEG", progressive=True),
    "jpeg, comment and profile": picture(SIZE, form="JPEG", comment=b"c" * 60_000, icc_profile=b"p" * 200_000),
    "webp": picture(SIZE, form="WEBP"),
    "webp, lossless": picture(SIZE, form="WEBP", lossless=True),
    "webp, extended": picture(SIZE, form="WEBP", exif=b"Exif\0\0" + b"x" * 30),
}


@pytest.mark.parametrize("name", FILES)
def test_header_is_that_of_the_file_when_a_library_wrote_it(name: str) -> None:
    """Format and size of every kind of file that is accepted."""
    assert read_header(FILES[name]) == ImageHeader(name.partition(",")[0], *SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
def test_header_is_none_when_the_file_ends_within_it(name: str) -> None:
    """Cut anywhere, a file is read as itself or as nothing; nothing else is raised."""
    data = FILES[name]
    found = [read_header(data[:length]) for length in range(min(len(data), 64))]
    assert set(found) <= {None, read_header(data)}
    assert found[0] is None


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<!DOCTYPE html><html></html>",
        b"%PDF-1.7",
        picture(form="BMP"),
        picture(form="TIFF"),
        b"\x00\x00\x00\x0cjP  \r\n\x87\n",
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"GIF90a\x01\x00\x01\x00",
        b" " + FILES["png"],
        b"\xff\xd8\xff" + b"\xff" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000,
        b"\xff\xd8\xff\xe0\x00\x00" + b"\xff\xe0\x00\x00" * 1_000_000,
        b"\xff\xd8\xff\xd0" * 100_000,
    ],
)
def test_header_is_none_when_the_file_is_of_no_accepted_format(data: bytes) -> None:
    """Whatever else it is, and however long its segments go on."""
    assert read_header(data) is None


@given(
    st.sampled_from(["png", "gif", "jpeg", "webp", "webp, lossless", "webp, extended"]), st.integers(0, 40), st.binary()
)
def test_nothing_is_raised_when_a_header_is_damaged(name: str, at: int, damage: bytes) -> None:
    """Any bytes behind any part of a true header."""
    found = read_header(FILES[name][:at] + damage)
    assert found is None or found.width >= 0
