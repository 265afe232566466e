"""Files out of data: URLs."""

import base64
import hashlib
import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.media import inline
from gateway.media.inline import CHUNK, read_inline
from gateway.schema.errors import ApiError
from gateway.schema.parts.bounds import MAX_IMAGE_BYTES
from tests.support.picture_files import data_url, picture

PNG = picture()


def refusal(url: str) -> ApiError:
    with pytest.raises(ApiError) as raised:
        read_inline(url, "messages[0].x")
    assert raised.value.param == "messages[0].x"
    return raised.value


@pytest.mark.parametrize("size", [0, 1, 2, 3, CHUNK // 4 * 3 - 1, CHUNK // 4 * 3, CHUNK // 4 * 3 + 1, 200_000])
def test_file_and_digest_are_exact_at_every_length(size: int) -> None:
    """Around every border of padding and chunks."""
    data = os.urandom(size)
    assert read_inline(data_url(data), "p") == (data, hashlib.sha256(data).digest())


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:image/svg+xml;charset=x;base64,",
        "data:application/octet-stream;base64,",
        "data:;base64,",
        "data:text/plain;charset=utf-8;base64,",
        'data:image/png;name="my picture.png";base64,',
        "data:image/jpg;charset=US-ASCII;name=a%20b.png;base64,",
        "data:image/png;base64 ,",
    ],
)
def test_head_is_read_in_any_case_and_with_parameters(head: str) -> None:
    """What the head calls the file is not what decides whether it is an image."""
    assert read_inline(head + base64.b64encode(PNG).decode(), "p").data == PNG


@pytest.mark.parametrize(
    "url",
    [
        "data:,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64;AAAA",
        "data:image/png;base64",
        "data:image/" + "x" * 100_000 + ";base64,AAAA",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,AAAA=",
        "data:image/png;base64,A",
        "data:image/png;base64,AAA==",
        "data:image/png;base64,AA%3",
        "data:image/png;base64,AAA%41",
        "data:image/png;base64,AA==%0A%3D",
        "data:image/png;base64,AA*A",
        "data:image/png" + ";a=b" * 9 + ";base64,AAAA",
        "data:image/png;base64,====",
        "data:image/png;base64,ÄÄÄÄ",
        "data:image/png;base64," + "A" * (CHUNK - 4) + "AA==" + "AAAA",
    ],
    ids=lambda url: url[:40],
)
def test_url_is_refused_when_it_is_no_base64(url: str) -> None:
    """No other characters, no padding in the middle or too much of it, no other encoding, no endless head."""
    assert refusal(url).code == "invalid_request"


def _wrapped(text: str, width: int, end: str) -> str:
    return end.join(text[at : at + width] for at in range(0, len(text), width)) + end


SPELLINGS: dict[str, Callable[[str], str]] = {
    "lines of 76": lambda text: _wrapped(text, 76, "\r\n"),
    "lines of 64": lambda text: _wrapped(text, 64, "\n"),
    "odd lines": lambda text: _wrapped(text, 7, " \t"),
    "no padding": lambda text: text.rstrip("="),
    "the alphabet of URLs": lambda text: text.replace("+", "-").replace("/", "_"),
    "the same, no padding": lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
    "escaped": lambda text: text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
    "escaped lines": lambda text: _wrapped(text, 76, "%0D%0A").replace("+", "%2b"),
    "a blank before it": lambda text: f" {text}",
    "lines, no padding": lambda text: _wrapped(text.rstrip("="), 76, "\n"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("size", [1, 2, 3, 100, CHUNK // 4 * 3 - 1, CHUNK // 4 * 3 + 1, 200_000])
def test_file_is_exact_when_base64_is_spelled_otherwise(spelling: str, size: int) -> None:
    """Line breaks, no padding, either alphabet, escapes: around every border of chunks."""
    data = random.Random(size).randbytes(size)
    url = "data:image/png;base64," + SPELLINGS[spelling](base64.b64encode(data).decode())
    assert read_inline(url, "p") == (data, hashlib.sha256(data).digest())


@given(st.binary(max_size=200), st.data())
def test_file_is_exact_when_blanks_stand_anywhere(data: bytes, draw: st.DataObject) -> None:
    """Any blanks between any characters, with chunks of a few characters."""
    text = base64.b64encode(data).decode()
    blanks = draw.draw(st.lists(st.sampled_from(["", "", " ", "\n", "%0A"]), min_size=len(text), max_size=len(text)))
    url = "data:;base64," + "".join(map("".join, zip(blanks, text, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline, "CHUNK", 12)
        assert read_inline(url, "p").data == data


def test_refusal_says_what_is_wrong() -> None:
    """That it is no base64, and where it goes on."""
    assert "as base64" in refusal("data:image/png,%89PNG").message
    assert "beyond ASCII" in refusal("data:image/png;base64,ÄÄÄÄ").message
    assert "behind its padding" in refusal("data:image/png;base64," + "A" * (CHUNK - 4) + "AA==" + "AAAA").message


def test_url_is_refused_when_the_file_is_too_large() -> None:
    """20 MB are accepted, one byte more is a 413."""
    most = bytes(MAX_IMAGE_BYTES)
    assert len(read_inline(data_url(most), "p").data) == MAX_IMAGE_BYTES
    assert refusal(data_url(most + b"x")).status == 413
    assert refusal(data_url(most * 2)).status == 413
