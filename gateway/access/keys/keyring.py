"""The keys in memory: from what a client sent to who it is. All that a request ever asks."""

import hmac
import secrets
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from gateway.access.keys.key import EVERYTHING, MASTER, UNLIMITED, Key, RateLimits
from gateway.access.keys.text import digest, id_of

Refusal = Literal["invalid", "revoked", "expired", "unavailable"]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a request. `tenant` separates what must not be shared between callers."""

    id: str
    permissions: frozenset[str]
    models: frozenset[str] = frozenset()
    limits: RateLimits = UNLIMITED
    tenant: str = ""
    expires_at: float | None = None

    def has_permission(self, *wanted: str) -> bool:
        """Return whether one of the permissions is there."""
        return EVERYTHING in self.permissions or not self.permissions.isdisjoint(wanted)

    def may_use_model(self, *names: str) -> bool:
        """Return whether a model that is called so may be used."""
        return not self.models or not self.models.isdisjoint(names)


ANYBODY = Caller(id="", permissions=frozenset({EVERYTHING}))
"""Where nobody is asked for a key."""
_MASTER = Caller(id=MASTER, permissions=frozenset({EVERYTHING}), tenant=MASTER)


class Keyring:
    """Every key, by id. Until `replace` was called it knows none, and says so rather than calling a key bad.

    `revoked` holds, with their times, revocations that the database may not know yet: they hold all the same.
    """

    def __init__(self, master: str | None) -> None:
        self.loaded = False
        self.revoked: dict[str, float] = {}
        self._keys: dict[str, Key] = {}
        self._callers: dict[str, Caller] = {}
        self._pepper = secrets.token_bytes(32)
        # The master key is compared by digests under a secret of this process, so that its length shows in no timing.
        self._salt = secrets.token_bytes(32)
        self._master = digest(self._salt, master) if master else None
        self._nobody = secrets.token_bytes(32)

    @property
    def has_master(self) -> bool:
        """Whether there is a key that needs no database."""
        return self._master is not None

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter([*self._keys.values()])

    def find_key(self, key_id: str) -> Key | None:
        """Return the key of that id, if there is one."""
        return self._keys.get(key_id)

    def replace_keys(self, keys: Iterable[Key], pepper: bytes) -> None:
        """Know these keys and no others."""
        self._keys = {key.id: self.as_known(key) for key in keys}
        self._callers = {}
        self._pepper = pepper
        self.loaded = True

    def put_key(self, key: Key) -> None:
        """Add or change one."""
        self._keys[key.id] = self.as_known(key)
        self._callers.pop(key.id, None)

    def revoke_key(self, key_id: str, at: float) -> Key | None:
        """Close a key from now on, whatever the database says; returns it, or None where it is not known."""
        self.revoked.setdefault(key_id, at)
        key = self._keys.get(key_id)
        if key is not None:
            self.put_key(key)
        return self._keys.get(key_id)

    def as_known(self, key: Key) -> Key:
        """Return a key as the database has it, or revoked where that is known here alone."""
        at = self.revoked.get(key.id)
        return msgspec.structs.replace(key, revoked_at=at) if at is not None and key.revoked_at is None else key

    def identify_caller(self, text: str, now: float) -> Caller | Refusal:
        """Return who holds this key, at `now` seconds since 1970. The hot path."""
        if self._master is not None and hmac.compare_digest(digest(self._salt, text), self._master):
            return _MASTER
        return self.find_issued(text, now)

    def find_issued(self, text: str, now: float) -> Caller | Refusal:
        """Return who holds this key, which is not the master key."""
        key_id = id_of(text)
        if key_id is None:
            return "invalid"
        if not self.loaded:
            return "unavailable"
        key = self._keys.get(key_id)
        presented = digest(self._pepper, text)
        # An unknown id takes as long as a known one.
        matches = hmac.compare_digest(presented, key.digest if key else self._nobody)
        if key is None:
            return "invalid"
        if key.old_digest and hmac.compare_digest(presented, key.old_digest) and now < key.old_until:
            matches = True
        if not matches:
            return "invalid"
        state = key.state(now)
        if state != "active":
            return state
        return self._callers.get(key_id) or self._caller(key)

    def _caller(self, key: Key) -> Caller:
        caller = self._callers[key.id] = Caller(
            id=key.id,
            permissions=frozenset(key.permissions),
            models=frozenset(key.models),
            limits=key.limits,
            tenant=key.id,
            expires_at=key.expires_at,
        )
        return caller
