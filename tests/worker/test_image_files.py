"""Image files from strangers: what is decoded, to what; what is refused, how fast, and at what cost."""

import io
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protocol.errors import Code, JobError
from worker.image_files import LOW_PIXELS, MAX_FILE_BYTES, decode

SIZE = (40, 24)
REFUSED_S = 1.0


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A few kilobytes that unpack to `width` x `height` black pixels, one bit each."""
    return png(width, height, zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9), bits=1)


def archive() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("a.txt", "hello")
    return data.getvalue()


RED = Image.new("RGB", SIZE, (255, 0, 0))
PLAIN = saved(RED, "PNG")


def quadrants() -> Image.Image:
    """Red, green, blue and white, so that it shows which side is up."""
    image = Image.new("RGB", SIZE, (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, 20, 12))
    image.paste((0, 255, 0), (20, 0, 40, 12))
    image.paste((0, 0, 255), (0, 12, 20, 24))
    return image


@pytest.mark.parametrize(
    ("file", "colour"),
    [
        (PLAIN, (255, 0, 0)),
        (saved(RED, "JPEG", quality=95), (254, 0, 0)),
        (saved(RED, "WEBP", lossless=True), (255, 0, 0)),
        (saved(RED, "GIF"), (255, 0, 0)),
        (saved(RED.quantize(4), "PNG"), (255, 0, 0)),
        (saved(RED.convert("CMYK"), "JPEG", quality=95), (254, 0, 0)),
        (saved(Image.new("L", SIZE, 128), "PNG"), (128, 128, 128)),
        (saved(Image.new("LA", SIZE, (0, 0)), "PNG"), (255, 255, 255)),
        (saved(Image.new("1", SIZE, 1), "PNG"), (255, 255, 255)),
        (saved(Image.new("RGBA", SIZE, (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (saved(Image.new("RGBA", SIZE, (0, 0, 0, 128)), "WEBP", lossless=True), (127, 127, 127)),
        (png(40, 24, zlib.compress((b"\0" + b"\x80\0" * 40) * 24), bits=16), (128, 128, 128)),
        (saved(RED.quantize(4), "GIF", transparency=0), (255, 255, 255)),
    ],
)
def test_every_kind_becomes_plain_rgb(file: bytes, colour: tuple[int, int, int]) -> None:
    """Palettes, grey, 16 bits, CMYK, transparency on white: always RGB of the file's size."""
    image = decode(file, "images[0]")
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert np.abs(np.asarray(image, dtype=int) - colour).max() <= 2


def with_chunks(*chunks: bytes) -> bytes:
    """A plain PNG with more behind its head."""
    return PLAIN[:33] + b"".join(chunks) + PLAIN[33:]


