"""Image files of every format, made when they are needed, and requests that show them."""

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image


def picture(
    size: tuple[int, int] = (8, 6), *, colour: str = "red", form: str = "PNG", mode: str = "RGB", **options: Any
) -> bytes:
    """A file of one colour; `options` are Pillow's for the format."""
    data = io.BytesIO()
    Image.new(mode, size, colour).save(data, form, **options)
    return data.getvalue()


def padded(size_bytes: int, *, colour: str = "red") -> bytes:
    """A valid PNG of exactly so many bytes, most of them a comment."""
    plain = picture(colour=colour)
    end = plain.index(b"IEND") - 4
    comment = b"tEXt" + b"Comment\0" + b"." * (size_bytes - len(plain) - 12 - 8)
    chunk = struct.pack(">I", len(comment) - 4) + comment + struct.pack(">I", zlib.crc32(comment))
    return plain[:end] + chunk + plain[end:]


def data_url(data: bytes, media: str = "image/png") -> str:
    """The file inside its URL."""
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def image_part(url: str, **fields: Any) -> dict[str, Any]:
    """A content part."""
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def showing(*urls: str, text: str = "what is this?", **fields: Any) -> dict[str, Any]:
    """A chat request of one message with a text and images."""
    parts = [{"type": "text", "text": text}, *map(image_part, urls)]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, **fields}
