"""Images inside their URL (RFC 2397): base64 to bytes, with their digest, in one pass."""

import binascii
import hashlib
import io
import re
from typing import NamedTuple

from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import MAX_IMAGE_BYTES

CHUNK = 1 << 16
"""Characters decoded at a time. Hashing the outcome lets other threads run in between."""

_HEAD = re.compile(
    r"data:(?:[\w.+-]{1,64}/[\w.+-]{1,64})?(?:;[^;,]{0,128}){0,8}?;base64[ ]{0,8},", re.IGNORECASE | re.ASCII
)
"""Whatever it calls the file: what it is, the file's own first bytes say."""
_HEAD_LENGTH = 2048
_ESCAPES = tuple(
    (escape.encode(), character)
    for character in (b"+", b"/", b"=", b"\n", b"\r", b" ")
    for escape in sorted({f"%{character[0]:02X}", f"%{character[0]:02x}"})
)
"""What some clients write in a URL for characters of base64."""
_STANDARD = bytes.maketrans(b"-_", b"+/")
_BLANKS = b" \t\r\n"


class ImageFile(NamedTuple):
    """A whole file and its SHA-256."""

    data: bytes
    digest: bytes


def read_inline(url: str, where: str) -> ImageFile:
    """Decode a data: URL. Raises `ApiError` with `where` as its `param`.

    Takes 4 ms per MB, during which other threads get their turns.
    """
    head = _HEAD.match(url, 0, _HEAD_LENGTH)
    if head is None:
        raise invalid(_name_fault(url), where)
    digest, data = hashlib.sha256(), io.BytesIO()
    rest, ended = b"", False
    for at in range(head.end(), len(url), CHUNK):
        last = at + CHUNK >= len(url)
        text, rest = _take_whole(rest + _ascii(url[at : at + CHUNK], where), last=last)
        if ended and text:
            # Padding, before the end.
            raise invalid("The image is not valid base64: it goes on behind its padding.", where)
        if len(text) % 4 or text.endswith(b"==="):
            raise invalid("The image is not valid base64.", where)
        try:
            piece = binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            raise invalid("The image is not valid base64.", where) from None
        ended = ended or text.endswith(b"=")
        data.write(piece)
        digest.update(piece)
        if data.tell() > MAX_IMAGE_BYTES:
            raise too_large(where)
    return ImageFile(data.getvalue(), digest.digest())


def _ascii(text: str, where: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError:
        raise invalid("The image is not valid base64: it holds characters beyond ASCII.", where) from None


def _take_whole(text: bytes, *, last: bool) -> tuple[bytes, bytes]:
    """Return what of base64 can be decoded, in one alphabet, without blanks, padded at its end; and what is left over.

    Both alphabets, line breaks and missing padding are in use; none of it can mean anything else.
    """
    begun = b""
    if b"%" in text:
        # An escape may be cut in two.
        if not last and (cut := text.rfind(b"%", len(text) - 2)) >= 0:
            text, begun = text[:cut], text[cut:]
        for escape, character in _ESCAPES:
            text = text.replace(escape, character)
    text = text.translate(_STANDARD, _BLANKS)
    if last:
        # Too little padding is made up for, and too much is left in, to be refused.
        return text if b"=" in text[-4:] else text + b"=" * (-len(text) % 4), b""
    whole = len(text) - len(text) % 4
    return text[:whole], text[whole:] + begun


def _name_fault(url: str) -> str:
    head, comma, _ = url[:_HEAD_LENGTH].partition(",")
    if comma and not head.lower().endswith("base64"):
        return "A data: URL must hold its image as base64: 'data:image/png;base64,…'."
    return "A data: URL must begin like 'data:image/png;base64,'."


def too_large(where: str) -> ApiError:
    """Make a 413 that names the image."""
    return ApiError("body_too_large", f"The image is larger than {MAX_IMAGE_BYTES} bytes.", where)
