"""The pool that this folder attacks: see `hostile_pool`."""

from hostile_pool import _attacked, attack

__all__ = ["_attacked", "attack"]
