"""Image files that are made to hurt whoever decodes them: small to send, and large, slow or endless to read.

`hostile_images()`: every one of them has to be refused. `odd_images()`: unusual, and of no harm where only the first
frame is read and metadata is left alone; each may be decoded or refused, at little cost. Nothing here needs an encoder
but the plain files that some are built around.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image

MOST_PIXELS = (5500, 6000)
"""As large as an image may be, so that every pass over it costs most."""
FLOOD_BYTES = 8_000_000
SIZE = (40, 24)


def hostile_images() -> dict[str, bytes]:
    """Return files by kind, a few megabytes each at most; all of them made anew."""
    return {name: make() for name, make in _HOSTILE}


def odd_images() -> dict[str, bytes]:
    """Return files by kind that look dangerous and are not, if they are read with care."""
    return {name: make() for name, make in _ODD}


def ordinary_image() -> bytes:
    """Return a plain photo with as many pixels as an image may have."""
    data = io.BytesIO()
    Image.new("RGB", MOST_PIXELS, "grey").save(data, "JPEG")
    return data.getvalue()


# -- JPEG


def segment(marker: int, data: bytes = b"") -> bytes:
    """Return a JPEG segment with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _tables(*, arithmetic: bool = False) -> bytes:
    quantization = segment(0xDB, bytes(1) + bytes([16]) * 64)
    if arithmetic:
        return quantization
    # One code of one bit each: DC difference 0; a run of 2**14 and more blocks without coefficients.
    lengths = bytes([1] + [0] * 15)
    return quantization + segment(0xC4, b"\x00" + lengths + b"\x00") + segment(0xC4, b"\x10" + lengths + b"\xe0")


def _frame(marker: int, size: tuple[int, int], components: int) -> bytes:
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    return segment(marker, struct.pack(">BHHB", 8, size[1], size[0], components) + parts)


def _scan(components: Iterable[int], first: int, last: int, approximation: int) -> bytes:
    chosen = list(components)
    return segment(
        0xDA,
        bytes([len(chosen)])
        + b"".join(bytes([number + 1, 0]) for number in chosen)
        + bytes([first, last, approximation]),
    )


def _bits(text: str) -> bytes:
    """Return entropy-coded bits, filled up with ones, with the zero behind each byte of ones."""
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00") if text else b""


