"""Ask about an image with the OpenAI client. Usage: vision.py [URL [IMAGE]], IMAGE being a file or an http(s) URL."""

import base64
import mimetypes
import os
import struct
import sys
import zlib
from pathlib import Path

from openai import OpenAI


def red_square(size: int = 64) -> bytes:
    """Return a PNG, for want of a better picture."""
    rows = (b"\0" + b"\xff\0\0" * size) * size
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def image_url(source: str | None) -> str:
    """Return what goes into the request: an http(s) URL, which the pool fetches, or a file inside a data: URL."""
    if source is not None and source.startswith(("http://", "https://")):
        return source
    data = red_square() if source is None else Path(source).read_bytes()
    media = "image/png" if source is None else mimetypes.guess_type(source)[0]
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")

# Without a model of that kind, the pool would say so with a 400 that names the image.
model = next((model.id for model in client.models.list() if (model.model_extra or {})["kind"] == "vision"), None)
if model is None:
    sys.exit("this pool serves no vision model")

answer = client.chat.completions.create(
    model=model,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What colour is this?"},
                {"type": "image_url", "image_url": {"url": image_url(sys.argv[2] if len(sys.argv) > 2 else None)}},
            ],
        }
    ],
    max_tokens=64,
)
print(answer.choices[0].message.content)
if answer.usage:
    print(f"[{model}: {answer.usage.prompt_tokens} tokens in, {answer.usage.completion_tokens} out]")
