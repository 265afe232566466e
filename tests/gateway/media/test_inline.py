"""Files out of data: URLs."""

import base64
import hashlib
import os

import pytest

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
    "head", ["data:image/png;base64,", "DATA:IMAGE/PNG;BASE64,", "data:image/svg+xml;charset=x;base64,"]
)
def test_head_is_read_in_any_case_and_with_parameters(head: str) -> None:
    """What the head calls the file is not what decides whether it is an image."""
    assert read_inline(head + base64.b64encode(PNG).decode(), "p").data == PNG


@pytest.mark.parametrize(
    "url",
    [
        "data:text/html;base64,PGh0bWw+",
        "data:;base64,AAAA",
        "data:,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64;AAAA",
        "data:image/png;base64",
        "data:image/" + "x" * 100_000 + ";base64,AAAA",
        "data:image/png" + ";a=b" * 5 + ";base64,AAAA",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,AAAA=",
        "data:image/png;base64,====",
        "data:image/png;base64,AA\nAA",
        "data:image/png;base64, AAAA",
        "data:image/png;base64,AA-_",
        "data:image/png;base64,AAAA%3D",
        "data:image/png;base64,ÄÄÄÄ",
        "data:image/png;base64," + "A" * (CHUNK - 4) + "AA==" + "AAAA",
    ],
    ids=lambda url: url[:40],
)
def test_url_is_refused_when_it_is_not_strict(url: str) -> None:
    """No whitespace, no other alphabet, no padding in the middle, no other encoding, no other medium."""
    assert refusal(url).code == "invalid_request"


def test_url_is_refused_when_the_file_is_too_large() -> None:
    """20 MB are accepted, one byte more is a 413."""
    most = bytes(MAX_IMAGE_BYTES)
    assert len(read_inline(data_url(most), "p").data) == MAX_IMAGE_BYTES
    assert refusal(data_url(most + b"x")).status == 413
    assert refusal(data_url(most * 2)).status == 413
