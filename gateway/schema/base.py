"""What every request and answer type shares.

Every subclass repeats `frozen` and `kw_only`: msgspec does not inherit the latter, type checkers neither.
Requests are closed: a name that is not a field is refused by `decode`, never dropped.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from gateway.schema.parts.bounds import FEW
from gateway.schema.structure import Bounds


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything nested inside a request."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies. JSON null at the top level means: not given.

    `bounds` is how much structure a body may have; it is counted before the body is parsed.
    """

    bounds: ClassVar[Bounds] = FEW

    @classmethod
    def refuse_unsupported(cls, raw: dict[str, Any]) -> None:
        """Name what OpenAI defines and this server does not do, before types are looked at. Raises `ApiError`."""

    def inner_json(self) -> Iterator[tuple[str, str]]:
        """Yield texts within the request that are parsed as JSON in turn, each with its place."""
        return iter(())

    def check_values(self) -> None:
        """Check rules that span fields or that types can't say. Raises `ApiError`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of answer bodies and of everything inside them."""
