"""A load client that costs little: raw HTTP/1.1 over asyncio, events counted but not parsed."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CONTENT = re.compile(rb'"content": ?"[^"]')
USAGE = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that speaks OpenAI's HTTP. `model` None is whatever it serves."""

    name: str
    port: int
    host: str = "127.0.0.1"
    tls: bool = False
    root: str = "/v1"
    model: str | None = None
    key: str | None = None


@dataclass
class Stream:
    """One streamed answer: seconds on the monotonic clock, tokens as the server counted them."""

    sent_at: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    events: int = 0
    error: str | None = None

    @property
    def first_s(self) -> float:
        """Time to the first event with output."""
        return self.arrivals[0] - self.sent_at

    @property
    def gaps_s(self) -> list[float]:
        """Times between arrivals."""
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


class _Reader(asyncio.Protocol):
    def __init__(self, request: bytes, stream: Stream, done: asyncio.Future[None]) -> None:
        self._request = request
        self._stream = stream
        self._done = done
        self._tail = b""
        self._seen = 0
        self._started = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._stream.sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        stream = self._stream
        if not self._started and data[8:12] != b" 200":
            stream.error = data[:300].decode(errors="replace")
        self._started = True
        self._seen += data.count(b"data: ")
        # With most servers the first event only names the role.
        if self._seen > 1 or CONTENT.search(data):
            stream.arrivals.append(time.perf_counter())
        self._tail = (self._tail + data)[-2000:]
        if b"data: [DONE]" in self._tail or stream.error:
            stream.events = self._seen
            found = USAGE.findall(self._tail)
            # Who counts no tokens for its client sends one an event, more or less.
            stream.tokens = int(found[-1]) if found else len(stream.arrivals)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        if not self._done.done():
            self._done.set_result(None)


async def stream(
    server: Server, body: dict[str, Any], *, path: str = "/chat/completions", into: Stream | None = None
) -> Stream:
    """Send one streaming request and read it to its end, or until it is cancelled; what came is in `into`."""
    named = {} if server.model is None else {"model": server.model}
    content = json.dumps({"stream": True, "stream_options": {"include_usage": True}, **named, **body}).encode()
    head = (
        f"POST {server.root}{path} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\n"
    )
    head += f"Authorization: Bearer {server.key}\r\n" if server.key else ""
    head += f"Content-Length: {len(content)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    answer = Stream(0.0) if into is None else into
    done: asyncio.Future[None] = loop.create_future()
    reader = _Reader(head.encode() + content, answer, done)
    made = await loop.create_connection(lambda: reader, server.host, server.port, ssl=server.tls or None)
    try:
        await done
    finally:
        made[0].close()
    return answer


@dataclass(frozen=True)
class Load:
    """What came of several streams at once."""

    streams: list[Stream]
    took_s: float

    @property
    def tokens_per_s(self) -> float:
        """All tokens over the whole time."""
        return sum(one.tokens for one in self.streams) / self.took_s

    @property
    def first_s(self) -> list[float]:
        """Times to the first output, ascending."""
        return sorted(one.first_s for one in self.streams)


async def load(server: Server, bodies: Sequence[dict[str, Any]], **options: Any) -> Load:
    """Send all requests at once; raises on any error."""
    began = time.perf_counter()
    streams = await asyncio.gather(*(stream(server, body, **options) for body in bodies))
    took_s = time.perf_counter() - began
    errors = [one.error for one in streams if one.error or not one.tokens]
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(streams)} streams failed: {errors[0]}")
    return Load(list(streams), took_s)
