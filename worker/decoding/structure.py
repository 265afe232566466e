"""How an image file is built, told without decoding it: files of endless parts are refused before a decoder sees them.

Reading a few bytes of each part costs microseconds; what Pillow and the libraries below it do with a part may cost
milliseconds. Pure; the standard library only.
"""

import re
import struct

MAX_SCANS = 32
"""Of a JPEG. Encoders write 10 for three colours and 18 for four; each scan visits every block of the image."""
MAX_JPEG_SEGMENTS = 2000
"""Of a JPEG: profiles and metadata make up to some 300, a scan brings a table or two."""
MAX_FILLING_BYTES = 4096
"""Between two segments of a JPEG; encoders write none."""
MAX_PNG_CHUNKS = 20_000
"""Of a PNG: pixels come in pieces of 8 KB and more, animations bring two chunks a frame."""
MAX_GIF_BLOCKS = 20_000
"""Before the first frame of a GIF: a profile or a description, in pieces of at most 255 bytes."""

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SCAN_END = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""Restart marks belong to the data of a scan."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})


def has_too_many_parts(file: bytes) -> bool:
    """Return whether a file is made of more parts than any image needs. What is malformed is left to the decoder."""
    try:
        if file.startswith(b"\xff\xd8"):
            return _jpeg(file)
        if file.startswith(b"\x89PNG"):
            return _png(file)
        if file.startswith(b"GIF8"):
            return _gif(file)
    except (struct.error, IndexError):
        # It ends within a part.
        return False
    return False


def _jpeg(file: bytes) -> bool:
    """Source: ITU-T T.81, annex B; markers are found as libjpeg finds them, which skips what is between."""
    at, scans, pattern = 2, 0, _MARKER
    for _ in range(MAX_JPEG_SEGMENTS):
        found = pattern.search(file, at)
        end = found.end() if found else len(file)
        if pattern is _MARKER and end - at > MAX_FILLING_BYTES:
            return True
        if found is None:
            return False
        marker, at = found[1][0], end
        if marker == _END_OF_IMAGE and scans:
            return False
        if marker in _STANDALONE:
            continue
        at += struct.unpack_from(">H", file, at)[0]
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            return True
        pattern = _SCAN_END if marker == _START_OF_SCAN else _MARKER
    return True


def _png(file: bytes) -> bool:
    at = 8
    for _ in range(MAX_PNG_CHUNKS):
        length, name = struct.unpack_from(">I4s", file, at)
        if name == b"IEND":
            return False
        at += length + 12
    return True


def _gif(file: bytes) -> bool:
    """Blocks before the first frame. No decoder of ours reads what is behind it."""
    at = 13
    if file[10] & 0x80:
        at += 3 << (file[10] & 7) + 1
    inside = False
    for _ in range(MAX_GIF_BLOCKS):
        if inside:
            inside = file[at] > 0
            at += file[at] + 1
        elif file[at] in b",;":
            return False
        else:
            # An extension, or noise, which Pillow skips byte by byte.
            inside = file[at] == ord("!")
            at += 2 if inside else 1
    return True
