"""More than 150 JSON schemas of the kinds that clients send: by hand, by combination, and as pydantic writes them.

Each bounds what it leaves open (lengths, counts), so that a model that knows no JSON comes to an end, too.
"""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

SHORT: Schema = {"type": "string", "maxLength": 8}
SCALARS: dict[str, Schema] = {
    "string": SHORT,
    "integer": {"type": "integer", "minimum": -50, "maximum": 5000},
    "number": {"type": "number", "minimum": 0, "maximum": 10},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum": {"enum": ["red", "green", 3, None, {"a": [1]}]},
    "const": {"const": {"kind": "x", "list": [1, 2.5, "three"]}},
    "letters": {"type": "string", "pattern": "^[a-z]{2,6}$"},
    "exclusive": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 12},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    "either": {"type": ["string", "null"], "maxLength": 6},
    "unicode": {"type": "string", "minLength": 1, "maxLength": 4},
}
PATTERNS = (
    r"^[A-Z]{3}-\d{4}$",
    r"^(foo|bar)+$",
    r"^[^\s@]{1,8}@[a-z]{1,5}\.(com|org)$",
    r"^\+?[0-9]{3,8}$",
    r"^#[0-9a-fA-F]{6}$",
    r"^v[0-9]\.[0-9]{1,2}$",
    r"^(?:[01]\d|2[0-3]):[0-5]\d$",
    r"^.{3,5}$",
    r"^a?b*c{2}$",
    r"^[äöü]{2}$",
)
FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


def obj(required: bool = True, **properties: Schema) -> Schema:
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        made["required"] = list(properties)
    return made


