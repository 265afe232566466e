"""What a request's images become, and how much of them is held."""

import asyncio
import hashlib

import pytest

from gateway.media.image_resolver import SMALL, Hold, ImageResolver
from gateway.media.inline import ImageFile
from gateway.memory_account import MemoryAccount, MemoryShare
from gateway.schema.errors import ApiError
from gateway.schema.parts.image_references import ImageReference
from protocol.media_types import name_media
from protocol.messages import Image
from tests.support.picture_files import data_url, padded, picture

RED, BLUE = picture(colour="red"), picture(colour="blue")


class Shelf:
    """A remote source: files by URL; None never comes."""

    def __init__(self, **files: bytes | None) -> None:
        self.files = files
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.all_asked = asyncio.Event()

    async def fetch_image(self, url: str, where: str, hold: Hold, *, tenant: str) -> ImageFile:
        self.asked.append(url)
        if len(self.asked) == len(self.files):
            self.all_asked.set()
        data = self.files[url]
        if data is None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(url)
                raise
        assert data is not None
        hold(len(data))
        return ImageFile(data, hashlib.sha256(data).digest())


def share() -> MemoryShare:
    """Room for everything."""
    return MemoryAccount().open_share("")


def shown(*urls: str) -> list[ImageReference]:
    return [ImageReference(where=f"p{at}", url=url, detail="low" if at == 1 else "auto") for at, url in enumerate(urls)]


async def refusal(gallery: ImageResolver, *urls: str) -> ApiError:
    with pytest.raises(ApiError) as raised:
        async with gallery.resolve_images(shown(*urls), share()):
            pass
    assert gallery.held_bytes == 0
    return raised.value


async def test_each_file_travels_once_when_it_is_shown_twice() -> None:
    """One image per picture, in order, by URL or by content the same; each with its own detail."""
    shelf = Shelf(far=RED)
    urls = data_url(RED), data_url(BLUE), data_url(RED), "far", "far"
    async with ImageResolver(remote=shelf).resolve_images(shown(*urls), share()) as album:
        assert album.buffers == [RED, BLUE]
        red, blue = hashlib.sha256(RED).digest(), hashlib.sha256(BLUE).digest()
        assert album.images == [Image(0, red), Image(1, blue, "low"), Image(0, red), Image(0, red), Image(0, red)]
    assert shelf.asked == ["far"]


async def test_nothing_is_collected_when_nothing_is_shown() -> None:
    """A text request has an empty album."""
    async with ImageResolver(remote=None).resolve_images([], share()) as album:
        assert (album.images, album.buffers) == ([], [])


async def test_bytes_are_held_for_as_long_as_the_block_lasts() -> None:
    """And given back however it ends."""
    gallery = ImageResolver(remote=Shelf(far=BLUE))
    with pytest.raises(ValueError, match="mine"):
        async with gallery.resolve_images(shown(data_url(RED), "far"), share()):
            assert gallery.held_bytes >= len(RED) + len(BLUE)
            raise ValueError("mine")
    assert gallery.held_bytes == 0


async def test_others_have_their_turns_when_a_large_image_is_decoded() -> None:
    """The event loop goes on while base64 becomes bytes and bytes a digest."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.0005)
            turns += 1

    url = data_url(padded(15_000_000))
    other = asyncio.create_task(turn())
    async with ImageResolver(remote=None).resolve_images(shown(url), share()):
        other.cancel()
    assert turns > 5


async def test_a_request_is_turned_away_when_too_much_is_held() -> None:
    """Another one's images leave no room: come again later, rather than no memory."""
    gallery, account = ImageResolver(remote=None), MemoryAccount(9 * SMALL)
    large = data_url(padded(SMALL))
    async with gallery.resolve_images(shown(large, data_url(padded(SMALL, colour="blue"))), account.open_share("one")):
        with pytest.raises(ApiError) as raised:
            async with gallery.resolve_images(shown(data_url(padded(5 * SMALL))), account.open_share("two")):
                pass
        assert (raised.value.status, raised.value.retry_after_s) == (429, 1.0)
        async with gallery.resolve_images(shown(large), account.open_share("two")):
            pass
    async with gallery.resolve_images(shown(data_url(padded(5 * SMALL))), account.open_share("two")):
        pass
    assert account.held_bytes == 0


async def test_other_fetches_are_cancelled_when_one_image_fails() -> None:
    """And the error is that of the image that failed, with its parameter."""
    shelf = Shelf(slow=None, text=b"<html>")
    error = await refusal(ImageResolver(remote=shelf), "slow", "text")
    assert (error.code, error.param) == ("invalid_request", "p1")
    assert shelf.cancelled == ["slow"]


async def test_fetches_are_cancelled_when_the_client_leaves() -> None:
    """Nothing goes on for nobody."""
    shelf = Shelf(slow=None, slower=None)
    gallery = ImageResolver(remote=shelf)

    async def handler() -> None:
        async with gallery.resolve_images(shown("slow", "slower"), share()):
            pass

    task = asyncio.create_task(handler())
    await shelf.all_asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(shelf.cancelled) == ["slow", "slower"]
    assert gallery.held_bytes == 0


@pytest.mark.parametrize("url", ["https://example.com/a.png", "file:///etc/passwd", "/etc/passwd", "blob:x", "x"])
async def test_other_urls_are_refused_when_nothing_is_fetched(url: str) -> None:
    """A gateway that fetches nothing takes data: URLs alone."""
    error = await refusal(ImageResolver(remote=None), url)
    assert (error.code, error.param) == ("invalid_request", "p0")


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"<html>", b"\x89PNG\r\n\x1a\n"])
async def test_a_file_is_refused_when_it_is_no_image(data: bytes) -> None:
    """By its bytes, whatever its URL calls it."""
    said = (await refusal(ImageResolver(remote=None), data_url(data))).message
    assert said.startswith(f"The image is not a PNG, JPEG, WebP or GIF file: found {name_media(data)}")


async def test_a_bomb_is_refused_when_its_header_says_so() -> None:
    """33 megapixels pass, more are named with their size; no pixel is decoded to find out."""
    async with ImageResolver(remote=None).resolve_images(shown(data_url(_claiming(6000, 5500))), share()):
        pass
    error = await refusal(ImageResolver(remote=None), data_url(_claiming(9000, 9000)))
    assert (error.status, error.param) == (400, "p0")
    assert "9000 x 9000" in error.message


async def test_image_is_refused_when_a_side_is_too_long() -> None:
    """65,535 pixels a side pass, one more is named; a line of millions is slow to resize."""
    async with ImageResolver(remote=None).resolve_images(shown(data_url(_claiming(65_535, 1))), share()):
        pass
    for size in ((65_536, 1), (1, 65_536)):
        error = await refusal(ImageResolver(remote=None), data_url(_claiming(*size)))
        assert (error.status, error.param) == (400, "p0")
        assert "65535 a side" in error.message


def _claiming(width: int, height: int) -> bytes:
    return RED[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + RED[24:]
