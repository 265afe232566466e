"""Image files from strangers: what may be decoded, and how it becomes plain RGB. Pillow only: neither MLX nor NumPy.

The header is read first; pixels are decoded only of a file of a known kind, a bearable build and a bearable size.
Whatever is wrong with a file is its sender's error. Engines call this in a process that may be killed, through
`worker.decoding`.
"""

import io
import re
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageOps

from protocol.errors import Code, JobError
from protocol.media_types import IMAGES, name_media
from worker.decoding.metadata import MOST_UNPACKED_BYTES, TooMuchMetadataError, end_of_image, strip_metadata
from worker.decoding.structure import has_too_many_parts

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_FILE_BYTES = 20_000_000
MAX_PIXELS = 33_000_000
LOW_PIXELS = 512 * 512
"""What `detail: low` leaves of an image; OpenAI's size for it."""
ZIP_END = b"PK\x05\x06"
ZIP_END_BYTES = 22 + 65_535
"""Where a ZIP's end record has to be, its comment included."""
_FOREIGN = re.compile(rb"%PDF-|<(?:script|html|svg|!doctype|\?php)[\s>]", re.IGNORECASE)
"""What only a file that is something else as well has behind its image."""


def decode(
    file: bytes, param: str, *, low: bool = False, sized: Callable[[int, int], None] = lambda _width, _height: None
) -> Image.Image:
    """Return the first frame of an image file, upright, on white, as RGB. Raises `JobError` that names `param`.

    `sized` is called with width and height once they are known, before pixels are decoded.
    """
    if len(file) > MAX_FILE_BYTES:
        raise _refusal(param, f"has {len(file)} bytes; at most {MAX_FILE_BYTES} are taken")
    if (found := name_media(file)) not in IMAGES:
        raise _refusal(param, f"is no PNG, JPEG, WebP or GIF file: found {found}")
    if has_too_many_parts(file):
        raise _refusal(param, "can't be decoded: the file is made of too many parts")
    _refuse_disguise(file, found, param)
    try:
        image = Image.open(io.BytesIO(strip_metadata(file)), formats=FORMATS)
    except TooMuchMetadataError:
        raise _refusal(
            param, f"can't be decoded: its metadata unpacks to more than {MOST_UNPACKED_BYTES} bytes"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _refusal(param, f"has too many pixels; at most {MAX_PIXELS} are taken") from None
    except MemoryError:
        raise
    except Exception:
        raise _refusal(
            param, f"is no PNG, JPEG, WebP or GIF file that can be opened: found {found}, damaged at its beginning"
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _refusal(param, f"has {width} x {height} pixels; at most {MAX_PIXELS} are taken")
    sized(width, height)
    try:
        with image:
            image.load()
            plain = _plain(_turned_upright(image))
    except MemoryError:
        raise
    except Exception:
        # Truncated or malformed somewhere behind the header: decoders raise all kinds of things.
        raise _refusal(param, "can't be decoded: the file is damaged") from None
    if low and width * height > LOW_PIXELS:
        scale = (LOW_PIXELS / (width * height)) ** 0.5
        size = (max(1, int(plain.width * scale)), max(1, int(plain.height * scale)))
        plain = plain.resize(size, Image.Resampling.BICUBIC)
    return plain


def _turned_upright(image: Image.Image) -> Image.Image:
    """Return an image as its camera's note says; as it is stored where the note can't be read."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        # Notes are written by thousands of programs, and many are cut or wrong. The pixels are good.
        return image


def _plain(image: Any) -> Image.Image:
    """RGB of any mode that the four formats have."""
    if image.mode.startswith("I;16"):
        # Pillow would clip to 255 what has 65,535 shades: the upper byte of each.
        upper = 0 if image.mode.endswith("B") else 1
        image = Image.frombytes("L", image.size, image.tobytes()[upper::2])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    plain: Image.Image = image.convert("RGB")
    return plain


def _refuse_disguise(file: bytes, found: str, param: str) -> None:
    """Refuse an image that a page or an archive hangs on. What stands in its metadata is only text."""
    behind = file[end_of_image(file) :]
    end = behind[-ZIP_END_BYTES:]
    at = end.rfind(ZIP_END)
    # Behind the mark, 16 bytes on, stands the length of the comment that ends the archive.
    is_archive = at >= 0 and at + 22 + int.from_bytes(end[at + 20 : at + 22], "little") <= len(end)
    if is_archive or _FOREIGN.search(behind[:1024]) or _FOREIGN.search(end):
        raise _refusal(param, f"is {found} and something else besides: a page, a document or an archive hangs on it")


def _refusal(param: str, what: str) -> JobError:
    return JobError(Code.INVALID_REQUEST, f"The image {what}.", param)
