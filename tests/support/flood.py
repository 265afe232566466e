"""A crowd of strangers against one port, as a program of its own: `python flood.py PORT TLS SECONDS KIND...`.

Each of twelve connections a kind sends what that kind of stranger sends, reads for a moment, and begins anew.
"""

import asyncio
import gzip
import ssl
import sys
import time

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
EACH = 12
STAY_S = 0.3


def pieces(kind: str) -> bytes:
    """What a stranger of that kind sends."""
    bomb = gzip.compress(b"0" * 50_000_000, 9) if kind == "compressed" else b""
    return {
        "compressed": HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb,
        "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000,
        "extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2_000_000,
        "trailers": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: v\r\n" * 50_000,
        "long": HEAD + b"Content-Length: 100000000\r\n\r\n" + b"x" * 2_000_000,
        "heads": b"GET /ping HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"X-%d: %b\r\n" % (at, b"a" * 8000) for at in range(100)),
        "pipeline": b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 5000,
        "unread": b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 8,
        "upgrade": b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        + b"z" * 500_000,
        "nonsense": b"GET /\x00 HTTP/9.9\r\n\r\n" * 1000,
        "guesses": b"",
        "silence": b"",
    }[kind]


async def stranger(kind: str, data: bytes, port: int, context: ssl.SSLContext | None, until: float) -> None:
    """One connection after another."""
    count = 0
    while time.monotonic() < until:
        count += 1
        if kind == "guesses":
            data = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-API-Key: guess-%d\r\nConnection: close\r\n\r\n" % count
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context if kind != "silence" else None
                )
        except (OSError, TimeoutError):
            await asyncio.sleep(0.05)
            continue
        try:
            async with asyncio.timeout(STAY_S):
                writer.write(data)
                if kind in ("unread", "silence"):
                    await asyncio.sleep(STAY_S)
                while await reader.read(65536):
                    pass
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()


async def main(port: int, tls: bool, seconds: float, kinds: list[str]) -> None:
    """All kinds at once."""
    context = ssl.create_default_context() if tls else None
    if context is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    sent = {kind: pieces(kind) for kind in kinds}
    until = time.monotonic() + seconds
    await asyncio.gather(*(stranger(kind, sent[kind], port, context, until) for kind in kinds for _ in range(EACH)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2] == "tls", float(sys.argv[3]), sys.argv[4:]))
