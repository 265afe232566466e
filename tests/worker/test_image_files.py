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
    "GIF with a page for a comment": (lambda: saved(RED, "GIF", comment=b"<script >a()</script>"), "something else"),
    "JPEG and PHP": (lambda: saved(RED, "JPEG") + b"<?php system('id'); ?>", "something else besides"),
    "PDF around a JPEG": (lambda: b"%PDF-1.7\n" + saved(RED, "JPEG"), "something else besides"),
    "PNG with SVG in a comment": (
        lambda: PLAIN[:33] + chunk(b"tEXt", b"a\0<svg onload=alert(1)>") + PLAIN[33:],
        "something else besides",
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
