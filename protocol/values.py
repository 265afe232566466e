"""Values as people write them in flags, variables and files: read alike by all programs.

Each is a function from text; `ValueError` says what is allowed.
"""

import re

_UNITS = " KMGT"


def size(text: str) -> int:
    """Bytes, with or without a unit: `512MB`, in powers of 1024, at most 16 TB."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    found = int(float(match[1]) * (1 << 10 * _UNITS.index(match[2].upper() or " "))) if match else -1
    if not 0 <= found <= 16 << 40:
        raise ValueError("must be a size such as 512MB or 2GB (powers of 1024; 0 turns it off)")
    return found


def seconds(text: str) -> float:
    """A duration that ends within a day."""
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text) or not 0 < float(text) <= 86_400:
        raise ValueError("must be a number of seconds, more than 0 and at most 86400")
    return float(text)


def switch(text: str) -> bool:
    """True or false."""
    match text.lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
        case _:
            raise ValueError("must be true or false")
