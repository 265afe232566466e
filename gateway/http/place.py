"""The place of a connection at the listener, and what a connection needs of whoever accepted it."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from gateway.schema.errors import ApiError


class Abortable(Protocol):
    """A connection, as far as its place knows it."""

    def abort(self) -> None:
        """Close it now."""


class ListenerPlace:
    """What one accepted connection takes, from then on to its end."""

    __slots__ = ("address", "connection", "exempt", "handshake", "known", "refused", "since")

    def __init__(self, address: str, *, exempt: bool, now: float) -> None:
        self.address = address
        self.exempt = exempt
        """Whether it is a proxy's, who speaks for many."""
        self.since = now
        """When it was accepted, or its last answer was sent."""
        self.known = False
        """Whether a valid key has come over it."""
        self.refused = False
        """Whether it is one too many: its request gets an error, and then it is closed."""
        self.connection: Abortable | None = None
        self.handshake: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """End it now."""
        if self.connection is not None:
            self.connection.abort()
        elif self.handshake is not None:
            self.handshake.cancel()


class PlaceOwner(Protocol):
    """Whoever accepted a connection and is told what becomes of it."""

    @property
    def unread_s(self) -> float:
        """How long a client may read nothing of an answer."""

    def mark_busy(self, place: ListenerPlace) -> None:
        """Take note that a request runs."""

    def mark_known(self, place: ListenerPlace) -> None:
        """Take note that a valid key came."""

    def mark_idle(self, place: ListenerPlace) -> None:
        """Take note that the answer is sent."""

    def remove_connection(self, place: ListenerPlace) -> None:
        """Free the place of a connection that is closed; again is harmless."""

    def discarding(self, place: ListenerPlace) -> AbstractAsyncContextManager[Any]:
        """Wait for the turn to throw a body away."""

    def count_malformed(self, kind: str, error: ApiError) -> None:
        """Count a request that was no HTTP."""
