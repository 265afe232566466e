"""One client's connection, as aiohttp speaks HTTP over it, with a bound for whatever aiohttp leaves open.

Bodies are never unpacked. A body that nobody asked for is thrown away unparsed, some of it, and the connection closed.
What aiohttp itself refuses gets the one shape of errors, and one line in the log.
"""

import asyncio
import contextlib
import logging
import traceback
import uuid
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http import HttpRequestParser, HttpVersion11
from aiohttp.http_exceptions import BadHttpMethod, BadStatusLine, InvalidHeader, InvalidURLError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from gateway.http.place import ListenerPlace, PlaceOwner
from gateway.schema.errors import ApiError
from gateway.telemetry.logs import CLIENT, REQUEST, LineBudget

KEEP_ALIVE_S = 75.0
FIRST_REQUEST_S = 30.0
"""A connection whose first request has not come by then is closed."""
REFUSAL_S = 1.0
"""The same for one that is refused anyway."""
LINE_BYTES = 8190
HEADERS = 128
HEAD_BYTES = 32 * 1024
"""Of a request line and headers that are not complete."""
QUEUED = 2
"""Requests that may be read while one is answered."""
READ_BYTES = 128 * 1024
"""Of a body that are read ahead of whoever asked for it."""
UNASKED_BYTES = 8 * 1024
"""The same before it is known whose body it is; a sixteenth of that as chunks."""
SMALL_BYTES = 64 * 1024
"""A body of a declared length up to this is read to its end although nobody wants it: the connection stays."""
SMALL_S = 2.0
DISCARDED = (256 * 1024, 2.0)
"""Bytes and seconds of an unwanted body before the connection is closed, so that its sender may read why."""
DISCARDED_OF_KNOWN = (128 * 1024 * 1024, 30.0)
"""The same where a valid key came with it: some clients read an answer only once all of their body is sent."""
UNREAD_S = 10.0
"""A stranger who reads nothing of an answer for so long is closed."""

log = logging.getLogger(__name__)


