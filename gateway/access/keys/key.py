"""What is known of one key, and the changes one can make to it. Pure; times are seconds since 1970."""

import re
from types import MappingProxyType
from typing import Any, Literal, get_args

import msgspec

from gateway.access.keys.text import digest, mint

Permission = Literal["chat", "vision", "embed:text", "embed:image", "models", "admin"]
PERMISSIONS: tuple[str, ...] = get_args(Permission)
EVERYTHING = "*"
OPEN = "open"
"""As a route's policy: nobody is asked for a key."""
METERED = frozenset({"chat", "vision", "embed:text", "embed:image"})
"""Routes that ask for one of these cost something: limits hold for them, and usage counts them."""
MASTER = "master"
"""The id of the key that the configuration names; too short to be that of any other."""


class BadKey(ValueError):
    """A key can't be as it was asked for. `field` names what is wrong with it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


MAX_LIMITS = MappingProxyType(
    {
        "burst": 100_000,
        "rpm": 100_000,
        "rph": 100_000,
        "rpd": 100_000,
        "tpm": 10**12,
        "tpd": 10**12,
        "parallel": 100_000,
    }
)
"""A key's log of requests takes eight bytes for each request of its longest window."""


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one key may use. None: as configured for all; 0: no bound.

    `burst` requests at once, refilled at the rate of `rpm`; in any minute, hour and day at most `rpm`, `rph` and `rpd`
    requests, `tpm` and `tpd` tokens; `parallel` requests that run together.
    """

    burst: int | None = None
    rpm: int | None = None
    rph: int | None = None
    rpd: int | None = None
    tpm: int | None = None
    tpd: int | None = None
    parallel: int | None = None

    def filled_from(self, defaults: "RateLimits") -> "RateLimits":
        """Return these limits, with the holes filled from `defaults`."""
        own = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(defaults, **own)


UNLIMITED = RateLimits(burst=0, rpm=0, rph=0, rpd=0, tpm=0, tpd=0, parallel=0)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key. `models` empty: all of them. `old_digest` is accepted beside `digest` until `old_until`."""

    id: str
    name: str
    digest: bytes
    permissions: tuple[str, ...]
    models: tuple[str, ...] = ()
    limits: RateLimits = RateLimits()
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    old_digest: bytes = b""
    old_until: float = 0.0
    last_used_at: float | None = None
    requests: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,100}", self.name):
            raise BadKey("name", "must be 1 to 100 characters, none of them a control character")
        if unknown := [name for name in self.permissions if name not in (*PERMISSIONS, EVERYTHING)]:
            raise BadKey("permissions", f"must be of {', '.join(PERMISSIONS)}, *; not {unknown[0]!r}")
        if not self.permissions:
            raise BadKey("permissions", "must not be empty")
        if len(self.models) > 100 or not all(0 < len(model) <= 200 for model in self.models):
            raise BadKey("models", "must be 100 names of models at most")
        for field, value in msgspec.structs.asdict(self.limits).items():
            if value is not None and not 0 <= value <= MAX_LIMITS[field]:
                raise BadKey(f"limits.{field}", f"must be from 0 (no bound) to {MAX_LIMITS[field]}")

    def state(self, now: float) -> Literal["active", "revoked", "expired"]:
        """Return whether it opens anything."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    def changed(self, now: float, **fields: Any) -> "Key":
        """Return the same key with other fields. Raises `BadKey`."""
        expires_at = fields.get("expires_at")
        if expires_at is not None and expires_at <= now:
            raise BadKey("expires_at", "must lie in the future")
        return msgspec.structs.replace(self, **fields)

    def rotated(self, pepper: bytes, now: float, grace_s: float) -> tuple["Key", str]:
        """Return the key with a new secret, and the new text; the old one is good for `grace_s` more."""
        _, text = mint(self.id)
        new = msgspec.structs.replace(
            self, digest=digest(pepper, text), old_digest=self.digest, old_until=now + grace_s
        )
        return new, text


def new_key(pepper: bytes, now: float, **fields: Any) -> tuple[Key, str]:
    """Return a key and its text, which nobody can tell from the key later. Raises `BadKey`."""
    key_id, text = mint()
    blank = Key(id=key_id, name="new", digest=digest(pepper, text), permissions=(EVERYTHING,), created_at=now)
    return blank.changed(now, **fields), text
