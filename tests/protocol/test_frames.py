"""What is on the wire: golden bytes, round trips, and peers that are older or younger."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import VERSION, messages
from protocol.codec import BadFrame, Envelope, decode_to_gateway, decode_to_worker, encode
from protocol.messages import Message, ToGateway, ToWorker
from tests.support.wire_examples import EPOCH, EXAMPLES, HEADER, TO_GATEWAY, TO_WORKER, defaults_in, frame_of

GOLDEN = Path(__file__).with_name("golden_frames.txt")
BY_NAME = {type(example).__name__: example for example in EXAMPLES}
NAMES = list(BY_NAME)


def decode(frame: bytes) -> Envelope[Any]:
    """With whichever decoder takes it."""
    try:
        return decode_to_gateway(frame)
    except BadFrame:
        return decode_to_worker(frame)


def golden() -> dict[str, bytes]:
    lines = GOLDEN.read_text().splitlines()
    return {name: bytes.fromhex(frame) for name, frame in (line.split() for line in lines if not line.startswith("#"))}


def test_examples_leave_nothing_out() -> None:
    """Every message and every part has an example in which each field can be seen."""
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)} - {
        Message
    }
    assert {type(example) for example in EXAMPLES} == kinds
    assert {name: defaults_in(example) for name, example in BY_NAME.items() if defaults_in(example)} == {}
    assert GOLDEN.read_text().startswith(HEADER)
    assert list(golden()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_golden(name: str) -> None:
    """What is sent is, byte for byte, what was always sent."""
    assert frame_of(BY_NAME[name]).hex() == golden()[name].hex()


@pytest.mark.parametrize("name", NAMES)
def test_golden_bytes_are_read(name: str) -> None:
    """What earlier builds sent is still understood."""
    envelope = decode(golden()[name])
    assert (envelope.version, envelope.epoch) == (VERSION, EPOCH)
    assert encode(envelope.messages, epoch=EPOCH) == frame_of(BY_NAME[name])


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type can have on the wire."""
    simple = {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=8),
        NoneType: st.none(),
    }
    if kind in simple:
        return simple[kind]
    if isinstance(kind, UnionType):
        return st.one_of([of_type(part) for part in get_args(kind)])
    match get_origin(kind), get_args(kind):
        case origin, (item,) if origin is list:
            return st.lists(of_type(item), max_size=3)
        case origin, (key, value) if origin is dict:
            return st.dictionaries(of_type(key), of_type(value), max_size=3)
        case origin, items if origin is tuple:
            return st.tuples(*[of_type(item) for item in items])
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    return st.builds(kind, **{name: of_type(part) for name, part in get_type_hints(kind).items()})


@settings(max_examples=200, deadline=None)
@given(st.lists(of_type(ToWorker), max_size=4), st.integers(0, 2**63 - 1))
def test_round_trip_to_worker(sent: list[Any], epoch: int) -> None:
    """Whatever is sent to a worker arrives as it was."""
    envelope = decode_to_worker(encode(sent, epoch=epoch))
    assert (envelope.version, envelope.epoch, envelope.messages) == (VERSION, epoch, sent)


@settings(max_examples=200, deadline=None)
@given(st.lists(of_type(ToGateway), max_size=4), st.integers(0, 2**63 - 1))
def test_round_trip_to_gateway(sent: list[Any], epoch: int) -> None:
    """Whatever is sent to the gateway arrives as it was."""
    envelope = decode_to_gateway(encode(sent, epoch=epoch))
    assert (envelope.version, envelope.epoch, envelope.messages) == (VERSION, epoch, sent)


@pytest.mark.parametrize("example", TO_WORKER, ids=lambda example: type(example).__name__)
def test_gateway_refuses_what_is_for_workers(example: ToWorker) -> None:
    """No peer can give the gateway orders."""
    with pytest.raises(BadFrame):
        decode_to_gateway(encode([example], epoch=1))


@pytest.mark.parametrize("example", TO_GATEWAY, ids=lambda example: type(example).__name__)
def test_worker_refuses_what_is_for_the_gateway(example: ToGateway) -> None:
    """A worker takes reports for what they are not."""
    with pytest.raises(BadFrame):
        decode_to_worker(encode([example], epoch=1))


# -- evolution ---------------------------------------------------------------


def younger(value: Any) -> Any:
    """The same message as a later build may send it: more fields behind those of today, at every level."""
    if not isinstance(value, list):
        return value
    grown = [younger(item) for item in value]
    return [*grown, 42, {"new": [None, "field"]}] if value and str(value[0]) in BY_NAME else grown


def shorter(message: Message) -> Iterator[tuple[int, list[Any]]]:
    """The message as an older build may have sent it: with fewer of its last fields."""
    [_, _, [fields]] = msgspec.msgpack.decode(encode([message], epoch=EPOCH))
    for count in range(len(fields), 0, -1):
        yield count - 1, fields[:count]


@pytest.mark.parametrize("name", NAMES)
def test_fields_of_a_younger_peer_are_ignored(name: str) -> None:
    """Trailing fields that this build does not know change nothing, nor does one behind the envelope's own."""
    frame = frame_of(BY_NAME[name])
    grown = [*younger(msgspec.msgpack.decode(frame)), "more"]
    assert grown[2] != msgspec.msgpack.decode(frame)[2]
    assert decode(msgspec.msgpack.encode(grown)).messages == decode(frame).messages


@pytest.mark.parametrize("example", [*TO_WORKER, *TO_GATEWAY], ids=lambda example: type(example).__name__)
def test_fields_that_an_older_peer_lacks_have_defaults(example: Any) -> None:
    """Every optional trailing field may be missing, no required one may."""
    kind = type(example)
    required = sum(field.required for field in msgspec.structs.fields(kind))
    for count, fields in shorter(example):
        frame = msgspec.msgpack.encode([VERSION, EPOCH, [fields]])
        if count < required:
            with pytest.raises(BadFrame):
                decode(frame)
        else:
            values = {name: getattr(example, name) for name in kind.__struct_fields__[:count]}
            assert decode(frame).messages == [kind(**values)]


def test_defaults_only_come_last() -> None:
    """A required field behind an optional one could never have been added to a running pool."""
    for example in EXAMPLES:
        required = [field.required for field in msgspec.structs.fields(example)]
        assert required == sorted(required, reverse=True), type(example).__name__


@pytest.mark.parametrize("version", [0, 2, 99, 2**63])
@pytest.mark.parametrize("rest", [[7, []], [7, [["Cancel", 1, 1]]], ["of", "another", "shape"], []])
def test_other_version_is_named(version: int, rest: list[Any]) -> None:
    """A peer of another version is told from garbage, even where nothing else of its frame can be read."""
    for decoder in (decode_to_worker, decode_to_gateway):
        with pytest.raises(BadFrame, match=rf"speaks protocol version {version}, this side {VERSION}"):
            decoder(msgspec.msgpack.encode([version, *rest]))
