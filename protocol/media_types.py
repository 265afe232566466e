"""What a file is, told from its first bytes: for whoever sent it in place of an image. Pure."""

import re

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"\0\0\1\0", "image/x-icon"),
    (b"\0\0\0\x0cjP  ", "image/jp2"),
    (b"\0\0\0\x0cJXL ", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"8BPS", "image/vnd.adobe.photoshop"),
    (b"%PDF-", "application/pdf"),
    (b"%!PS", "application/postscript"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "video/webm"),
)
_BRANDS = (
    (("avif", "avis"), "image/avif"),
    (("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"), "image/heic"),
)
"""Of files in the container of MP4."""
_RIFF = ((b"WEBP", "image/webp"), (b"WAVE", "audio/wav"), (b"AVI ", "video/x-msvideo"))
_MARKUP = (
    (re.compile(rb"(?is)(?:<\?xml.{0,1000}|<!--.{0,1000}|<!doctype svg.{0,1000})?\s*<svg[\s>]"), "image/svg+xml"),
    (re.compile(rb"(?i)<(?:!doctype html|html|head|body|script)"), "text/html"),
    (re.compile(rb"(?i)<\?xml"), "text/xml"),
    (re.compile(rb"\s*[\[{]\s*[\"\[{}\]]"), "application/json"),
)
IMAGES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
"""What is taken."""
_LOOKED_AT_BYTES = 2048


def name_media(data: bytes) -> str:
    """Return the media type of a file; `nothing` for an empty one."""
    if not data:
        return "nothing"
    start = bytes(data[:_LOOKED_AT_BYTES])
    for magic, name in _STARTS:
        if start.startswith(magic):
            return name
    if start[4:8] == b"ftyp":
        brands = start[8:64].decode("latin-1")
        return next((name for known, name in _BRANDS if any(brand in brands for brand in known)), "video/mp4")
    if start.startswith(b"RIFF"):
        return next((name for kind, name in _RIFF if start[8:12] == kind), "application/octet-stream")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _MARKUP:
        if pattern.match(text):
            return name
    return "text/plain" if _is_text(start) else "application/octet-stream"


def _is_text(start: bytes) -> bool:
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in start):
        return False
    try:
        # The end may lie within a character.
        start.decode() if len(start) < _LOOKED_AT_BYTES else start[:-4].decode(errors="strict")
    except UnicodeDecodeError as error:
        return error.start > len(start) - 8 and len(start) >= _LOOKED_AT_BYTES
    return True
