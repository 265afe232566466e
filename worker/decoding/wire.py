"""What an engine and its decoding processes say to each other: a message as msgpack, and raw bytes behind it."""

import socket
import struct

import msgspec

from worker.decoding.fitting import Fit

MAX_HEAD_BYTES = 4096
_SIZES = struct.Struct("<IQ")


class Decode(msgspec.Struct, frozen=True, array_like=True):
    """Decode the file behind this; answered by `Decoded`. `low` as in `images.decode`; `fit`: resize to that."""

    low: bool = False
    fit: Fit | None = None


class Decoded(msgspec.Struct, frozen=True, array_like=True):
    """Behind this are the pixels, RGB, row by row; or `error` says what is wrong with the file, for its sender."""

    width: int = 0
    height: int = 0
    error: str = ""


def send(connection: socket.socket, message: msgspec.Struct, body: bytes = b"") -> None:
    """Send a message with bytes behind it. Raises `OSError`."""
    head = msgspec.msgpack.encode(message)
    connection.sendall(_SIZES.pack(len(head), len(body)) + head)
    connection.sendall(body)


def receive(connection: socket.socket, most_bytes: int) -> tuple[bytes, int]:
    """Receive a message, still encoded, and how many bytes follow it. Raises `EOFError`, `OSError`."""
    sizes = bytearray(_SIZES.size)
    fill(connection, memoryview(sizes))
    head_bytes, body_bytes = _SIZES.unpack(sizes)
    if head_bytes > MAX_HEAD_BYTES or body_bytes > most_bytes:
        raise EOFError
    head = bytearray(head_bytes)
    fill(connection, memoryview(head))
    return bytes(head), body_bytes


def fill(connection: socket.socket, buffer: memoryview) -> None:
    """Receive as many bytes as the buffer has. Raises `EOFError`, `OSError`."""
    while buffer:
        got = connection.recv_into(buffer)
        if not got:
            raise EOFError
        buffer = buffer[got:]
