"""JSON bodies at and beyond every bound: deep, wide, long, of wrong types; for any route, from its own schema."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

from hostility.routes import Route

BODY_BYTES = 20 * 1024 * 1024
"""The largest JSON body that a gateway takes, by its documentation."""
ROOM = 4096
"""Left for the rest of a body."""
Fill = Callable[[int], bytes]
"""Makes a JSON value of about so many bytes."""


@dataclass(frozen=True)
class Body:
    """A body and what is wrong with it; made when it is needed, since each may hold 20 MB."""

    name: str
    make: Callable[[], bytes]


def repeated(one: bytes, before: bytes = b"[", behind: bytes = b"]") -> Fill:
    """Return a list of the same thing, again and again."""
    return lambda size: (
        before + (one + b",") * max(0, (size - len(before) - len(behind)) // (len(one) + 1)) + one + behind
    )


def long_text(one: str) -> Fill:
    """Return a text of the same, again and again."""
    quoted = json.dumps(one)[1:-1].encode()
    return lambda size: b'"' + quoted * (size // len(quoted)) + b'"'


def nested(opening: bytes, inner: bytes, closing: bytes, most: int = 1 << 30) -> Fill:
    """Return containers within containers."""
    return lambda size: opening * (count := min(most, size // (len(opening) + len(closing)))) + inner + closing * count


def many_names(size: int) -> bytes:
    """Return an object of very many fields."""
    return b"{" + b",".join(b'"k%07d":0' % at for at in range(size // 13)) + b"}"


VALUES: MappingProxyType[str, Fill] = MappingProxyType(
    {
        "wide": repeated(b"[1]"),
        "wide, empty": repeated(b"[]"),
        "wide, objects": repeated(b"{}"),
        "wide, texts": repeated(b'"a"'),
        "wide, numbers": repeated(b"1"),
        "names": many_names,
        "long": long_text("word "),
        "long, one word": long_text("a"),
        "long, digits": lambda size: b"1" * size,
        "5,000 digits": lambda _: b"7" * 5000,
        "long, blanks": long_text(" \n"),
        "long, control tokens": long_text("<|im_start|>"),
        "long, beginnings of control tokens": long_text("<|"),
        "long, not ASCII": long_text("é"),
        "deep": nested(b"[", b"", b"]"),
        "deep, just": nested(b"[", b"", b"]", 1000),
        "deep, objects": nested(b'{"a":', b"1", b"}"),
        "key of megabytes": lambda size: b'{"' + b"k" * size + b'":1}',
    }
)
"""What any field may be given, whatever it should hold."""
WORST = ("wide", "wide, empty", "names", "long, one word", "deep")

_SCHEMA = b'{"type":"object","properties":{"a":{"enum":'
_TOOL = b'[{"type":"function","function":{"name":"f","parameters":' + _SCHEMA
_CALL = b'[{"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"'
_SAY = b'[{"role":"user","content":'
SHAPED: MappingProxyType[str, MappingProxyType[str, Fill]] = MappingProxyType(
    {
        "messages": MappingProxyType(
            {
                "messages": repeated(b'{"role":"user","content":"a"}'),
                "parts": repeated(b'{"type":"text","text":""}', _SAY + b"[", b"]}]"),
                "parts of no type": repeated(b"[1]", _SAY + b"[", b"]}]"),
                "text": lambda size: _SAY + long_text("word ")(size) + b"}]",
                "text of one word": lambda size: _SAY + long_text("a")(size) + b"}]",
                "control tokens": lambda size: _SAY + long_text("<|im_start|>")(size) + b"}]",
                "arguments of calls": repeated(b"[]", _CALL + b'{\\"a\\":[', b']}"}}]}]'),
                "calls": repeated(
                    b'{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}',
                    b'[{"role":"assistant","tool_calls":[',
                    b"]}]",
                ),
                "picture": lambda size: (
                    _SAY
                    + b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,'
                    + b"A" * (size // 4 * 4)
                    + b'"}}]}]'
                ),
            }
        ),
        "tools": MappingProxyType(
            {
                "schema": repeated(b"[]", _TOOL + b"[", b"]}}}}}]"),
                "schema, deep": lambda size: _TOOL + nested(b"[", b"", b"]", 200)(size) + b"}}}}}]",
                "tools": repeated(b'{"type":"function","function":{"name":"f"}}'),
                "description": lambda size: (
                    b'[{"type":"function","function":{"name":"f","description":' + long_text("a")(size) + b"}}]"
                ),
            }
        ),
        "response_format": MappingProxyType(
            {
                "schema": repeated(
                    b"[]",
                    b'{"type":"json_schema","json_schema":{"name":"a","schema":' + _SCHEMA + b"[",
                    b"]}}}}}",
                ),
            }
        ),
        "structured_outputs": MappingProxyType(
            {
                "choices": repeated(b'"a"', b'{"choice":[', b"]}"),
                "schema": repeated(b"[]", b'{"json":' + _SCHEMA + b"[", b"]}}}}"),
                "schema as text": lambda size: b'{"json":"{\\"a\\":[' + b"[]," * (size // 3) + b'1]}"}',
                "regex": lambda size: b'{"regex":' + long_text("(a|b)")(size) + b"}",
            }
        ),
        "logit_bias": MappingProxyType({"names": many_names}),
        "image": MappingProxyType({"digits of base64": lambda size: b'"data:image/png;base64,' + b"A" * size + b'"'}),
        "images": MappingProxyType({"URLs": repeated(b'"http://127.0.0.1/"')}),
    }
)
"""What fields of these names may be given that looks like what they should hold."""


def generate(route: Route, size: int = BODY_BYTES) -> Iterator[Body]:
    """Yield all bodies for a route: a field of its example gets everything, each other one the worst."""
    room = size - ROOM
    for name in route.fields:
        values = dict(VALUES) if name in route.example else {kind: VALUES[kind] for kind in WORST}
        values |= SHAPED.get(name, {})
        for kind, fill in values.items():
            yield Body(f"{name}: {kind}", lambda name=name, fill=fill: _with(route, name, fill(room)))  # type: ignore[misc]
    yield from whole(size)


def whole(size: int) -> Iterator[Body]:
    """Yield bodies that are wrong as a whole; for routes, too, that take none."""
    room = size - ROOM
    for kind in ("wide", "names", "deep", "deep, objects", "long", "long, digits", "key of megabytes"):
        yield Body(f"body: {kind}", lambda kind=kind: VALUES[kind](room))  # type: ignore[misc]
    yield Body("body: cut off", lambda: b'{"a":' + VALUES["wide"](room)[:-2])
    yield Body("body: not text", lambda: b'{"a":"' + b"\xff" * room + b'"}')
    yield Body("body: blanks", lambda: b" " * room)
    yield Body("body: one byte too many", lambda: b" " * (size + 1))


def some(route: Route, names: tuple[str, ...], size: int = BODY_BYTES) -> Iterator[Body]:
    """Yield those bodies of a route whose names end like one of `names`."""
    for body in generate(route, size):
        if body.name.endswith(names):
            yield body


def _with(route: Route, name: str, value: bytes) -> bytes:
    """Return the route's example, with one field replaced."""
    rest = {key: shown for key, shown in route.example.items() if key != name}
    shown = b"".join(b"%s:%s," % (json.dumps(key).encode(), json.dumps(shown).encode()) for key, shown in rest.items())
    return b"{" + shown + json.dumps(name).encode() + b":" + value + b"}"


def taken_in_turn(routes: list[Route], names: tuple[str, ...]) -> Iterator[tuple[Route, Body]]:
    """Yield bodies of all routes in turn, for ever."""
    yield from itertools.cycle([(route, body) for route in routes for body in some(route, names)])
