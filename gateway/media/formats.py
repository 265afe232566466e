"""What an image file says of itself in its first bytes: format and size. Pure; decodes no pixel.

Only these bytes count: neither a media type that somebody declared nor the ending of a name. The worker checks again,
with the decoder that it will use.
"""

import struct
from typing import Literal, NamedTuple

Format = Literal["png", "jpeg", "webp", "gif"]

MAX_SEGMENTS = 1024
"""Of a JPEG before its frame header: metadata and colour profile make up to some 300."""

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)).difference((0xC4, 0xC8, 0xCC))


class ImageHeader(NamedTuple):
    """A format, and width and height in pixels."""

    format: Format
    width: int
    height: int


def read_header(data: bytes) -> ImageHeader | None:
    """Read what file this is; None if it is none of the four formats, or ends within its header."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
            return ImageHeader("png", *struct.unpack_from(">II", data, 16))
        if data.startswith((b"GIF87a", b"GIF89a")):
            return ImageHeader("gif", *struct.unpack_from("<HH", data, 6))
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
    except (struct.error, IndexError):
        return None
    return None


def _webp(data: bytes) -> ImageHeader | None:
    """Read a WebP's size. Source: WebP container specification, and RFC 6386 9.1 for the lossy bit stream."""
    match data[12:16]:
        case b"VP8X":
            width, high, height, top = struct.unpack_from("<HBHB", data, 24)
            return ImageHeader("webp", (high << 16 | width) + 1, (top << 16 | height) + 1)
        case b"VP8L" if data[20] == 0x2F:
            bits = struct.unpack_from("<I", data, 21)[0]
            return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF)
        case _:
            return None


def _jpeg(data: bytes) -> ImageHeader | None:
    """Walk the segments up to the frame header. Source: ITU-T T.81, annex B."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        filler, marker = struct.unpack_from(">BB", data, at)
        if filler != 0xFF:
            return None
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return ImageHeader("jpeg", width, height)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None
