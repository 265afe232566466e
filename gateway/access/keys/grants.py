"""What the holder of one key may give to another: nothing that it does not have itself. Pure."""

from gateway.access.keys.key import EVERYTHING, Key, RateLimits
from gateway.access.keys.keyring import Caller


class NotGranted(Exception):
    """A caller lacks what a key has, or is to have. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def may_see_key(caller: Caller, key: Key) -> bool:
    """Return whether `caller` may know of a key: one that is limited to some models knows of no key beyond them."""
    return not caller.models or (bool(key.models) and caller.models.issuperset(key.models))


def check_grant(caller: Caller, key: Key, defaults: RateLimits) -> None:
    """Raise `NotGranted` where `key` may do anything that `caller` may not, or more of it, or for longer.

    `defaults` are the limits of keys that have none of their own; they bind no caller in what it gives.
    """
    if EVERYTHING in caller.permissions and not caller.models and caller.expires_at is None and not _bounds(caller):
        return
    if EVERYTHING not in caller.permissions and (more := set(key.permissions) - caller.permissions):
        raise NotGranted("permissions", f"the permission {min(more)!r}")
    if caller.models and (not key.models or set(key.models) - caller.models):
        raise NotGranted("models", "models other than its own")
    if caller.expires_at is not None and (key.expires_at is None or key.expires_at > caller.expires_at):
        raise NotGranted("expires_in", "more time than it has itself")
    limits = key.limits.filled_from(defaults)
    for name, most in _bounds(caller).items():
        value = getattr(limits, name)
        if value is None or value == 0 or value > most:
            raise NotGranted(f"limits.{name}", f"a limit '{name}' above its own, {most}")


def _bounds(caller: Caller) -> dict[str, int]:
    """Return the limits that a caller was given; 0 is none."""
    found = {name: getattr(caller.limits, name) for name in RateLimits.__struct_fields__}
    return {name: value for name, value in found.items() if value}
