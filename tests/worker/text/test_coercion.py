"""Arguments that were written as bare text have the types that their schema declares."""

import json

import pytest

from protocol.parts import joined_calls
from tests.support.tool_formats import JSON_WAYS, WRITERS, reading, write_block
from tests.support.tool_parsers import parser_module
from worker.text.tool_calls.formats import FORMATS
from worker.text.tool_calls.schemas import types_of
from worker.text.tool_calls.tags import tag_patterns

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "flag": {"type": "boolean"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"$ref": "#/$defs/whole"}, {"type": "null"}]},
        "many": {"type": "array", "items": {"type": "integer"}},
        "any": {},
    },
    "$defs": {"whole": {"type": "integer"}},
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
WAYS = sorted(way for way in set(WRITERS) - set(JSON_WAYS) if tag_patterns(FORMATS[WRITERS[way][0]]) is not None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("text", "5", "5"),
        ("text", "null", "null"),
        ("text", "[1]", "[1]"),
        ("count", "5", 5),
        ("count", "5.0", 5),
        ("count", str(2**70), 2**70),
        ("count", "five", "five"),
        ("count", "NaN", "NaN"),
        ("many", "[1, 2,]", [1, 2]),
        ("many", "[NaN]", "[NaN]"),
        ("many", "[{1}]", "[{1}]"),
        ("any", "{'a': True}", {"a": True}),
        ("ratio", "5", 5),
        ("ratio", "1e999", 1.7976931348623157e308),
        ("flag", "true", True),
        ("flag", "True", True),
        ("maybe", "word", "word"),
        ("maybe", "(1, 2)", "(1, 2)"),
        ("maybe", "b'x'", "b'x'"),
        ("either", "7", 7),
        ("either", "null", None),
        ("many", "[1, 2]", [1, 2]),
        ("any", "word", "word"),
        ("any", '{"a": 1}', {"a": 1}),
    ],
)
def test_value_is_of_its_declared_type_whatever_the_format(run, way, name, written, value):
    """Numbers keep their size, texts stay texts, and what can't be read stays as it was written."""
    text = write_block(way, [("f", {name: written})])
    if not isinstance(value, str):
        text = text.replace(' type="string"', "").replace(' string="true"', "")
    done = run([text], **reading(WRITERS[way][0], TOOLS))
    [call] = joined_calls(done.whole.calls)
    assert json.loads(call.arguments) == {name: value}
    assert type(json.loads(call.arguments)[name]) is type(value)


@pytest.mark.parametrize("name", FORMATS)
def test_markers_are_those_of_the_parser(name):
    """What mlx-lm drops, renames or marks otherwise is noticed."""
    module = parser_module(name)
    assert module.parse_tool_call
    assert (FORMATS[name].start, FORMATS[name].end) == (module.tool_call_start, module.tool_call_end or "")


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({}, set()),
        (True, set()),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": [1, "a", None, 1.5, True]}, {"integer", "string", "null", "number", "boolean"}),
        ({"const": [1]}, {"array"}),
        ({"oneOf": [{"type": "string"}, {}]}, set()),
        ({"allOf": [{"title": "x"}, {"type": "object"}]}, {"object"}),
        ({"$ref": "#/$defs/loop"}, set()),
        ({"$ref": "#/nowhere"}, set()),
        ({"$ref": "https://example.com"}, set()),
    ],
)
def test_types_are_what_a_schema_allows(schema, types):
    """References that lead nowhere, or in circles, say nothing."""
    assert types_of(schema, {"$defs": {"loop": {"$ref": "#/$defs/loop"}}}) == types
