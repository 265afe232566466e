"""Arguments that were written as bare text have the types that their schema declares."""

import importlib
import json

import pytest

from tests.support.tool_parsers import parser_module
from worker.text.tool_calls import llama3
from worker.text.tool_calls.calls import Call, calls_from
from worker.text.tool_calls.formats import FORMATS
from worker.text.tool_calls.schemas import types_of

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
BLOCKS = {
    "qwen3_coder": "<function=f>\n<parameter={}>\n{}\n</parameter>\n</function>",
    "glm47": "f\n<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n",
    "minimax_m2": '<invoke name="f">\n<parameter name="{}">{}</parameter>\n</invoke>',
    "minicpm5": '"f"><param name="{}">{}</param>',
    "muse_spark": '<atem:invoke name="f"><atem:parameter name="{}">{}</atem:parameter></atem:invoke>',
    "longcat": "f<longcat_arg_key>{}</longcat_arg_key><longcat_arg_value>{}</longcat_arg_value>",
}


@pytest.mark.parametrize("parser", BLOCKS)
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
def test_value_is_of_its_declared_type_whatever_the_parser(parser, name, written, value):
    """Numbers keep their size, texts stay texts, and what can't be read stays as it was written."""
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    [call] = calls_from(module.parse_tool_call, TOOLS)(BLOCKS[parser].format(name, written))
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


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (': "f", "parameters": {"text": "a"}}', [Call(name="f", arguments='{"text": "a"}')]),
        (
            ':"f","parameters":{}}; {"name": "f", "arguments": {}}\n',
            [Call(name="f", arguments="{}"), Call(name="f", arguments="{}")],
        ),
        (': "g", "parameters": {}}', None),
        (': "f"}', None),
        (': "f", "parameters": {}} and more', None),
        (": ", None),
    ],
)
def test_llama_calls_what_was_offered_and_nothing_else(text, calls):
    """The rest of an object behind its first name is a call of a tool, or text."""
    parse = calls_from(llama3.parse_tool_call, TOOLS)
    if calls is None:
        with pytest.raises(ValueError, match="not a tool call"):
            parse(text)
    else:
        assert parse(text) == calls
