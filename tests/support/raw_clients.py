"""The whole application behind its own listener, and clients that send whatever bytes they like, over TLS too."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from stress.key_traces import shown

from gateway.app import make_app
from gateway.config import GatewayConfig
from gateway.context import LISTENER
from gateway.http.listener import Listener

MASTER = shown("quince-71-harbour-velvet-orbit")
PATIENCE_S = 60.0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own making for localhost, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def trusting() -> ssl.SSLContext:
    """A client's context that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class RawAnswer:
    """What came back, until the other side closed or the answer was whole."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.data = data
        self.status = int(lines[0].split(" ")[1]) if data else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


class RawSite:
    """Where an application listens, and its connections."""

    def __init__(self, app: web.Application, port: int, tls: ssl.SSLContext | None) -> None:
        self.app = app
        self.listener: Listener = app[LISTENER]
        self.port = port
        self._tls = tls
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, *, tls: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, over TLS where the site speaks it and nobody says otherwise."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self._tls if tls else None)
        self._writers.append(writer)
        return reader, writer

    async def send(self, *pieces: bytes) -> RawAnswer:
        """Send bytes on a connection of their own; what comes back until it is closed."""
        reader, writer = await self.connect()
        async with asyncio.timeout(PATIENCE_S):
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            except ConnectionError:
                pass  # the answer came before all was sent
            data = bytearray()
            try:
                while piece := await reader.read(65536):
                    data += piece
            except ConnectionError:
                pass
        return RawAnswer(bytes(data))

    async def get(self, path: str, *lines: str) -> RawAnswer:
        """A well-formed GET, and the connection's end."""
        head = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *lines]
        return await self.send("\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape"))

    async def close(self) -> None:
        """Close all connections that are open."""
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def raw_site(folder: Path, *, tls: tuple[Path, Path] | None = None, **changes: Any) -> AsyncIterator[RawSite]:
    """The application as configured for production, without workers, behind the listener that it has in production."""
    fields = {"run_dir": folder / "run", "data_dir": folder / "data", "api_key": MASTER, **changes}
    app = make_app(GatewayConfig(**fields))
    served, context = None, None
    if tls is not None:
        served, context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), trusting()
        served.load_cert_chain(*tls)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.3)
    await runner.setup()
    address = await app[LISTENER].open(cast("web.Server", runner.server), "127.0.0.1", 0, served)
    site = RawSite(app, int(address.rsplit(":", 1)[1]), context)
    try:
        yield site
    finally:
        await site.close()
        app[LISTENER].close()
        await runner.cleanup()


async def wait_until(ready: Any, what: str = "it is so") -> None:
    """Wait for what the other side does."""
    async with asyncio.timeout(PATIENCE_S):
        while not ready():  # noqa: ASYNC110 - the other side sets no event
            await asyncio.sleep(0.005)