def few(items: Schema, least: int = 0, most: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def corpus() -> dict[str, Schema]:
    """All of them by name."""
    found = dict(_all())
    assert len(found) >= 150
    return found


def _all() -> Iterator[tuple[str, Schema]]:
    for name, schema in SCALARS.items():
        yield f"scalar {name}", schema
        yield f"object of {name}", obj(value=schema)
        yield f"optional {name}", obj(required=False, value=schema, other={"type": "boolean"})
        yield f"array of {name}", few(schema, 1)
        yield f"nested {name}", obj(outer=obj(inner=few(obj(value=schema))))
        yield f"map of {name}", _map(schema)
    for number, pattern in enumerate(PATTERNS):
        yield f"pattern {number}", obj(text={"type": "string", "pattern": pattern})
    for name in FORMATS:
        yield f"format {name}", obj(value={"type": "string", "format": name})
    for first in ("string", "integer", "boolean", "letters"):
        for second in ("null", "number", "enum"):
            yield f"{first} or {second}", obj(value={"anyOf": [SCALARS[first], SCALARS[second]]})
    for depth in range(2, 9):
        yield f"depth {depth}", _deep(depth)
    for width in (5, 12, 30):
        yield f"width {width}", obj(**{f"field_{i}": list(SCALARS.values())[i % 6] for i in range(width)})
    yield from _references()
    yield from _combined()
    yield from _usual()


def _map(schema: Schema) -> Schema:
    return {
        "type": "object",
        "patternProperties": {"^[a-c]$": schema},
        "additionalProperties": False,
        "maxProperties": 2,
    }


def _deep(depth: int) -> Schema:
    schema: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
    for level in range(depth):
        schema = obj(down=schema) if level % 2 else few(schema, 1, 2)
    return schema


def _references() -> Iterator[tuple[str, Schema]]:
    tree = obj(value=SCALARS["letters"], children=few({"$ref": "#/$defs/node"}, 0, 1))
    yield "tree", {"$defs": {"node": tree}, "$ref": "#/$defs/node"}
    linked = obj(value={"type": "boolean"}, next={"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]})
    yield "linked list", {"$defs": {"link": linked}, **obj(head={"$ref": "#/$defs/link"})}
    yield "root reference", {**obj(name=SHORT, parent={"anyOf": [{"type": "null"}, {"$ref": "#"}]})}
    yield (
        "definitions",
        {
            "definitions": {"money": obj(cents=SCALARS["integer"])},
            **obj(price={"$ref": "#/definitions/money"}, tax={"$ref": "#/definitions/money"}),
        },
    )
    chain = {f"d{i}": obj(a={"$ref": f"#/$defs/d{i + 1}"}) for i in range(6)}
    yield "chain", {"$defs": {**chain, "d6": SCALARS["enum"]}, "$ref": "#/$defs/d0"}
    expression = {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 99},
            obj(op={"enum": ["+", "*"]}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"}),
        ]
    }
    yield "expression", {"$defs": {"e": expression}, **obj(e={"$ref": "#/$defs/e"})}
    mutual = {
        "a": obj(b={"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}),
        "b": obj(a={"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}),
    }
    yield "mutual recursion", {"$defs": mutual, "$ref": "#/$defs/a"}
    yield "escaped pointer", {"$defs": {"a/b": SHORT}, **obj(v={"$ref": "#/$defs/a~1b"})}


def _combined() -> Iterator[tuple[str, Schema]]:
    circle = obj(kind={"const": "circle"}, radius=SCALARS["number"])
    square = obj(kind={"const": "square"}, side=SCALARS["integer"])
    yield "tagged union", obj(shape={"anyOf": [circle, square]})
    yield "union of arrays", few({"anyOf": [circle, square]}, 1)
    yield (
        "all of",
        {
            "allOf": [
                {"type": "object", "properties": {"a": SHORT}, "required": ["a"]},
                {
                    "type": "object",
                    "properties": {"b": {"type": "boolean"}},
                    "required": ["b"],
                    "additionalProperties": True,
                },
            ],
            "maxProperties": 2,
        },
    )
    yield "all of bounds", obj(n={"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]})
    yield (
        "tuple",
        {"type": "array", "prefixItems": [SHORT, {"type": "boolean"}, {"enum": [1, 2]}], "items": False, "minItems": 3},
    )
    yield (
        "tuple and more",
        {"type": "array", "prefixItems": [SHORT], "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    )
    yield "empty object", obj()
    yield "empty array", {"type": "array", "maxItems": 0}
    yield "type list", obj(value={"type": ["integer", "boolean", "null"], "maximum": 9, "minimum": 0})
    yield "any of types", {"anyOf": [few({"type": "boolean"}, 1), obj(a=SHORT), {"type": "null"}]}
    yield "matrix", few(few({"type": "integer", "minimum": 0, "maximum": 1}, 2, 2), 2, 2)
    yield (
        "odd names",
        obj(**{"a b": SHORT, "ünï": SHORT, 'quote"d': SHORT, "back\\slash": SHORT, "": SHORT, "$ref2": SHORT}),
    )
    yield "odd values", obj(v={"enum": ["tab\t", "new\nline", 'quote"', "\\", "ünï", "", "</tool_call>x"[12:]]})
    yield (
        "annotations",
        {
            "title": "T",
            "description": "d",
            "$comment": "c",
            "examples": [1],
            "default": {},
            **obj(v={**SHORT, "title": "V", "description": "says", "default": "x", "readOnly": True}),
        },
    )
    yield "some required", {**obj(required=False, a=SHORT, b=SHORT, c={"type": "null"}), "required": ["b"]}
    yield (
        "open object",
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}},
            "required": ["a"],
            "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
            "maxProperties": 2,
        },
    )
    yield "true property", obj(a={"type": "boolean"}, b={"enum": [True]})
    yield "large numbers", obj(n={"type": "integer", "minimum": 10**15, "maximum": 10**15 + 5})
    yield "negative numbers", obj(n={"type": "number", "minimum": -2.5, "maximum": -1.25})
    yield "long enum", obj(v={"enum": [f"value number {i}" for i in range(400)]})
    yield "long choice", {"anyOf": [obj(kind={"const": f"k{i}"}, n={"type": "boolean"}) for i in range(40)]}


def _usual() -> Iterator[tuple[str, Schema]]:
    """What pydantic and zod make of ordinary classes."""
    optional = {"anyOf": [SHORT, {"type": "null"}], "default": None, "title": "Nickname"}
    yield (
        "person",
        {
            "title": "Person",
            "type": "object",
            "required": ["name", "age"],
            "additionalProperties": False,
            "properties": {
                "name": {**SHORT, "title": "Name"},
                "nickname": optional,
                "age": {"type": "integer", "minimum": 0, "maximum": 130, "title": "Age"},
            },
        },
    )
    step = {"title": "Step", **obj(explanation=SHORT, output=SHORT)}
    yield (
        "reasoning steps",
        {
            "$defs": {"Step": step},
            "title": "Reasoning",
            **obj(steps=few({"$ref": "#/$defs/Step"}, 1), final_answer=SHORT),
        },
    )
    colour = {"enum": ["red", "green"], "title": "Colour", "type": "string"}
    yield "enum class", {"$defs": {"Colour": colour}, **obj(colour={"$ref": "#/$defs/Colour"})}
    item = obj(sku={"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}, count=SCALARS["integer"])
    yield (
        "order",
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$defs": {"Item": item},
            **obj(
                id={"type": "string", "format": "uuid"},
                at={"type": "string", "format": "date-time"},
                items=few({"$ref": "#/$defs/Item"}, 1),
                note={"anyOf": [SHORT, {"type": "null"}]},
            ),
        },
    )
    yield (
        "zod",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            **obj(recipe=obj(name=SHORT, ingredients=few(obj(name=SHORT, amount=SHORT), 1, 2), steps=few(SHORT, 1, 2))),
        },
    )
    yield (
        "classification",
        obj(
            label={"type": "string", "enum": ["spam", "ham"]}, confidence={"type": "number", "minimum": 0, "maximum": 1}
        ),
    )
    yield "geojson", obj(type={"const": "Point"}, coordinates=few({"type": "number", "minimum": 0, "maximum": 9}, 2, 2))
