"""The text of an API key: `mlx_<id>_<secret><checksum>`. Pure.

The secret holds 256 random bits, so one keyed hash stands for a key at rest: there is nothing to guess, and no slow
hash to pay for on every request. The checksum tells a typo from a stranger without looking anything up, and lets
scanners of source code recognise a key.
"""

import hmac
import re
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_CHARS = 8
SECRET_CHARS = 43
"""62**43 > 2**256."""
CHECKSUM_CHARS = 6
"""62**6 > 2**32."""

_KEY = re.compile(rf"mlx_([0-9A-Za-z]{{{ID_CHARS}}})_[0-9A-Za-z]{{{SECRET_CHARS + CHECKSUM_CHARS}}}")
_KEY_LIKE = re.compile(r"(mlx_[0-9A-Za-z]{8}_)[0-9A-Za-z]+")


def mint(key_id: str | None = None) -> tuple[str, str]:
    """Return a new key, as (id, text); with a `key_id`, another key of that id."""
    key_id = key_id or _random(ID_CHARS)
    text = f"mlx_{key_id}_{_random(SECRET_CHARS)}"
    return key_id, text + _checksum(text)


def id_of(text: str) -> str | None:
    """Return the id in a key's text; None where it is no key, or one with a typo."""
    match = _KEY.fullmatch(text)
    return match[1] if match and text[-CHECKSUM_CHARS:] == _checksum(text[:-CHECKSUM_CHARS]) else None


def digest(pepper: bytes, text: str) -> bytes:
    """Return what is kept of a key: 32 bytes of HMAC-SHA-256 under a secret that lies outside of the database."""
    return hmac.digest(pepper, text.encode("utf-8", "surrogateescape"), "sha256")


def masked(line: str) -> str:
    """Return a line for a log, without the secret of any key in it."""
    return _KEY_LIKE.sub(r"\1…", line) if "mlx_" in line else line


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    number, found = zlib.crc32(text.encode()), ""
    for _ in range(CHECKSUM_CHARS):
        number, digit = divmod(number, len(ALPHABET))
        found = ALPHABET[digit] + found
    return found
