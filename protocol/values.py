"""Values as people write them in flags, variables and files: read alike by all programs.

Each is a function from text that raises `ValueError` with what is allowed.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

_UNITS = " KMGT"


def size(text: str) -> int:
    """Read bytes, with or without a unit: `512MB`, in powers of 1024, at most 16 TB."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    found = int(float(match[1]) * (1 << 10 * _UNITS.index(match[2].upper() or " "))) if match else -1
    if not 0 <= found <= 16 << 40:
        raise ValueError("must be a size such as 512MB or 2GB (powers of 1024; 0 turns it off)")
    return found


def seconds(text: str) -> float:
    """Read a duration of at most a day."""
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text) or not 0 < float(text) <= 86_400:
        raise ValueError("must be a number of seconds, more than 0 and at most 86400")
    return float(text)


def switch(text: str) -> bool:
    """Read true or false."""
    match text.lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
        case _:
            raise ValueError("must be true or false")


def choice(*allowed: str, also: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return a reader of one of some words, in any case; `also` holds other words for them."""

    def parse(text: str) -> str:
        found = (also or {}).get(text.lower(), text.lower())
        if found not in allowed:
            raise ValueError(f"must be {', '.join(allowed[:-1])} or {allowed[-1]}")
        return found

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of a whole number between these, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,15}(_\d{1,15}){0,4}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def path(text: str) -> Path:
    """Read a path, with `~` for the home folder."""
    if not text.strip() or "\0" in text:
        raise ValueError("must be a path")
    return Path(text).expanduser()
