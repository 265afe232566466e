"""Vectors of image files, and how alike the images are. Usage: embed_image.py [URL [IMAGE...]]; needs no library.

The pool's embedding model has to take images: the one that `scripts/serve` brings takes texts only.
"""

import json
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen


def square(colour: bytes, size: int = 64) -> bytes:
    """Return a PNG, for want of a better picture."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress((b"\0" + colour * size) * size),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def post(path: str, body: bytes, kind: str) -> Any:
    """Send a body, read JSON; end with the pool's own words where it refuses."""
    try:
        with urlopen(Request(url + path, body, {"Content-Type": kind})) as response:
            return json.load(response)
    except HTTPError as error:
        refused = json.load(error)["error"]
        hint = " (serve one that does: scripts/serve --embedding MODEL)" if error.code == 400 else ""
        sys.exit(refused["message"] + hint)
    except URLError as error:
        sys.exit(f"There is no pool at {url}: {error.reason}. Start one with scripts/serve.")


def form(files: dict[str, bytes]) -> bytes:
    """Return what `curl -F file=@a.png -F file=@b.png` sends."""
    head = '--{}\r\nContent-Disposition: form-data; name="file"; filename="{}"\r\n\r\n'
    parts = [head.format(BOUNDARY, name).encode() + data + b"\r\n" for name, data in files.items()]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


BOUNDARY = "a-line-that-is-in-no-image"
url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("POOL_URL", "http://127.0.0.1:8000")
images = {Path(path).name: Path(path).read_bytes() for path in sys.argv[2:]}
images = images or {"red": square(b"\xff\0\0"), "blue": square(b"\0\0\xff"), "dark red": square(b"\xc0\0\0")}

answer = post("/embed/image", form(images), f"multipart/form-data; boundary={BOUNDARY}")
count, dimensions = answer["shape"]
print(f"[{answer['model']}: {count} vectors of {dimensions} dimensions in {answer['processing_time']:.3f} s]")

if count > 1:
    names = [*images]
    body = {"left": answer["embeddings"], "top_k": 3}
    for pair in post("/similarity", json.dumps(body).encode(), "application/json")["pairs"]:
        print(f"{pair['score']:.2f} {names[pair['left']]} = {names[pair['right']]}")
