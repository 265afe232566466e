"""Headers that say what of a request was taken and not done. For every way in which an answer begins."""

from aiohttp import web

from gateway.context import IGNORED, UNENFORCED
from gateway.schema import ignored, unenforced


def note_headers(request: web.Request) -> dict[str, str]:
    """Return a header for each kind of thing that was not done; none where all was."""
    headers = {}
    if names := request.get(IGNORED):
        headers[ignored.HEADER] = ignored.header_of(names)
    if places := request.get(UNENFORCED):
        headers[unenforced.HEADER] = unenforced.header_of(places)
    return headers
