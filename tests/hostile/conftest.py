"""The pool that this folder attacks: see `hostile_pool`."""

from tests.support.hostile_pool import _attacked, attack

__all__ = ["_attacked", "attack"]
