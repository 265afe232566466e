"""The metadata of image files, which no model sees: taken out of a PNG before a decoder unpacks it; where a file ends.

Pillow refuses a whole image for a profile of more than a megabyte. Only what may say which side is up is left in.
Pure; the standard library only.
"""

import re
import struct
import zlib

from worker.decoding.structure import MAX_JPEG_SEGMENTS

MOST_UNPACKED_BYTES = 32 << 20
"""All compressed metadata of a file together. A large colour profile has 3 MB."""
MOST_KEPT_BYTES = 1 << 20
"""Of one text that is left in; what Pillow takes."""
PIECE_BYTES = 1 << 16
MOST_GIF_BLOCKS = 200_000
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_TURNING = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
"""Beginnings of texts that may say how an image was turned."""
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class TooMuchMetadataError(Exception):
    """The metadata of a file unpacks to more than any image needs."""


def strip_metadata(file: bytes) -> bytes:
    """Return a PNG without profiles and texts, any other file as it is. Raises `TooMuchMetadataError`."""
    if not file.startswith(b"\x89PNG"):
        return file
    kept, at, since, budget = [], 8, 0, MOST_UNPACKED_BYTES
    while at + 8 <= len(file):
        length, name = struct.unpack_from(">I4s", file, at)
        end = at + length + 12
        if name in _TEXTS:
            data = file[at + 8 : at + 8 + length]
            unpacked = _unpacked_bytes(name, data, budget)
            budget -= unpacked
            if not (data.startswith(_TURNING) and unpacked <= MOST_KEPT_BYTES):
                kept.append(file[since:at])
                since = end
        if name == b"IEND":
            break
        at = end
    return b"".join([*kept, file[since:]]) if kept else file


def _unpacked_bytes(name: bytes, data: bytes, budget: int) -> int:
    """Return the size of a text or profile, unpacked. Raises `TooMuchMetadataError` beyond the budget."""
    packed = _packed_part(name, data)
    if packed is None:
        return len(data)
    unpacker, size = zlib.decompressobj(), 0
    try:
        while packed and not unpacker.eof:
            size += len(unpacker.decompress(packed, PIECE_BYTES))
            if size > budget:
                raise TooMuchMetadataError
            packed = unpacker.unconsumed_tail
    except zlib.error:
        # It is taken out anyway.
        return size
    return size


def _packed_part(name: bytes, data: bytes) -> bytes | None:
    """Return what of a chunk is compressed; None: nothing."""
    _, _, rest = data.partition(b"\0")
    if name in (b"zTXt", b"iCCP"):
        return rest[1:]
    if name == b"iTXt" and rest[:1] == b"\x01":
        return rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    return None


def end_of_image(file: bytes) -> int:
    """Return where the image ends and something else may begin; the file's length where that can't be told."""
    try:
        if file.startswith(b"\xff\xd8"):
            return _jpeg_end(file)
        if file.startswith(b"\x89PNG"):
            return _png_end(file)
        if file.startswith(b"GIF8"):
            return _gif_end(file)
        if file.startswith(b"RIFF"):
            size: int = struct.unpack_from("<I", file, 4)[0]
            return 8 + size
    except (struct.error, IndexError):
        # It ends within a part.
        return len(file)
    return len(file)


def _jpeg_end(file: bytes) -> int:
    at, scans = 2, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _MARKER.search(file, at)
        if found is None:
            break
        marker, at = found[1][0], found.end()
        if marker == _END_OF_IMAGE and scans:
            return at
        if marker not in (0x01, 0xD8, _END_OF_IMAGE):
            at += struct.unpack_from(">H", file, at)[0]
            scans += marker == _START_OF_SCAN
    return len(file)


def _png_end(file: bytes) -> int:
    at, name = 8, b""
    while name != b"IEND":
        length: int
        length, name = struct.unpack_from(">I4s", file, at)
        at += length + 12
    return at


def _gif_end(file: bytes) -> int:
    at = 13 + (3 << (file[10] & 7) + 1 if file[10] & 0x80 else 0)
    inside = False
    for _ in range(MOST_GIF_BLOCKS):
        if inside:
            inside = file[at] > 0
            at += file[at] + 1
        elif file[at] == ord(";"):
            return at + 1
        elif file[at] == ord("!"):
            inside, at = True, at + 2
        elif file[at] == ord(","):
            # Behind the frame's place stand its colours and the size of its codes.
            at += 11 + (3 << (file[at + 9] & 7) + 1 if file[at + 9] & 0x80 else 0)
            inside = True
        else:
            at += 1
    return len(file)
