"""The images of one request, from URLs to the buffers and descriptions that its job takes along.

What is held for all requests together is bounded, and given back when each request ends.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.media.formats import read_header
from gateway.media.inline import ImageFile, read_inline
from gateway.memory_account import MemoryShare
from gateway.schema.errors import invalid
from gateway.schema.parts.bounds import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE
from gateway.schema.parts.image_references import ImageReference
from protocol.media_types import IMAGES, name_media
from protocol.messages import Image

SMALL = 256 * 1024
"""Characters of a data: URL that are decoded at once, in less than a millisecond; more goes to a thread."""

Hold = Callable[[int], None]
"""Notes that so many more bytes are held. Raises `ApiError` where that is too much."""


class ImageSource(Protocol):
    """Whoever fetches what is not in the URL itself."""

    async def fetch_image(self, url: str, where: str, hold: Hold, *, tenant: str) -> ImageFile:
        """Fetch a file for a tenant. Raises `ApiError` with `where` as its `param`."""


@dataclass(kw_only=True, slots=True)
class ResolvedImages:
    """What a job takes along: one `Image` per image, in order; each file once."""

    images: list[Image] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=list)


class ImageResolver:
    """Collects images for requests. `remote` None: only from data: URLs."""

    def __init__(self, *, remote: ImageSource | None) -> None:
        self._remote = remote
        self.held_bytes = 0
        """Held for all requests together."""

    @asynccontextmanager
    async def resolve_images(self, images: list[ImageReference], share: MemoryShare) -> AsyncIterator[ResolvedImages]:
        """Collect the images of a request, all at once, and hold them in its share for as long as the block lasts.

        Raises `ApiError` with the parameter of the first image that can't be had.
        """
        with self.holding(share) as hold:
            # Several images may share one URL, and several URLs one file.
            files = await self._files({image.url: image.where for image in reversed(images)}, hold, share.tenant)
            resolved, places = ResolvedImages(), dict[bytes, int]()
            for image in images:
                file = files[image.url]
                place = places.setdefault(file.digest, len(places))
                if place == len(resolved.buffers):
                    resolved.buffers.append(file.data)
                resolved.images.append(Image(buffer=place, digest=file.digest, detail=image.detail))
            del files
            yield resolved

    @contextmanager
    def holding(self, share: MemoryShare) -> Iterator[Hold]:
        """Count the images that a request holds, through what this yields, for as long as the block lasts."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            share.hold_bytes(size)
            held += size
            self.held_bytes += size

        try:
            yield hold
        finally:
            self.held_bytes -= held
            share.release_bytes(held)

    async def _files(self, wanted: dict[str, str], hold: Hold, tenant: str) -> dict[str, ImageFile]:
        """Return files by URL; `wanted` says which parameter to blame for each."""
        if len(wanted) < 2:
            return {url: await self._file(url, where, hold, tenant) for url, where in wanted.items()}
        tasks: dict[str, asyncio.Task[ImageFile]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                tasks |= {url: group.create_task(self._file(url, where, hold, tenant)) for url, where in wanted.items()}
            return {url: task.result() for url, task in tasks.items()}
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            # A task keeps its error, whose traceback leads back here: a circle that would keep the images.
            tasks.clear()

    async def _file(self, url: str, where: str, hold: Hold, tenant: str) -> ImageFile:
        if url[:5].lower() == "data:":
            hold(len(url) // 4 * 3)
            small = len(url) <= SMALL
            file = read_inline(url, where) if small else await asyncio.to_thread(read_inline, url, where)
        elif self._remote is None:
            raise invalid("Images are only accepted as data: URLs by this server.", where)
        else:
            file = await self._remote.fetch_image(url, where, hold, tenant=tenant)
            return check_image(file, where, fetched=True)
        return check_image(file, where)


def check_image(file: ImageFile, where: str, *, fetched: bool = False) -> ImageFile:
    """Return the file, if it is an image of a format and size that are taken. Raises `ApiError`, naming `where`.

    Of a file that was fetched nothing is told: whoever named its address may not be allowed to read it.
    """
    header = read_header(file.data)
    if header is None:
        found = name_media(file.data)
        damaged = ", cut off or damaged at its beginning" if found in IMAGES else ""
        told = "" if fetched else f": found {found}{damaged}"
        raise invalid(f"The image is not a PNG, JPEG, WebP or GIF file{told}.", where)
    if header.width * header.height > MAX_IMAGE_PIXELS:
        raise invalid(
            f"The image has {header.width} x {header.height} pixels; "
            f"at most {MAX_IMAGE_PIXELS // 1_000_000} megapixels are allowed.",
            where,
        )
    if max(header.width, header.height) > MAX_IMAGE_SIDE:
        raise invalid(
            f"The image has {header.width} x {header.height} pixels; at most {MAX_IMAGE_SIDE} a side are allowed.",
            where,
        )
    return file
