"""Frames that nobody should send: refused as bad, at once, whatever is in them."""

import contextlib
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import MAX_FRAME_BYTES, BadFrame, Envelope, decode_to_gateway, decode_to_worker, encode
from protocol.messages import Beat, Cancel, GenerateJob, Sampling, TextPrompt
from tests.support.wire_examples import EXAMPLES, TO_GATEWAY, frame_of

Decoder = Callable[[bytes], Envelope[Any]]
DECODERS = (decode_to_worker, decode_to_gateway)
both = pytest.mark.parametrize("decoder", DECODERS, ids=["worker", "gateway"])

HEAD = b"\x93\x01\x07"  # an array of three that opens with version 1, epoch 7
CANCEL = HEAD + b"\x91\x93\xa6Cancel"
DETOKENIZE = HEAD + b"\x91\x94\xadDetokenizeJob\x01\x01"
DELTA = HEAD + b"\x91\x9a\xa5Delta\x01\x01\x00\x90"
HUGE = struct.pack(">I", 2**32 - 1)

HOSTILE = {
    "empty": b"",
    "nil": b"\xc0",
    "number": b"\x01",
    "map": b"\x80",
    "empty array": b"\x90",
    "reserved byte": b"\xc1",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "json": b'[1,7,[["Cancel",5,1]]]',
    "extension": b"\xc7\x05\x01hello",
    "timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "version as text": b"\x93\xa11\x07\x90",
    "version as float": b"\x93\xcb" + struct.pack(">d", 1.5) + b"\x07\x90",
    "version negative": b"\x93\xff\x07\x90",
    "version missing": b"\x92\x07\x90",
    "epoch nil": b"\x93\x01\xc0\x90",
    "messages a map": HEAD + b"\x80",
    "messages a number": HEAD + b"\x05",
    "message a number": HEAD + b"\x91\x05",
    "message empty": HEAD + b"\x91\x90",
    "tag a number": HEAD + b"\x91\x92\x05\x05",
    "tag unknown": HEAD + b"\x91\x92\xa6System\x05",
    "tag of the base": HEAD + b"\x91\x91\xa7Message",
    "tag endless": HEAD + b"\x91\x92\xdb" + HUGE + b"Cancel",
    "bytes behind the frame": encode([], epoch=7) + b"\x00",
    "two frames": encode([], epoch=7) * 2,
    "array of 4 G messages": HEAD + b"\xdd" + HUGE,
    "array of 4 G fields": b"\xdd" + HUGE + b"\x01\x07\x90",
    "array of 4 G tokens": DETOKENIZE + b"\xdd" + HUGE,
    "map of 4 G entries": HEAD + b"\x91\xdf" + HUGE,
    "text of 4 GB": DELTA + b"\xdb" + HUGE + b"abc",
    "bytes of 4 GB": HEAD + b"\x91\x95\xabTokenizeJob\x01\x01\x94\xaaChatPrompt\xc6" + HUGE + b"abc",
    "bad utf-8": DELTA + b"\xa2\xff\xfe\xa0\x90\x90\xc0",
    "half a surrogate": DELTA + b"\xa3\xed\xa0\x80\xa0\x90\x90\xc0",
    "overlong utf-8": DELTA + b"\xa2\xc0\xaf\xa0\x90\x90\xc0",
    "job as float": CANCEL + b"\xcb" + struct.pack(">d", float("nan")) + b"\x01",
    "job nil": CANCEL + b"\xc0\x01",
    "job true": CANCEL + b"\xc3\x01",
    "job as text": CANCEL + b"\xa15\x01",
    "tokens as floats": DETOKENIZE + b"\x91\xcb" + struct.pack(">d", 1.5),
    "tokens as text": DETOKENIZE + b"\xa3abc",
    "nested arrays": b"\x91" * 1_000_000,
    "nested arrays behind the head": HEAD + b"\x91" * 1_000_000,
    "nested arrays in an unknown field": CANCEL.replace(b"\x93\xa6", b"\x94\xa6") + b"\x05\x01" + b"\x91" * 1_000_000,
    "nested maps": HEAD + b"\x91" + b"\x81\xa1a" * 300_000,
    "pickle": b"\x80\x04](K\x01K\x07](]\x94(\x8c\x06CancelK\x05K\x01eee.",
    "too long by one": encode([], epoch=7) + bytes(MAX_FRAME_BYTES),
}


def refused(decoder: Decoder, frame: bytes) -> None:
    """The frame is bad, and finding that out costs neither time nor memory."""
    began = time.process_time()
    with pytest.raises(BadFrame) as caught:
        decoder(frame)
    assert time.process_time() - began < 2
    assert len(str(caught.value)) < 500