class ClientConnection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_body", "_deadline", "_discarded", "_emptied", "_head_bytes", "_made", "_owner", "_stall", "place")

    def __init__(
        self, owner: PlaceOwner, place: ListenerPlace, server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=KEEP_ALIVE_S,
            access_log=None,  # type: ignore[arg-type]
            lingering_time=SMALL_S,
            auto_decompress=False,
        )
        self._parser = HttpRequestParser(
            self,
            loop,
            UNASKED_BYTES,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            max_headers=HEADERS,
            payload_exception=RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=QUEUED,
        )
        self._max_msg_queue_size, self._msg_queue_resume_size = QUEUED, QUEUED // 2
        self._owner = owner
        self.place = place
        self._deadline: asyncio.TimerHandle | None = None
        self._made: asyncio.Transport | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._body: StreamReader = EMPTY_PAYLOAD
        # How much of an unwanted body has come, once one is being thrown away.
        self._discarded: int | None = None
        self._emptied: asyncio.Future[None] | None = None

    # -- beginning and end -------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._made = self.transport
        self.place.connection = self
        patience_s = REFUSAL_S if self.place.refused else FIRST_REQUEST_S
        self._deadline = self._loop.call_later(patience_s, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        self._made = None
        self._end_discarding()
        # What is left of it is in circles, and may wait for the collector for long.
        self._body = EMPTY_PAYLOAD
        self._messages.clear()
        self._message_tail = b""
        self._owner.remove_connection(self.place)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close it now, whatever it is at."""
        if self._made is not None:
            self._made.abort()

    async def start(self) -> None:
        """Answer requests until there are no more; see aiohttp. A client that does not take its end is cut off."""
        try:
            await super().start()
        finally:
            self._watch_writing()

    # -- requests ----------------------------------------------------------

    def on_request(self) -> None:
        """Take note of a request with all of its headers. aiohttp itself bounds the time to the next one."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._owner.mark_busy(self.place)
        if self.place.refused:
            self.close()

    def mark_known(self) -> None:
        """Take note that a valid key has come, or nobody is asked for one."""
        self._owner.mark_known(self.place)
        if not self._body.is_eof():
            self._body.set_read_chunk_size(READ_BYTES)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > self._discard_bounds[0]:
                self._end_discarding()
            return
        count = self._request_count
        super().data_received(data)
        if self._request_count > count:
            self._head_bytes = 0
            message, body = self._messages[-1] if self._messages else (None, EMPTY_PAYLOAD)
            if isinstance(message, _ErrInfo):
                # Its words and its frames hold all that was read.
                message.exc.__traceback__, message.exc.args = None, ()
                if not self._body.is_eof():
                    # Whoever reads it would wait for the rest, which is no HTTP.
                    self._body.set_exception(RequestPayloadError("malformed body"))
            else:
                self._body = body
        elif self._body.is_eof() and not self._messages and not self._request_in_progress:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse_head()

    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        self._end_discarding()
        super().eof_received()

    def _refuse_head(self) -> None:
        """Answer a head that is too long before it has ended."""
        too_long = LineTooLong(b"", HEAD_BYTES)
        self._request_count += 1
        self._messages.append((_ErrInfo(status=431, exc=too_long, message=""), EMPTY_PAYLOAD))
        self._discarded = 0
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer, then see to what is left of the body. See aiohttp."""
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = self.handle_error(request, resp.status)
        unwanted = self._discarded is not None or not (request.content.is_eof() or _is_small(request))
        if unwanted:
            resp.force_close()
        done = await super().finish_response(request, resp, start_time)
        if unwanted:
            await self._discard(request)
        self._owner.mark_idle(self.place)
        return done

    @property
    def _discard_bounds(self) -> tuple[int, float]:
        return DISCARDED_OF_KNOWN if self.place.known else DISCARDED

    async def _discard(self, request: web.BaseRequest) -> None:
        """Take some more of a body, without looking at it: closing at once might take the answer from its sender."""
        transport = self.transport
        if transport is None:
            return
        self._discarded = self._discarded or 0
        self._parser = None
        if request.content.exception() is None:
            request.content.read_nowait()
        self._emptied = self._loop.create_future()
        if transport.can_write_eof():
            transport.write_eof()
        self._pause_transport_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._discard_bounds[1]), self._owner.discarding(self.place):
                self._resume_transport_reading()
                await self._emptied
        self.force_close()

    def _end_discarding(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    # -- writing -----------------------------------------------------------

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _watch_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._made is not None:
            patience_s = self._owner.unread_s if self.place.known else min(UNREAD_S, self._owner.unread_s)
            left = self._made.get_write_buffer_size()
            self._stall = self._loop.call_later(patience_s, self._check_writing, left)

    def _check_writing(self, before: int) -> None:
        """Cut off a client that has read nothing meanwhile, be it of an answer or of the end of its connection."""
        self._stall = None
        if self._made is None:
            return
        left = self._made.get_write_buffer_size()
        if left and left < before:
            self._watch_writing()
        else:
            self.abort()

    # -- refusals below the application -------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's words repeat the client's
    ) -> web.StreamResponse:
        """Answer what never got to the application, or was lost on the way, and close. See aiohttp."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        self._discarded = self._discarded or 0
        REQUEST.set(str(uuid.uuid4()))
        CLIENT.set(self.place.address)
        if status >= 500:
            error = ApiError("internal_error")
            log.error("Unhandled error below the application: %s error_id=%s", _where(exc), error.error_id)
        else:
            kind, words, status = _explain(exc, status)
            error = ApiError("invalid_request", words, status=status)
            self._owner.count_malformed(kind, error)
        response = respond(error)
        response.headers["X-Request-ID"] = REQUEST.get() or ""
        response.force_close()
        return response

    def log_exception(self, *_args: Any, exc_info: Any = None, **_kw: Any) -> None:
        """Log what aiohttp did not expect."""
        log.error("Unhandled error in a connection: %s", _where(exc_info))


def respond(error: ApiError) -> web.Response:
    """Return the answer that an error is."""
    return web.Response(
        body=error.body(), status=error.status, content_type="application/json", headers=error.headers()
    )


def of_request(request: web.BaseRequest) -> ClientConnection | None:
    """Return the connection of a request, where it came through our listener."""
    connection = request.protocol
    return connection if isinstance(connection, ClientConnection) else None


def budget_of_malformed() -> LineBudget:
    """Return how often a malformed request is worth a line."""
    return LineBudget(burst=20, period_s=0.5)


async def expect_permission(request: web.Request) -> None:
    """Leave a client that asks before it sends its body without an answer for now: first it is seen who it is."""
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue" and request.version == HttpVersion11:
        raise web.HTTPExpectationFailed


async def invite_body(request: web.Request) -> None:
    """Tell a client that has asked to go on."""
    if hdrs.EXPECT in request.headers and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The answer itself has not begun.
        request.writer.output_size = 0


def _where(error: object) -> str:
    """Return an error's kind and place, without its words: a client may have written those."""
    if not isinstance(error, BaseException):
        return "unknown"
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__name__ + (f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else "")


def _is_small(request: web.BaseRequest) -> bool:
    """Return whether a body says that it is small, and is no series of chunks."""
    declared = request.content_length
    return declared is not None and declared <= SMALL_BYTES and hdrs.TRANSFER_ENCODING not in request.headers


def _explain(error: BaseException | None, status: int) -> tuple[str, str, int]:
    """Return kind, words and status for what is no HTTP; nothing in them is the client's."""
    match error:
        case LineTooLong():
            return "too_long", f"A line is longer than {LINE_BYTES} bytes, or all of them are longer than "\
                               f"{HEAD_BYTES}.", 431  # fmt: skip
        case BadHttpMethod():
            return "method", "The request has no method that HTTP knows.", 400
        case BadStatusLine() | InvalidURLError():
            return "request_line", "The request line is malformed.", 400
        case InvalidHeader():
            return "header", "A header is malformed.", 400
    if status == 417:
        return "expectation", "The header 'Expect' may only be '100-continue'.", 417
    return "request", "The request is malformed.", status
