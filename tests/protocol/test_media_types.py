"""What a file is called that is no image, or none that is taken."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from protocol.media_types import IMAGES, name_media


def saved(form: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, form)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (saved("PNG"), "image/png"),
        (saved("JPEG"), "image/jpeg"),
        (saved("WEBP"), "image/webp"),
        (saved("GIF"), "image/gif"),
        (saved("BMP"), "image/bmp"),
        (saved("TIFF"), "image/tiff"),
        (saved("ICO"), "image/x-icon"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "image/avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "video/mp4"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
        (b"\xff\x0a\xfa\x1f", "image/jxl"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"PK\x03\x04abc", "application/zip"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made by hand -->\n<svg >", "image/svg+xml"),
        (b"\n<!DOCTYPE html><html>", "text/html"),
        (b"<?xml version='1.0'?><feed/>", "text/xml"),
        (b'{"error": "not found"}', "application/json"),
        (b"hello, world", "text/plain"),
        ("grüße ".encode() * 1000, "text/plain"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"\0\1\2\3", "application/octet-stream"),
        (b"\xff\xfe\xfd" * 1000, "application/octet-stream"),
        (b"", "nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_file_is_named_by_its_first_bytes(data: bytes, name: str) -> None:
    """Those that are taken, those that people send instead, and what is none of it."""
    assert name_media(data) == name
    assert (name in IMAGES) == (name in ("image/png", "image/jpeg", "image/webp", "image/gif"))


@given(st.binary(max_size=3000) | st.text(max_size=3000).map(str.encode))
def test_any_bytes_have_a_name(data: bytes) -> None:
    """Nothing is raised."""
    assert name_media(data)
