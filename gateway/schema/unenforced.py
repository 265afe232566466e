"""What a request's schemas ask for and no grammar can say: named in the header `x-unenforced-schema`."""

from collections.abc import Sequence
from urllib.parse import quote

HEADER = "x-unenforced-schema"
MOST_CHARS = 1000
"""Of the header; places beyond are counted."""


def header_of(places: Sequence[str]) -> str:
    """Return the header's value: places, with what a header can't hold percent-encoded."""
    named: list[str] = []
    for place in places:
        text = quote(place, safe="$.[]")
        if sum(map(len, named)) + 2 * len(named) + len(text) > MOST_CHARS:
            return ", ".join([*named, f"and {len(places) - len(named)} more"])
        named.append(text)
    return ", ".join(named)
