"""How long a body may take to come, and how long its sender may be silent."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import StreamReader

from gateway.schema.errors import ApiError

T = TypeVar("T")

BODY_S = 300.0
"""A body that has not come by then is waited for no longer."""
SILENCE_S = 30.0
"""Nor is one of which nothing came for so long."""
SLOWEST_BYTES = 30 * 1024
"""Nor one of which less than this came in that time: a kilobyte a second."""


class Pace:
    """Watches over the reading of one body."""

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self._loop = asyncio.get_running_loop()
        self._looked_at = self._loop.time()
        self._looked_bytes = content.total_bytes
        self._ends_at = self._looked_at + BODY_S

    async def read_in_time(self, reading: Coroutine[Any, Any, T]) -> T:
        """Wait for the next piece. Raises `ApiError` (408)."""
        try:
            async with asyncio.timeout_at(min(self._ends_at, self._loop.time() + SILENCE_S)):
                piece = await reading
        except TimeoutError:
            raise ApiError("request_timeout") from None
        now = self._loop.time()
        if now - self._looked_at >= SILENCE_S:
            came = self._content.total_bytes - self._looked_bytes
            if came < SLOWEST_BYTES and not self._content.is_eof():
                raise ApiError("request_timeout")
            self._looked_at, self._looked_bytes = now, self._content.total_bytes
        return piece
