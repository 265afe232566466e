"""Calls one behind the other, each a JSON object between two texts; strings in it may hold anything."""

import json
import re
from typing import Any

_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"\s*")


def read_fenced_calls(text: str, begin: re.Pattern[str], end: re.Pattern[str]) -> list[dict[str, Any]]:
    """Return the calls that a text consists of; `begin` has a group `name`. Raises `ValueError` for anything else."""
    calls = []
    at = 0
    while at < len(text):
        begun = begin.match(text, at)
        if begun is None:
            raise ValueError("no call begins here")
        at = begun.end()
        space = _SPACE.match(text, at)
        arguments, at = _DECODER.raw_decode(text, space.end() if space else at)
        ended = end.match(text, at)
        if ended is None:
            raise ValueError("a call has no end")
        at = ended.end()
        calls.append({"name": begun["name"], "arguments": arguments})
    return calls