def scans(
    count: int,
    size: tuple[int, int] = MOST_PIXELS,
    *,
    components: int = 1,
    refine: bool = False,
    marker: int = 0xC2,
    between: bytes = b"",
) -> bytes:
    """Return a progressive JPEG of `count` scans beyond the first: fifty bytes each, and every block visited."""
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    runs = _bits(("0" + "1" * 14) * (blocks // 32_767 + 1))
    zeros = b"\x00" * (blocks * components // 8 + 1)
    body = b"".join(
        between + _scan([number % components], 1, 63, 0x21 if refine and number >= components else 0x02) + runs
        for number in range(count)
    )
    head = b"\xff\xd8" + _tables() + _frame(marker, size, components)
    return head + _scan(range(components), 0, 0, 0) + zeros + body + b"\xff\xd9"


def _arithmetic_scans(count: int) -> bytes:
    head = b"\xff\xd8" + _tables(arithmetic=True) + _frame(0xCA, MOST_PIXELS, 1)
    body = b"".join(_scan([0], 1, 63, 0x00) + bytes(16) for _ in range(count))
    return head + _scan([0], 0, 0, 0) + bytes(16) + body + b"\xff\xd9"


def _sequential_scans(count: int) -> bytes:
    """Return a baseline JPEG that brings its only component again and again."""
    head = b"\xff\xd8" + _tables() + _frame(0xC0, MOST_PIXELS, 1)
    return head + (_scan([0], 0, 63, 0) + bytes(2000)) * count + b"\xff\xd9"


def _plain(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    data = io.BytesIO()
    (image or Image.new("RGB", SIZE, (255, 0, 0))).save(data, form, **options)
    return data.getvalue()


def _before_scan(more: bytes) -> bytes:
    """Return a good JPEG with something in front of its first scan, behind its frame header."""
    file = _plain("JPEG")
    at = file.index(b"\xff\xda")
    return file[:at] + more + file[at:]


def _hidden_segments() -> bytes:
    """Hide two million segments, which libjpeg skips and Pillow looks into, inside of others."""
    inside = segment(0xE5) * 16_000
    return _before_scan(segment(0xF0, inside) * (FLOOD_BYTES // len(inside)))


def _flood(piece: bytes, size_bytes: int = FLOOD_BYTES) -> bytes:
    return piece * (size_bytes // len(piece))


# -- EXIF


def _exif_overlap() -> bytes:
    """Return an EXIF directory of 65,000 tags that share the same 800,000 bytes: 52 GB to who reads them all."""
    count, entries = 800_000, 65_000
    start = 8 + 2 + entries * 12 + 4
    rows = b"".join(struct.pack("<HHII", tag, 7, count, start - count // 2) for tag in range(300, 300 + entries))
    return b"II*\x00" + struct.pack("<IH", 8, entries) + rows + bytes(4) + bytes(count // 2)


def _exif_segments() -> bytes:
    """Return the same in a JPEG's segments of 64 KB, which are put together again."""
    data = _exif_overlap()
    pieces = [data[at : at + 65_000] for at in range(0, len(data), 65_000)]
    return _before_scan(b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces))


# -- PNG


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """Return a PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    size: tuple[int, int] = SIZE,
    rows: bytes | None = None,
    *,
    bits: int = 8,
    colour: int = 0,
    interlace: int = 0,
    before: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """Return a PNG of black pixels, or of `rows` as they are; chunks may stand before and behind its pixels."""
    head = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlace)
    if rows is None:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        rows = _zeros(((size[0] * channels * bits + 7) // 8 + 1) * size[1])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", rows) + behind + chunk(b"IEND")


def _zeros(size_bytes: int) -> bytes:
    """Return so many zeros, compressed."""
    packer, piece = zlib.compressobj(9), bytes(1 << 20)
    made = [packer.compress(piece) for _ in range(size_bytes >> 20)]
    return b"".join([*made, packer.compress(bytes(size_bytes & 0xFFFFF)), packer.flush()])


def _texts(name: bytes, head: bytes, count: int, size_bytes: int) -> bytes:
    return b"".join(chunk(name, b"k%d" % number + head + _zeros(size_bytes)) for number in range(count))


# -- GIF


def gif(
    size: tuple[int, int] = SIZE,
    *,
    screen: tuple[int, int] | None = None,
    before: bytes = b"",
    data: bytes = b"\x02\x02\x44\x01\x00",
    behind: bytes = b"",
) -> bytes:
    """Return a GIF of one frame; extensions may stand before and behind it, the screen may differ in size."""
    head = b"GIF89a" + struct.pack("<HHBBB", *(screen or size), 0x80, 0, 0) + bytes(6)
    return head + before + b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + data + behind + b";"


def _endless_gif() -> bytes:
    """Return a good GIF up to its end mark."""
    return _plain("GIF")[:-1]


def _first_frame_behind(more: bytes) -> bytes:
    file = _plain("GIF")
    at = file.index(b",", 13)
    return file[:at] + more + file[at:]


# -- WebP


def riff(*parts: tuple[bytes, bytes]) -> bytes:
    """Return a WebP container."""
    body = b"WEBP" + b"".join(_part(name, data) for name, data in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _part(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _lossless(width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(64)


def _still(size: tuple[int, int] = SIZE) -> tuple[bytes, bytes]:
    """Return the bit stream of a good lossless file."""
    file = _plain("WEBP", Image.new("RGB", size), lossless=True)
    return b"VP8L", file[20:]


def _animation(frames: int, size: tuple[int, int]) -> bytes:
    part = _part(*_still(size))
    head = bytes(6) + (size[0] - 1).to_bytes(3, "little") + (size[1] - 1).to_bytes(3, "little") + b"\x64\0\0\0"
    return riff(_canvas(*size, 0x02), (b"ANIM", bytes(6)), *[(b"ANMF", head + part)] * frames)


def _animated_gif(frames: int) -> bytes:
    frame = b"!\xf9\x04\x00\x01\x00\x00\x00," + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02\x02\x44\x01\x00"
    return _endless_gif() + frame * frames + b";"


def _animated_png(frames: int) -> bytes:
    control = chunk(b"acTL", struct.pack(">II", frames, 0))
    place = struct.pack(">IIIIHHBB", *SIZE, 0, 0, 1, 1, 0, 0)
    rows = _zeros((SIZE[0] + 1) * SIZE[1])
    more = b"".join(
        chunk(b"fcTL", struct.pack(">I", 2 * number + 1) + place)
        + chunk(b"fdAT", struct.pack(">I", 2 * number + 2) + rows)
        for number in range(frames - 1)
    )
    return png(before=control + chunk(b"fcTL", bytes(4) + place), behind=more)


Make = Callable[[], bytes]

_HOSTILE: tuple[tuple[str, Make], ...] = (
    ("jpeg of 2,000 scans", lambda: scans(2000)),
    ("jpeg of 12,000 scans", lambda: scans(12_000)),
    ("jpeg of 2,000 refining scans", lambda: scans(2000, refine=True)),
    ("jpeg of 2,000 scans in three colours", lambda: scans(2000, components=3)),
    ("jpeg of 2,000 scans in four colours", lambda: scans(2000, components=4)),
    ("jpeg of 300 scans", lambda: scans(300)),
    ("jpeg of 100,000 small scans", lambda: scans(100_000, (64, 64))),
    ("jpeg of 2,000 scans with restart marks between", lambda: scans(2000, between=b"\xff\xd0" * 9)),
    ("jpeg of 2,000 scans with filling between", lambda: scans(2000, between=b"\xff" * 9)),
    ("jpeg of 2,000 arithmetic scans", lambda: _arithmetic_scans(2000)),
    ("jpeg of 2,000 sequential scans", lambda: _sequential_scans(2000)),
    ("jpeg with a flood of exif segments", lambda: _before_scan(_flood(segment(0xE1, b"Exif\0\0" + b"x" * 6)))),
    ("jpeg with a flood of empty segments", lambda: _before_scan(_flood(segment(0xE5)))),
    ("jpeg with a flood of hidden segments", _hidden_segments),
    ("jpeg with a flood of segments behind its end", lambda: b"\xff\xd8\xff\xd9" + _flood(segment(0xE5))),
    ("jpeg of filling alone", lambda: b"\xff\xd8" + _flood(b"\xff") + b"\x00"),
    ("jpeg with a flood of comments", lambda: _before_scan(_flood(segment(0xFE, b"c")))),
    ("jpeg with a flood of tables", lambda: _before_scan(_flood(segment(0xC4, b"\x00" + bytes(16))))),
    ("jpeg with a flood of filling", lambda: _before_scan(_flood(b"\xff"))),
    ("jpeg with a flood of noise between segments", lambda: _before_scan(_flood(b"\x01"))),
    ("jpeg that claims 4 gigapixels", lambda: b"\xff\xd8" + _frame(0xC0, (65_535, 65_535), 3) + bytes(99)),
    ("jpeg of 12 bits", lambda: b"\xff\xd8" + segment(0xC1, b"\x0c\x00\x09\x00\x09\x01\x01\x11\x00") + bytes(99)),
    ("jpeg of seven components", lambda: b"\xff\xd8" + _frame(0xC0, SIZE, 7) + bytes(99)),
    ("jpeg without a height", lambda: b"\xff\xd8" + _tables() + _frame(0xC0, (40, 0), 1) + _scan([0], 0, 63, 0)),
    ("jpeg cut off", lambda: _plain("JPEG", Image.effect_noise((200, 200), 90))[:9000]),
    ("jpeg without an end", lambda: scans(5)[:40_000]),
    ("png of 81 megapixels", lambda: png((9000, 9000), bits=1)),
    ("png that claims 4 gigapixels", lambda: png((65_535, 65_535), b"")),
    ("png of a line too long", lambda: png((33_000_001, 1), bits=1)),
    ("png with a flood of chunks", lambda: png(before=_flood(chunk(b"teSt")))),
    ("png with a flood of chunks behind", lambda: png(behind=_flood(chunk(b"teSt")))),
    ("png with a flood of empty pixels", lambda: png(before=_flood(chunk(b"IDAT")))),
    ("png with a flood of texts", lambda: png(before=_flood(chunk(b"tEXt", b"a\0b")))),
    ("png whose text unpacks to 100 MB", lambda: png(before=_texts(b"zTXt", b"\0\0", 1, 100_000_000))),
    ("png of 100 texts of a megabyte", lambda: png(before=_texts(b"zTXt", b"\0\0", 100, 1_000_000))),
    ("png whose other text unpacks to 100 MB", lambda: png(before=_texts(b"iTXt", b"\0\1\0\0\0", 1, 100_000_000))),
    ("png whose profile unpacks to 100 MB", lambda: png(before=chunk(b"iCCP", b"p\0\0" + _zeros(100_000_000)))),
    ("png cut off", lambda: _plain("PNG", Image.effect_noise((200, 200), 90))[:9000]),
    ("png of too few rows", lambda: png((5500, 6000), _zeros(1000))),
    ("png of broken pixels", lambda: png(rows=b"\x78\x9c no zlib")),
    ("png whose chunk is longer than it", lambda: png()[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(99)),
    ("gif that claims 4 gigapixels", lambda: gif((65_535, 65_535))),
    ("gif whose frame is larger than its screen", lambda: gif((65_535, 65_535), screen=(1, 1))),
    ("gif with a flood of comments", lambda: _first_frame_behind(_flood(b"!\xfe\x01c\x00"))),
    ("gif with a flood of extensions", lambda: _first_frame_behind(_flood(b"!\xff\x00"))),
    ("gif with a flood of noise", lambda: _first_frame_behind(_flood(b"\x01"))),
    ("gif with an endless comment", lambda: _first_frame_behind(b"!\xfe" + _flood(b"\x01c") + b"\x00")),
    ("gif of 33 megapixels without data", lambda: gif(MOST_PIXELS, data=b"\x02\x00")),
    ("gif cut off", lambda: _plain("GIF", Image.effect_noise((200, 200), 90))[:9000]),
    ("webp that claims 268 megapixels", lambda: riff(_lossless(16_383, 16_383))),
    ("webp with a canvas of 281 terapixels", lambda: riff(_canvas(1 << 24, 1 << 24), _still())),
    ("webp with a canvas larger than its picture", lambda: riff(_canvas(6000, 5500), _still())),
    ("webp of zeros", lambda: riff(_lossless(*MOST_PIXELS))),
    ("webp cut off", lambda: _plain("WEBP", Image.effect_noise((200, 200), 90))[:2000]),
    ("webp without a frame", lambda: riff(_canvas(*SIZE, 0x02), (b"ANIM", bytes(6)))),
    ("icon with a png", lambda: _plain("ICO", Image.new("RGB", (32, 32)))),
    ("tiff", lambda: _plain("TIFF")),
    ("svg", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>'),
)

_ODD: tuple[tuple[str, Make], ...] = (
    ("gif of 100,000 frames", lambda: _animated_gif(100_000)),
    ("gif with a flood of extensions behind", lambda: _endless_gif() + _flood(b"!\xff\x00") + b";"),
    ("png of 2,000 frames", lambda: _animated_png(2000)),
    ("png that claims 4 billion frames", lambda: png(before=chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0)))),
    ("png whose pixels go on for 100 MB", lambda: png(rows=_zeros(100_000_000))),
    ("png of 33 megapixels, interlaced", lambda: png(MOST_PIXELS, _zeros(7_000_000), bits=1, interlace=1)),
    ("png of one line", lambda: png((33_000_000, 1), bits=1)),
    ("png of one column", lambda: png((1, 1_000_000), bits=1)),
    ("webp of 5,000 frames", lambda: _animation(5000, SIZE)),
    ("webp with a flood of parts", lambda: riff(_canvas(*SIZE), _still(), *[(b"teSt", b"")] * 500_000)),
    ("jpeg of 30 large scans in three colours", lambda: scans(30, components=3)),
    ("jpeg of 18 scans", lambda: scans(18)),
    ("jpeg with restart marks for data", lambda: _before_scan(segment(0xDD, b"\0\1")) + _flood(b"\xff\xd0")),
    ("jpeg of 30 small scans", lambda: scans(30, (640, 480))),
    ("jpeg whose exif overlaps itself", _exif_segments),
    ("png whose exif overlaps itself", lambda: png(before=chunk(b"eXIf", _exif_overlap()))),
    ("png whose exif overlaps itself, behind", lambda: png(behind=chunk(b"eXIf", _exif_overlap()))),
    ("webp whose exif overlaps itself", lambda: riff(_canvas(*SIZE, 0x08), _still(), (b"EXIF", _exif_overlap()))),
)
