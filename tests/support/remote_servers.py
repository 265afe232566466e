"""Servers that images are fetched from in tests, on loopback: one that plays a public host, one that is a trap.

The two differ in their address alone, so that a fetcher can be told (by injection, never by a setting) to take the one
for public. Nothing here leaves the machine.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

TRAP = "127.0.0.1"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def second_loopback() -> str:
    """A loopback address other than the trap's: Linux has all of 127.0.0.0/8, macOS has ::1."""
    for address in ("127.0.0.2", "::1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as tried:
            tried.bind((address, 0))
            return address
    raise OSError("this machine has one loopback address only")


class Trap:
    """Listens where nobody may come, and counts who does, in IPv4 and (where there is one) IPv6."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def _caught(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        writer.close()

    async def knock(self) -> None:
        """Be the first who came: whoever had connected before, in whatever moment, would have been counted by now."""
        reader, writer = await asyncio.open_connection(TRAP, self.port)
        await reader.read()
        writer.close()
        assert self.connections == 1

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Trap"]:
        """For as long as the block lasts."""
        async with contextlib.AsyncExitStack() as stack:
            server = await asyncio.start_server(self._caught, TRAP, 0)
            self.port = server.sockets[0].getsockname()[1]
            await stack.enter_async_context(server)
            if second_loopback() != "::1":
                with contextlib.suppress(OSError):
                    await stack.enter_async_context(await asyncio.start_server(self._caught, "::1", self.port))
            yield self


class PublicHost:
    """Plays a public server: `serve` sets what it answers to each path. Keeps the requests that came."""

    def __init__(self) -> None:
        self.address = second_loopback()
        self.port = 0
        self.requests: list[web.Request] = []
        self._handlers: dict[str, Handler] = {}

    def serve(self, path: str, handler: Handler) -> str:
        """Answer `path` so; returns the path."""
        self._handlers[path] = handler
        return path

    def files(self, **files: bytes) -> None:
        """Serve files, each by its name with dots for underscores."""
        for name, data in files.items():
            self.serve(f"/{name.replace('_', '.')}", answering(data))

    def redirect(self, path: str, location: str, status: int = 302) -> str:
        """Send whoever asks for `path` elsewhere."""
        return self.serve(path, answering(b"", status=status, headers={"Location": location}))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        handler = self._handlers.get(request.path)
        return await handler(request) if handler else web.Response(status=404, text="secret words")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["PublicHost"]:
        """For as long as the block lasts."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self.address, 0)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()


def answering(body: bytes, **fields: object) -> Handler:
    """A handler that always says the same."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, **fields)  # type: ignore[arg-type]

    return answer


class Names:
    """A name server: answers in turn, the last one for ever; whom it does not know, it does not know."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        turns = self.answers.get(host.removesuffix(".").lower())
        if turns is None:
            raise OSError("no such name")
        return turns.pop(0) if len(turns) > 1 else turns[0]
