"""Image files that are small and take a decoder very long, or very much memory. Made here, byte by byte."""

import io
import struct
import zlib

from PIL import Image

SIDE = 5700
"""Pixels: 5,700 x 5,700 are just within the bound of 33 megapixels."""
SCANS = 2000


def hostile_pictures() -> dict[str, bytes]:
    """Files by what is wrong with them."""
    return {
        "JPEG of 2,000 scans": scans(SCANS),
        "JPEG cut off": _jpeg(2048)[:4000],
        "PNG of one colour, 32 megapixels": _png(SIDE, SIDE, bytes(1 + SIDE * 3), rows=SIDE),
        "PNG whose pixels unpack to 20 times its size": _png(64, 64, bytes(1 + 64 * 3), rows=64 * 20_000),
        "PNG with a text of 512 MB": _text_bomb(512),
        "PNG with a profile of 256 MB": _profile_bomb(256),
        "PNG with 200,000 chunks": _many_chunks(200_000),
        "PNG cut off": _png(SIDE, SIDE, bytes(1 + SIDE * 3), rows=SIDE)[:2000],
        "GIF of 4,000 frames": _gif_frames(4000),
        "WebP of 32 megapixels": _saved(SIDE, "WEBP", quality=1),
        "WebP, lossless, 32 megapixels": _saved(SIDE, "WEBP", lossless=True),
        "JPEG, progressive, 32 megapixels": _jpeg(SIDE, progressive=True),
        "JPEG with 900 segments of metadata": _segments(900),
    }


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is decoded over the whole picture."""
    data = _jpeg(4096, progressive=True)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    # The last scan, with the tables before it: from the last entropy-coded data's end to the end of the image.
    last, end = starts[-1], data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * min(count, (19 << 20) // max(1, end - last)) + data[end:]


def _saved(side: int, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(data, form, **options)
    return data.getvalue()


def _jpeg(side: int, **options: object) -> bytes:
    return _saved(side, "JPEG", quality=10, **options)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, row: bytes, *, rows: int, extra: bytes = b"") -> bytes:
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(row) for _ in range(rows)), packer.flush()])
    top = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return top + extra + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _zeros(megabytes: int) -> bytes:
    packer, zeros = zlib.compressobj(9), bytes(1 << 20)
    return b"".join([*(packer.compress(zeros) for _ in range(megabytes)), packer.flush()])


def _text_bomb(megabytes: int) -> bytes:
    return _png(8, 8, bytes(25), rows=8, extra=_chunk(b"zTXt", b"Comment\0\0" + _zeros(megabytes)))


def _profile_bomb(megabytes: int) -> bytes:
    return _png(8, 8, bytes(25), rows=8, extra=_chunk(b"iCCP", b"p\0\0" + _zeros(megabytes)))


def _many_chunks(count: int) -> bytes:
    return _png(8, 8, bytes(25), rows=8, extra=_chunk(b"tEXt", b"a\0b") * count)


def _gif_frames(count: int) -> bytes:
    data = io.BytesIO()
    Image.new("P", (512, 512)).save(data, "GIF")
    one = data.getvalue()
    # Header, screen and palette stand before the first frame's descriptor; the trailer ends the file.
    at = one.index(b"\x2c")
    return one[:at] + one[at:-1] * count + one[-1:]


def _segments(count: int) -> bytes:
    plain = _jpeg(64)
    comment = b"\xff\xfe" + struct.pack(">H", 20_002) + b"a" * 20_000
    return plain[:2] + comment * count + plain[2:]
