"""Reading a multipart/form-data body: fields as a checked request, files as images. Streamed; nothing touches a disk.

A part is refused as soon as it has one byte too many, whatever length was declared.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from aiohttp import BodyPartReader, MultipartReader, StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.bodies.pace import Pace
from gateway.context import IGNORED
from gateway.media.image_resolver import Hold, check_image
from gateway.media.inline import ImageFile, too_large
from gateway.memory_account import SHARE, MemoryShare
from gateway.schema.base import Request
from gateway.schema.decode import check
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import MAX_IMAGE_BYTES, MAX_IMAGES
from gateway.schema.parts.embed_options import places

R = TypeVar("R", bound=Request)

FORM_BYTES = 100 * 1024 * 1024
"""Largest multipart body."""
FIELD_BYTES = 1024 * 1024
"""Largest field that is no file."""
FIELDS_BYTES = 4 * 1024 * 1024
"""All of them together."""
MAX_PARTS = 128
MAX_HEADERS = 16
MAX_LINES = MAX_PARTS * (MAX_HEADERS + 4)
"""Of boundaries, headers, and whatever stands before the first part: reading lines is slow work."""
CHUNK = 1 << 16
_PLAIN = frozenset({"", "7bit", "8bit", "binary"})


async def read_form(
    request: web.Request,
    kind: type[R],
    *,
    file: str,
    beside: Mapping[str, Any],
    hold: Hold,
    admit: Callable[[str | None], None],
) -> tuple[R, list[ImageFile]]:
    """Read fields as a checked `kind`, over those given `beside` them, and the images that came as `file`, 1 to 16.

    A field that comes several times is a list. `hold` counts the images. `admit` is asked before the first of them is
    read, with the name of the model if that came before it; it may raise. Raises `ApiError`.
    """
    if request.content_length is not None and request.content_length > FORM_BYTES:
        raise _too_large()
    fields: dict[str, list[str]] = {}
    files: list[ImageFile] = []
    share, room = request[SHARE], FIELDS_BYTES
    try:
        reader = MultipartReader(
            request.headers,
            _Bounded(request.content),  # type: ignore[arg-type]
            max_field_size=8190,
            max_headers=MAX_HEADERS,
        )
        for _ in range(MAX_PARTS):
            part = await reader.next()
            if part is None:
                break
            name = _name(part)
            if name == file:
                if len(files) == MAX_IMAGES:
                    raise invalid(f"At most {MAX_IMAGES} files are allowed.", file)
                if not files:
                    admit(next(iter(fields.get("model", ())), None))
                files.append(await _file(part, f"{file}[{len(files)}]" if files else file, hold))
            else:
                text = await _field(part, name, share, room)
                room -= len(text)
                fields.setdefault(name, []).append(text)
        else:
            raise invalid(f"The body has more than {MAX_PARTS} parts.", None)
    except (ValueError, AssertionError, RuntimeError, HttpProcessingError):
        # What aiohttp's reader raises for boundaries, headers and encodings that are none.
        raise invalid("The body is not valid multipart/form-data.", None) from None
    place = places(file, len(files))
    files = [check_image(one, place(at)) for at, one in enumerate(files)]
    raw = {name: values[0] if len(values) == 1 else values for name, values in fields.items()}
    wanted = check(raw, kind, beside=beside, strict=False, ignored=request[IGNORED])
    if not files:
        raise invalid(f"Missing required parameter: '{file}'.", file)
    return wanted, files


class _Bounded:
    """A body of no more than `FORM_BYTES`, preamble and headers included."""

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self._pace = Pace(content)
        self._lines = 0
        self.unread_data = content.unread_data
        self.at_eof = content.at_eof

    async def read(self, size: int) -> bytes:
        return self._counted(await self._pace.read_in_time(self._content.read(size)))

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        self._lines += 1
        if self._lines > MAX_LINES:
            raise ValueError("too many lines")
        return self._counted(await self._pace.read_in_time(self._content.readline(max_line_length=max_line_length)))

    def _counted(self, data: bytes) -> bytes:
        if self._content.total_bytes > FORM_BYTES:
            raise _too_large()
        return data


def _name(part: BodyPartReader | MultipartReader) -> str:
    if not isinstance(part, BodyPartReader) or not part.name:
        raise invalid("Every part of the body needs a name, and may not have parts itself.", None)
    for header in (hdrs.CONTENT_ENCODING, hdrs.CONTENT_TRANSFER_ENCODING):
        if part.headers.get(header, "").strip().lower() not in _PLAIN:
            raise invalid(f"Parts with a '{header}' are not accepted.", part.name[:100])
    return part.name


async def _file(part: Any, where: str, hold: Hold) -> ImageFile:
    digest, data = hashlib.sha256(), io.BytesIO()
    while chunk := await part.read_chunk(CHUNK):
        if data.tell() + len(chunk) > MAX_IMAGE_BYTES:
            raise too_large(where)
        hold(len(chunk))
        data.write(chunk)
        digest.update(chunk)
    return ImageFile(data.getvalue(), digest.digest())


async def _field(part: Any, name: str, share: MemoryShare, room: int) -> str:
    where, data = name[:100], bytearray()
    while chunk := await part.read_chunk(CHUNK):
        # As text it may take four times as much.
        share.hold_bytes(len(chunk) * 4)
        data += chunk
        if len(data) > FIELD_BYTES:
            raise ApiError("body_too_large", f"'{where}' is larger than {FIELD_BYTES} bytes.", where)
        if len(data) > room:
            raise ApiError("body_too_large", f"All fields together are larger than {FIELDS_BYTES} bytes.", where)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise invalid(f"'{where}' is not UTF-8 text.", where) from None


def _too_large() -> ApiError:
    return ApiError("body_too_large", f"The body is larger than {FORM_BYTES} bytes.")
