"""What every request and answer type shares.

Every subclass repeats `frozen` and `kw_only`: msgspec does not inherit the latter, type checkers neither.
Requests are closed: a name that is not a field is refused by `decode`, never dropped.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import msgspec

from gateway.schema.ignored import Rule, take_ignored
from gateway.schema.parts.bounds import FEW
from gateway.schema.structure import Bounds


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything nested inside a request."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies. JSON null at the top level means: not given.

    `bounds` is how much structure a body may have; it is counted before the body is parsed. `ignorable` are names that
    are no fields and change nothing; `idle` are fields that are read, and change nothing either.
    """

    bounds: ClassVar[Bounds] = FEW
    ignorable: ClassVar[Mapping[str, Rule]] = MappingProxyType({})
    idle: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def read_dialect(cls, raw: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
        """Return a body's fields without what can't change the answer; `ignored` gets the names of all that.

        No value of `raw` is null. Raises `ApiError`.
        """
        ignored.update(cls.idle & raw.keys())
        return take_ignored(raw, cls.ignorable, cls.__struct_encode_fields__, ignored)

    @classmethod
    def refuse_unsupported(cls, raw: dict[str, Any]) -> None:
        """Name what OpenAI defines and this server does not do, before types are looked at. Raises `ApiError`."""

    def inner_json(self) -> Iterator[tuple[str, str]]:
        """Yield texts within the request that are parsed as JSON in turn, each with its place."""
        return iter(())

    def list_unenforced(self) -> list[str]:
        """Return the places of what a schema asks for and is left to the model. Raises `ApiError`."""
        return []

    def check_values(self) -> None:
        """Check rules that span fields or that types can't say. Raises `ApiError`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of answer bodies and of everything inside them."""