NOISE = np.random.default_rng(7).bytes(3_000_000)
WORDS = b"<svg onload=a()> <script > <html> %PDF-1.7 <?php PK\x05\x06" + bytes(18)
METADATA = {
    "a colour profile of 3 MB": with_chunks(chunk(b"iCCP", b"p\0\0" + zlib.compress(NOISE))),
    "a profile that packs well": with_chunks(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(5_000_000)))),
    "a packed text of 2 MB": with_chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2_000_000))),
    "another packed text": with_chunks(chunk(b"iTXt", b"a\0\1\0en\0b\0" + zlib.compress(b"x" * 2_000_000))),
    "a long plain text": with_chunks(chunk(b"iTXt", b"a\0\0\0\0\0" + b"x" * 2_000_000)),
    "twenty packed texts": with_chunks(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 20),
    "a broken profile": with_chunks(chunk(b"iCCP", b"p\0\0no zlib")),
    "a text behind its pixels": PLAIN[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))) + PLAIN[-12:],
    "words in a text": with_chunks(chunk(b"tEXt", b"a\0" + WORDS)),
    "words in a text at its end": PLAIN[:-12] + chunk(b"tEXt", b"a\0" + WORDS) + PLAIN[-12:],
    "words in a comment of a GIF": saved(RED, "GIF", comment=WORDS),
    "words in a comment of a JPEG": saved(RED, "JPEG", quality=95, comment=WORDS),
    "words in XMP of a WebP": saved(RED, "WEBP", lossless=True, xmp=WORDS),
    "a profile of a megabyte in a JPEG": saved(RED, "JPEG", quality=95, icc_profile=NOISE[:1_000_000]),
    "a profile in a WebP": saved(RED, "WEBP", lossless=True, icc_profile=NOISE),
    "a broken note of the camera": saved(RED, "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + WORDS),
    "a film behind a photo": saved(RED, "JPEG", quality=95) + b"\0\0\0\x18ftypmp42" + NOISE[:10_000],
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", METADATA)
def test_image_is_decoded_when_its_metadata_is_large_or_odd(name: str) -> None:
    """No model sees it: its size, its words and its faults say nothing of the pixels."""
    image = decode(METADATA[name], "images[0]")
    assert image.size == SIZE
    assert np.abs(np.asarray(image, dtype=int) - (255, 0, 0)).max() <= 2


def test_image_stands_upright_when_a_packed_text_says_so() -> None:
    """ImageMagick writes the camera's note like that; a large profile beside it is left out all the same."""
    note = Image.Exif()
    note[0x0112] = 6
    raw = note.tobytes()
    text = b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n"
    packed = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    file = with_chunks(chunk(b"iCCP", b"p\0\0" + zlib.compress(NOISE)), packed)
    assert decode(file, "images[0]").size == (SIZE[1], SIZE[0])


KINDS = {
    "png, interlaced": png(40, 24, zlib.compress((b"\0" + b"\xff\0\0" * 40) * 24), colour=2),
    "png, 16 bits a colour": png(40, 24, zlib.compress((b"\0" + b"\xff\xff\0\0\0\0" * 40) * 24), bits=16, colour=2),
    "png, palette with transparency": saved(RED.quantize(4), "PNG", transparency=3),
    "jpeg, progressive": saved(RED, "JPEG", quality=95, progressive=True),
    "jpeg, every colour in full": saved(RED, "JPEG", quality=95, subsampling=0),
    "mpo": saved(RED, "MPO", quality=95, save_all=True, append_images=[quadrants()]),
    "apng": saved(RED, "PNG", save_all=True, append_images=[quadrants()]),
}


@pytest.mark.parametrize("name", KINDS)
def test_image_is_decoded_when_it_is_of_an_unusual_kind(name: str) -> None:
    """The first picture counts, in full colours."""
    image = decode(KINDS[name], "images[0]")
    assert image.size == SIZE
    assert np.abs(np.asarray(image, dtype=int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_counts(form: str) -> None:
    """The others are not looked at."""
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "green", "blue")]
    file = saved(
        frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    assert decode(file, "images[0]").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_stands_upright(orientation: int) -> None:
    """As the camera's note says, all eight of them."""
    upright = quadrants()
    # What a viewer would do to the stored image, undone.
    undone = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undone[orientation]) if orientation > 1 else upright
    note = Image.Exif()
    note[0x0112] = orientation
    image = decode(saved(stored, "PNG", exif=note), "images[0]")
    assert image.size == SIZE
    assert np.array_equal(np.asarray(image), np.asarray(upright))


def test_low_detail_is_half_a_kilopixel_square() -> None:
    """The proportions stay; what is small already stays as it is."""
    image = decode(saved(Image.new("L", (2000, 1000)), "PNG"), "images[0]", low=True)
    assert LOW_PIXELS * 0.98 <= image.width * image.height <= LOW_PIXELS
    assert abs(image.width / image.height - 2) < 0.01
    assert decode(PLAIN, "images[0]", low=True).size == SIZE


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is no PNG"),
    "text": (lambda: b"hello, world", "is no PNG"),
    "path": (lambda: b"/etc/passwd", "is no PNG"),
    "file URL": (lambda: b"file:///etc/passwd", "is no PNG"),
    "HTML": (lambda: b"<html><body><img src='file:///etc/passwd'></body></html>", "is no PNG"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>', "is no PNG"),
    "PDF": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj", "is no PNG"),
    "BMP": (lambda: saved(RED, "BMP"), "is no PNG"),
    "TIFF": (lambda: saved(RED, "TIFF"), "is no PNG"),
    "ICO": (lambda: saved(Image.new("RGB", (32, 32)), "ICO"), "is no PNG"),
    "PPM": (lambda: saved(RED, "PPM"), "is no PNG"),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no PNG"),
    "ZIP": (archive, "is no PNG"),
    "noise": (lambda: np.random.default_rng(1).bytes(5000), "is no PNG"),
    "only a head": (lambda: PLAIN[:33], "is no PNG"),
    "truncated PNG": (lambda: saved(Image.effect_noise((200, 200), 90), "PNG")[:9000], "can't be decoded"),
    "truncated JPEG": (lambda: saved(Image.effect_noise((200, 200), 90), "JPEG")[:9000], "can't be decoded"),
    "truncated WebP": (lambda: saved(Image.effect_noise((200, 200), 90), "WEBP")[:2000], "is no|can't be decoded"),
    "truncated GIF": (lambda: saved(Image.effect_noise((200, 200), 90), "GIF")[:9000], "can't be decoded"),
    "wrong checksum": (lambda: PLAIN[:30] + bytes([PLAIN[30] ^ 1]) + PLAIN[31:], "is no|can't be decoded"),
    "broken pixels": (lambda: png(40, 24, b"not zlib at all"), "can't be decoded"),
    "bomb of 81 megapixels": (lambda: bomb(9000, 9000), "9000 x 9000 pixels"),
    "bomb of 100 megapixels": (lambda: bomb(10_000, 10_000), "too many pixels"),
    "bomb of 400 megapixels": (lambda: bomb(20_000, 20_000), "too many pixels"),
    "claims 4 gigapixels": (lambda: png(65_535, 65_535, b""), "too many pixels"),
    "GIF claims 4 gigapixels": (lambda: b"GIF89a" + b"\xff" * 4 + b"\0" * 20, "too many pixels|is no PNG"),
    "one pixel too many": (lambda: bomb(33_000_001, 1), "33000001 x 1 pixels"),
    "comment bomb": (
        lambda: PLAIN[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))) + PLAIN[33:],
        "is no|can't be decoded",
    ),
    "too large": (lambda: PLAIN + bytes(MAX_FILE_BYTES), "at most 20000000"),
    "PNG and ZIP": (lambda: PLAIN + archive(), "something else besides"),
    "JPEG and ZIP": (lambda: saved(RED, "JPEG") + archive(), "something else besides"),
    "PNG and HTML": (lambda: PLAIN + b"<html><script>alert(1)</script></html>", "something else besides"),
    "GIF and script": (lambda: saved(RED, "GIF") + b"<script>alert(1)</script>", "something else besides"),
    "JPEG and PHP": (lambda: saved(RED, "JPEG") + b"<?php system('id'); ?>", "something else besides"),
    "PDF around a JPEG": (lambda: b"%PDF-1.7\n" + saved(RED, "JPEG"), "found application/pdf"),
    "GIF, animated, and ZIP": (
        lambda: saved(RED, "GIF", save_all=True, append_images=[quadrants()]) + archive(),
        "something else besides",
    ),
    "WebP and HTML": (lambda: saved(RED, "WEBP") + b"<html></html>", "something else besides"),
    "progressive JPEG and SVG": (
        lambda: saved(quadrants(), "JPEG", progressive=True) + b"<svg onload='a()'/>",
        "something else besides",
    ),
    "profile bomb": (
        lambda: PLAIN[:33] + chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(50_000_000))) + PLAIN[33:],
        "metadata unpacks to more than",
    ),
    "many texts of a megabyte": (
        lambda: PLAIN[:33] + chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(1_000_000))) * 50 + PLAIN[33:],
        "metadata unpacks to more than",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_at_once(name: str) -> None:
    """Within a second of computing, for the caller to read, without memory for what the file claims to hold."""
    make, says = HOSTILE[name]
    file = make()
    before_bytes = _peak_bytes()
    began = time.thread_time()
    with pytest.raises(JobError, match=says) as refused:
        decode(file, "images[3]")
    assert time.thread_time() - began < REFUSED_S
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "images[3]")
    assert _peak_bytes() - before_bytes < 40_000_000


def test_bomb_is_a_small_file() -> None:
    """Else the table above would prove nothing."""
    assert len(bomb(9000, 9000)) < 12_000


def test_largest_image_is_taken() -> None:
    """33 megapixels are the bound; at it, an image is decoded."""
    assert decode(bomb(8250, 4000), "images[0]").size == (8250, 4000)


def _peak_bytes() -> int:
    """The most that this process ever held: what a refusal must not raise."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
