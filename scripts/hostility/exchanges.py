"""HTTP by hand: what no client library sends, and answers that come before a request is whole."""

import json
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PIECE = 1 << 18
MOST_ANSWER = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a gateway listens, on this machine, and the address that one comes from."""

    port: int
    tls: bool = False
    source: str = "127.0.0.1"

    def connect(self, timeout_s: float = 60.0) -> socket.socket:
        """Open a connection, with TLS where the gateway wants it. Raises `OSError`."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout_s, (self.source, 0))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.tls:
            return plain
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            return context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What came of a request. `status` 0: no answer; `fault` says why, then."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str]
    took_s: float
    fault: str = ""

    def json(self) -> Any:
        """Parse the body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def refused_well(self) -> bool:
        """Whether this is an error in the one shape of errors, with an id."""
        found = self.json()
        error = found.get("error") if isinstance(found, dict) else None
        return isinstance(error, dict) and {"message", "type", "param", "code", "error_id"} <= error.keys()


def head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def pieces(data: bytes, size: int = PIECE) -> Iterable[bytes]:
    """Yield `data` in pieces that cost no copy of the whole."""
    view = memoryview(data)
    for at in range(0, len(view), size):
        yield view[at : at + size]


def ask(
    address: Address,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> Exchange:
    """Send one request on a connection of its own. Return its whole answer."""
    given = {"Connection": "close", **({"Content-Length": str(len(body))} if body or method != "GET" else {})}
    return send(address, [head(method, path, {**given, **(headers or {})}), *pieces(body)], timeout_s=timeout_s)


def send(address: Address, data: Iterable[bytes], *, timeout_s: float = 120.0, stay_s: float = 0.0) -> Exchange:
    """Send whatever bytes. Return the answer; who refuses may do so before all of them are sent.

    `stay_s`: the connection stays open for so long after that.
    """
    began = time.monotonic()
    try:
        with address.connect(timeout_s) as connection:
            fault = ""
            try:
                for piece in data:
                    connection.sendall(piece)
            except OSError as error:
                fault = repr(error)
            answer = read_answer(connection, began, fault)
            time.sleep(stay_s)
            return answer
    except OSError as error:
        return Exchange(status=0, headers={}, took_s=time.monotonic() - began, fault=repr(error))


def read_answer(connection: socket.socket, began: float, fault: str = "") -> Exchange:
    """Read one answer with its body, however its end is told; what only says "go on" is passed over."""
    received = bytearray()
    at = length = -1
    try:
        while len(received) < MOST_ANSWER and not _whole(received, at, length):
            chunk = connection.recv(PIECE)
            if not chunk:
                break
            received += chunk
            if at < 0:
                at, length = _read_head(received)
    except OSError as error:
        fault = fault or repr(error)
    took_s = time.monotonic() - began
    if at < 0 or not received.startswith(b"HTTP/1."):
        return Exchange(status=0, body=bytes(received[:500]), headers={}, took_s=took_s, fault=fault or "no answer")
    lines = received[:at].decode("latin-1").split("\r\n")
    named = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    body = bytes(received[at : at + length] if length >= 0 else received[at:])
    return Exchange(status=int(lines[0][9:12]), body=body, headers=named, took_s=took_s, fault=fault)


def _read_head(received: bytearray) -> tuple[int, int]:
    """Return where the body begins and how long it is; -1 for what is not known (yet)."""
    while received.startswith(b"HTTP/1.1 1") and (end := received.find(b"\r\n\r\n")) >= 0:
        del received[: end + 4]
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return -1, -1
    told = bytes(received[:end]).lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    return end + 4, int(told) if told.isdigit() else -1


def _whole(received: bytearray, at: int, length: int) -> bool:
    if at < 0:
        return False
    return len(received) - at >= length if length >= 0 else received.endswith(b"0\r\n\r\n")
