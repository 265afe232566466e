"""Frames: an envelope of messages first, raw buffers behind it.

One envelope carries everything that one engine step produced, for all its rows. Decoding never raises
anything but `BadFrame`, whatever the peer sent; nothing here can execute what it reads.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from protocol import VERSION
from protocol.messages import ToGateway, ToWorker

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Largest envelope that is looked at; far above the largest legal request body."""

M = TypeVar("M")


class BadFrame(ValueError):
    """A frame that is not of this protocol, or of another version of it."""


class Envelope(msgspec.Struct, Generic[M], frozen=True, array_like=True):
    """Frame 0: the wire version, the epoch of the gateway run that it belongs to (0: none yet), the messages."""

    version: int
    epoch: int
    messages: list[M]


class _Head(msgspec.Struct, frozen=True, array_like=True):
    version: int


_encoder = msgspec.msgpack.Encoder()
_head_decoder = msgspec.msgpack.Decoder(_Head)
_to_worker_decoder = msgspec.msgpack.Decoder(Envelope[ToWorker])
_to_gateway_decoder = msgspec.msgpack.Decoder(Envelope[ToGateway])


def encode(messages: Sequence[ToWorker] | Sequence[ToGateway], *, epoch: int) -> bytes:
    """Encode one envelope as bytes, ready to be frame 0."""
    return _encoder.encode((VERSION, epoch, messages))


def decode_to_worker(frame: bytes) -> Envelope[ToWorker]:
    """Read what a gateway sent. Raises `BadFrame`."""
    return _decode(_to_worker_decoder, frame)


def decode_to_gateway(frame: bytes) -> Envelope[ToGateway]:
    """Read what a worker or a supervisor sent. Raises `BadFrame`."""
    return _decode(_to_gateway_decoder, frame)


def _decode(decoder: "msgspec.msgpack.Decoder[Envelope[M]]", frame: bytes) -> Envelope[M]:
    if len(frame) > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {len(frame)} bytes; at most {MAX_FRAME_BYTES} are read")
    try:
        envelope = decoder.decode(frame)
    # RecursionError: msgspec raises it, not a DecodeError, on deep nesting.
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        _check_version(frame)
        raise BadFrame(f"not a message of this protocol: {error}") from None
    if envelope.version != VERSION:
        raise BadFrame(_other_version(envelope.version))
    return envelope


def _check_version(frame: bytes) -> None:
    """Name a version mismatch as what it is, also where the rest can't be read."""
    try:
        version = _head_decoder.decode(frame).version
    except (msgspec.DecodeError, RecursionError, ValueError):
        return
    if version != VERSION:
        raise BadFrame(_other_version(version)) from None


def _other_version(version: int) -> str:
    return f"the peer speaks protocol version {version}, this side {VERSION}: upgrade the older one"
