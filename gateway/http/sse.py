"""Server-sent events: headers, frames, keep-alive comments, and the end of a stream, good or bad.

A write never waits for a client longer than the time-out, and nothing but bytes passes through here.
"""

import asyncio
import logging
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from gateway.answer_notes import note_headers
from gateway.context import FAILURE, HTTP, REQUEST_ID
from gateway.job_failure import JobFailed
from gateway.schema.errors import ApiError

PING = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

logger = logging.getLogger(__name__)


def is_gone(request: web.Request) -> bool:
    """Return whether its client has left, even if nobody was told yet."""
    return request.transport is None or request.transport.is_closing()


def frame(data: bytes) -> bytes:
    """Return one event."""
    return b"data: " + data + b"\n\n"


class EventStream:
    """An answer that is a stream of events; `open` sends the headers, the `async with` block ends it.

    An exception that comes before `open` passes, so that it can still have a status of its own. After it, it becomes an
    error frame, and the connection closes without `[DONE]`. A client that left (`CancelledError`, `ConnectionError`)
    is not told anything.

    One timer per stream watches both clocks, so that a frame costs no timer of its own. Several tasks may send.
    """

    def __init__(self, request: web.Request) -> None:
        settings = request.app[HTTP]
        self._request = request
        self._sse_ping_interval_s = settings.sse_ping_interval_s
        self._write_timeout_s = settings.write_timeout_s
        self._loop = asyncio.get_running_loop()
        self._writer: AbstractStreamWriter | None = None
        self._opening = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None
        self._last_write = 0.0
        self._writing = 0
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "X-Request-ID": request[REQUEST_ID],
                **note_headers(request),
            }
        )

    async def __aenter__(self) -> Self:
        return self

    async def send_headers(self) -> None:
        """Send the headers, unless they are out."""
        async with self._opening:
            if self._writer is not None:
                return
            writer = await self.response.prepare(self._request)
            if writer is None:
                raise RuntimeError("an event stream is opened once")
            writer.send_headers()
            self._last_write = self._loop.time()
            self._writer = writer
            self._watch()

    def check_connection(self) -> None:
        """Raise `ConnectionError` where nothing that is written now would get to the client any more.

        Between a client's leaving and this task's cancellation lies a turn of the event loop: what is counted as
        served must not be counted in it.
        """
        if is_gone(self._request):
            raise ConnectionResetError("the client is gone")

    async def send_frames(self, frames: bytes) -> None:
        """Write whole frames. Raises `ConnectionError` when the client is gone or was dropped for not reading."""
        if self._writer is None:
            raise RuntimeError("an event stream sends only once it is open")
        self._last_write = self._loop.time()
        self._writing += 1
        try:
            await self._writer.write(frames)
        finally:
            self._writing -= 1

    async def end_stream(self, frames: bytes = b"") -> None:
        """Send last frames, `[DONE]` and the end of the body, in one write."""
        await self._close(frames + DONE)

    async def fail_stream(self, error: ApiError) -> None:
        """Send an error frame, no `[DONE]`; the connection closes behind it."""
        self._request[FAILURE] = error.note
        if error.status >= 500:
            detail = f" ({error.detail})" if error.detail else ""
            logger.warning("Stream failed: code=%s error_id=%s%s", error.code, error.error_id, detail)
        self.response.force_close()
        await self._close(frame(error.body()))

    async def _close(self, frames: bytes) -> None:
        self._last_write = self._loop.time()
        self._writing += 1
        try:
            await self.response.write_eof(frames)
        finally:
            self._writing -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._writer is None:
            return False
        try:
            match error:
                case JobFailed():
                    await self.fail_stream(ApiError.of_job(error))
                case ApiError():
                    await self.fail_stream(error)
                case ConnectionError():
                    return False
                case Exception():
                    wrapped = ApiError("internal_error")
                    logger.error("Unhandled error in a stream: error_id=%s", wrapped.error_id, exc_info=error)
                    await self.fail_stream(wrapped)
                case _:
                    return False
            return True
        finally:
            self._stop()

    def _watch(self) -> None:
        """Sleep until a comment may be due or a write may have hung."""
        now = self._loop.time()
        due = self._last_write + (self._write_timeout_s if self._writing else self._sse_ping_interval_s)
        if now < due:
            self._timer = self._loop.call_at(min(due, now + self._write_timeout_s), self._watch)
            return
        if self._writing:
            logger.warning("Client stopped reading for %.0f s: dropped", self._write_timeout_s)
            if self._request.transport is not None:
                self._request.transport.abort()
            return
        self._comment = self._loop.create_task(self._send_comment())
        self._timer = self._loop.call_at(now + min(self._sse_ping_interval_s, self._write_timeout_s), self._watch)

    async def _send_comment(self) -> None:
        try:
            await self.send_frames(PING)
        except ConnectionError:
            logger.debug("Client left before a keep-alive comment")

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._comment is not None:
            self._comment.cancel()
            self._comment = None