@both
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frame_is_refused_at_once(name: str, decoder: Decoder) -> None:
    """Garbage, lies about lengths, deep nesting: `BadFrame`, within half a second."""
    refused(decoder, HOSTILE[name])


@both
@pytest.mark.parametrize("name", [name for name in HOSTILE if "4 G" in name or "endless" in name])
def test_announced_length_is_not_allocated(name: str, decoder: Decoder) -> None:
    """A length that is announced and not there costs no memory."""
    tracemalloc.start()
    try:
        refused(decoder, HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@both
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_frame_cut_anywhere_is_refused(example: Any, decoder: Decoder) -> None:
    """No beginning of a frame passes for a frame."""
    frame = frame_of(example)
    for end in range(len(frame)):
        with pytest.raises(BadFrame):
            decoder(frame[:end])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_frame_with_any_byte_changed_is_read_or_refused(example: Any) -> None:
    """A flipped byte gives another message or `BadFrame`, never anything else."""
    frame = bytearray(frame_of(example))
    for at in range(len(frame)):
        for value in (0x00, 0x7F, 0xC1, 0xDD, 0xDF, 0xFF, frame[at] ^ 0x01):
            changed = bytes(frame[:at]) + bytes([value]) + bytes(frame[at + 1 :])
            for decoder in DECODERS:
                with contextlib.suppress(BadFrame):
                    decoder(changed)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    """Random bytes, bare and behind a good head, raise nothing but `BadFrame`."""
    for frame in (noise, HEAD + noise, HEAD + b"\x91" + noise, DELTA + noise):
        for decoder in DECODERS:
            try:
                envelope = decoder(frame)
            except BadFrame:
                continue
            assert isinstance(envelope, Envelope)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=20
)
tags = st.sampled_from([type(example).__name__ for example in EXAMPLES])


@settings(max_examples=150, deadline=None)
@given(tags, st.lists(anything, max_size=14))
def test_right_tag_with_wrong_fields_is_refused_or_typed(tag: str, fields: list[Any]) -> None:
    """What does pass has the types that it should have: it can be sent on as it is."""
    frame = msgspec.msgpack.encode([1, 7, [[tag, *fields]]])
    for decoder in DECODERS:
        try:
            envelope = decoder(frame)
        except BadFrame:
            continue
        again = decoder(encode(envelope.messages, epoch=7))
        assert encode(again.messages, epoch=7) == encode(envelope.messages, epoch=7)


def trap_of_level(level: int, path: Path) -> bytes:
    """Return a pickle that makes a folder if it is ever opened, in the notation of a level: 0 to 5."""
    name = str(path).encode()
    if level == 0:
        return b"cposix\nmkdir\n(V%b\ntR." % name
    text = b"X" + struct.pack("<I", len(name)) + name
    if level == 1:
        return b"cposix\nmkdir\n(%btR." % text
    if level < 4:
        return b"\x80%ccposix\nmkdir\n%b\x85R." % (level, text)
    return b"\x80%c\x8c\x05posix\x8c\x05mkdir\x93%b\x85R." % (level, text)


@both
@pytest.mark.parametrize("level", range(6))
def test_pickle_is_never_opened(level: int, decoder: Decoder, tmp_path: Path) -> None:
    """A pickle that acts when it is read does not act."""
    trap = trap_of_level(level, tmp_path / "sprung")
    refused(decoder, trap)
    refused(decoder, HEAD + b"\x91" + trap)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_pass_as_floats(number: float) -> None:
    """The wire carries any float; whoever computes with one has to expect it."""
    job = GenerateJob(1, 1, "r", "t", TextPrompt("a"), Sampling(1, temperature=number))
    [read] = decode_to_worker(encode([job], epoch=1)).messages
    assert isinstance(read, GenerateJob)
    assert repr(read.sampling.temperature) == repr(number)


def test_unknown_state_is_refused() -> None:
    """An enumeration is closed: nobody has to handle a state that does not exist."""
    beat = next(example for example in TO_GATEWAY if isinstance(example, Beat))
    with pytest.raises(BadFrame):
        decode_to_gateway(frame_of(beat).replace(b"\xa5ready", b"\xa5reedy"))


@both
def test_one_bad_message_spoils_its_envelope(decoder: Decoder) -> None:
    """An envelope is read as a whole or not at all."""
    good = Cancel(5, 2) if decoder is decode_to_worker else TO_GATEWAY[3]
    frame = encode([good, good], epoch=7)
    assert len(decoder(frame).messages) == 2
    refused(decoder, frame[: -len(b"\x05")] + b"\xc0")


@both
def test_largest_frame_is_read(decoder: Decoder) -> None:
    """The bound is no smaller than it says: a frame of just its size is looked at."""
    refused_for = "at most"
    with pytest.raises(BadFrame) as caught:
        decoder(bytes(MAX_FRAME_BYTES))
    assert refused_for not in str(caught.value)
