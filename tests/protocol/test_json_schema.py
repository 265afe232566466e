"""What of a schema is enforced: written otherwise with the same meaning, left out in silence, or left out and named."""

import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.schemas.enforceable import SchemaError, make_enforceable
from protocol.schemas.patterns import as_patterns
from tests.support.schema_corpus import corpus

KEYWORDS = (
    "propertyNames", "uniqueItems", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "contains",
    "dependencies", "unevaluatedProperties", "unevaluatedItems", "oneOf", "$dynamicRef", "minContains", "maxContains",
)  # fmt: skip
"""What no grammar knows."""
A, B = {"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "n": {"type": "integer"}}}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}}}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": False},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"type": "object", "propertyNames": {"type": "string"}},
        {"type": "object", "propertyNames": {}},
        {"type": "object", "propertyNames": True},
        {"not": False},
        {"if": {"type": "string"}},
        {"then": {"type": "string"}, "else": {}},
        {"if": {"type": "string"}, "then": True, "else": {"description": "anything"}},
        {"type": "object", "dependentRequired": {}},
        {"type": "object", "dependentRequired": {"a": []}},
        {"type": "object", "required": ["b"], "dependentRequired": {"a": ["b"]}},
        {"type": "object", "dependentSchemas": {"a": {}}},
        {"type": "array", "contains": {"type": "string"}, "minContains": 0},
        {"type": "array", "minContains": 2},
        {"type": "object", "unevaluatedProperties": True},
        {"type": "array", "unevaluatedItems": {}},
        {"type": "object", "properties": {"a": {}}, "minProperties": 0},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": False, "maxProperties": 1},
        {"type": "string", "format": "password"},
        {"type": "string", "format": "binary"},
        {"type": "integer", "format": "int64"},
        {"type": "number", "maximum": 1.7976931348623157e308},
        {"type": "any"},
        {"type": "string", "x-guidance": {"coerce_one_of": True}},
    ],
    ids=str,
)
def test_keyword_is_left_out_in_silence_when_it_constrains_nothing(schema: dict[str, Any]) -> None:
    """Any answer that fits the rest fits it."""
    found = make_enforceable(schema)
    assert found.left == []
    assert not found.schema.keys() & {*KEYWORDS, "x-guidance", "maxProperties"}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "not": {"const": "x"}}, "not"),
        ({"properties": {"a": {"if": {"type": "string"}, "then": {"minLength": 2}}}}, "properties.a.if"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
        ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
        ({"items": {"type": "array", "contains": {"type": "string"}}}, "items.contains"),
        ({"$defs": {"x": {"type": "string", "format": "regex"}}, "$ref": "#/$defs/x"}, "$defs.x.format"),
        ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": r"\bx\b"}]}, "anyOf[1].pattern"),
        ({"type": "string", "pattern": "a(?!b)"}, "pattern"),
        ({"type": "string", "pattern": r"(a)\1"}, "pattern"),
        ({"type": "object", "patternProperties": {"(?<=a)b": {}}}, "patternProperties"),
        ({"type": "object", "propertyNames": {"not": {"const": "a"}}}, "propertyNames"),
        ({"type": "object", "allOf": [A], "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, "minProperties"),
        ({"oneOf": [A, B]}, "oneOf"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"prefixItems": [{}, {"oneOf": [{"minimum": 1}, {"minimum": 2}]}]}, "prefixItems[1].oneOf"),
        ({"$ref": "https://example.org/schema"}, "$ref"),
        ({"$dynamicRef": "#x"}, "$dynamicRef"),
        ({"type": "number", "maximum": 1e30}, "maximum"),
    ],
    ids=str,
)
def test_keyword_is_named_when_no_grammar_can_say_it(schema: dict[str, Any], place: str) -> None:
    """By its place; the rest of the schema stays."""
    found = make_enforceable(schema)
    assert found.left == [place]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
            [{}, {"a": 1}, {"a": 1, "b": 2}],
            [{"c": 1}, {"a": "x"}],
        ),
        (
            {"$defs": {"k": {"enum": ["a"]}}, "type": "object", "propertyNames": {"$ref": "#/$defs/k"}},
            [{"a": 1}],
            [{"b": 1}],
        ),
        (
            {"propertyNames": {"pattern": "^x"}, "type": "object", "additionalProperties": {"type": "null"}},
            [{"x1": None}],
            [{"a": None}, {"x": 1}],
        ),
        ({"propertyNames": {"minLength": 1, "maxLength": 2}, "type": "object"}, [{"ab": 1}], [{"": 1}, {"abc": 1}]),
        ({"oneOf": [CAT, DOG]}, [{"kind": "cat"}, {"kind": "dog"}], [{"kind": "bird"}]),
        (
            {"$defs": {"c": CAT, "d": DOG}, "oneOf": [{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/d"}]},
            [{"kind": "wolf"}],
            [],
        ),
        ({"oneOf": [{"type": "string"}, {"type": ["integer", "null"]}]}, ["x", 1, None], [True, 1.5]),
        ({"oneOf": [{"const": 1}, {"enum": [2, "3"]}]}, [1, 2, "3"], [3]),
        ({"oneOf": [closed(a={"type": "string"}), closed(b={"type": "string"})]}, [{"a": "x"}], [{"a": "x", "b": "y"}]),
        ({"anyOf": [{"type": "string"}], "oneOf": [{"const": "a"}, {"const": "b"}]}, ["a", "b"], ["c"]),
        ({"type": "array", "contains": {}, "minContains": 2, "maxContains": 3}, [[1, 2]], [[1], [1, 2, 3, 4]]),
        ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, [{"a": 1}], [{"b": 1}]),
        ({"type": "object", "properties": {"a": {"not": {}}}}, [{}, {"b": 1}], [{"a": 1}]),
        ({"type": "string", "pattern": r"^(?=.*\d)(?=.*[A-Z])[A-Za-z\d]{3,}$"}, ["aB3"], ["abc", "AB", "ab3"]),
        ({"type": "string", "format": "base64"}, ["", "aGk=", "aGkh"], ["a", "a b=", "===="]),
        ({"type": "string", "format": "uuid4"}, ["12345678-1234-4234-8234-123456789012"], ["x", ""]),
        ({"type": "string", "format": "jwt"}, ["a.b.c"], ["a.b", "a b.c.d"]),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, [1], [0]),
        ({"type": "string", "format": "cuid", "pattern": "^c"}, ["cx"], ["x"]),
    ],
    ids=str,
)
def test_keyword_is_written_otherwise_when_that_means_the_same(
    schema: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    """Nothing is left to the model, and what is allowed is what was allowed."""
    found = make_enforceable(schema)
    assert found.left == []
    assert not _keywords(found.schema) & {*KEYWORDS}
    for value in good:
        jsonschema.validate(value, found.schema)
    for value in bad:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, found.schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"type": "text"}}}, r"properties\.a\.type is 'text', which is no type of JSON"),
        ({"type": 3}, r"type is no type of JSON"),
        ({"items": {"$ref": "#/$defs/no"}}, r"items\.\$ref names '#/\$defs/no', which is not there"),
        ({"properties": {"a": "string"}}, r"properties\.a is no schema"),
        ({"anyOf": [None]}, r"anyOf\[0\] is no schema"),
    ],
)
def test_schema_is_refused_when_it_is_none(schema: dict[str, Any], said: str) -> None:
    """With the place in it, whether strict or not."""
    with pytest.raises(SchemaError, match=said):
        make_enforceable(schema)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("^a+$", ["^a+$"]),
        (r"^(?=.{1,3}$)[a-z]+$", ["^(?:.{1,3}$)", "^[a-z]+$"]),
        (r"^(?=a(b|c))(?=[)])x", ["^(?:a(b|c))", "^(?:[)])", "^x"]),
        (r"^(?=a)b|c", None),
        ("(?=a)b", None),
        ("^(?!a)b", None),
        (r"a\b", None),
        (r"[\b]\d", [r"[\b]\d"]),
        (r"[(?=]x", [r"[(?=]x"]),
        (r"\(?=a", [r"\(?=a"]),
        (r"\\b", [r"\\b"]),
        ("^(?=a", None),
        (r"(?<year>\d{4})-\k<year>", None),
        (r"(?<year>\d{4})", [r"(?<year>\d{4})"]),
    ],
)
def test_expression_is_taken_apart_when_it_looks_ahead_at_its_beginning(pattern: str, found: list[str] | None) -> None:
    """What looks further is no automaton's; what stands in a class or is escaped looks nowhere."""
    assert as_patterns(pattern) == found


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"const": number} for number in range(3000)]},
        {"oneOf": [{"type": "object", "properties": {f"p{i}": {"const": i} for i in range(20)}} for _ in range(100)]},
        {"type": "string", "pattern": "^" + "(?=a)" * 12_000},
        {"type": "string", "pattern": "(" * 60_000},
        {"type": "string", "pattern": "[" * 60_000},
        {"properties": {"k" * 20_000: {"properties": {str(number): {"not": {"const": 1}} for number in range(1500)}}}},
        {"$defs": {str(i): {"$ref": f"#/$defs/{i + 1}", "propertyNames": {"$ref": "#/$defs/0"}} for i in range(800)}},
    ],
    ids=range(7),
)
def test_schema_is_read_quickly_when_it_was_made_to_take_long(schema: dict[str, Any]) -> None:
    """The event loop waits for it: 64 KB of anything are a matter of milliseconds."""
    if "$defs" in schema:
        schema["$defs"]["800"] = {}
    began = time.process_time()
    make_enforceable(schema)
    assert time.process_time() - began < 0.5


NAMES = st.sampled_from(["a", "b", "kind"])
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 2, 1.5, "", "a", "b", "ab1", "cat", "dog"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
LEAVES = st.sampled_from(
    [
        {},
        True,
        {"type": "string"},
        {"type": "integer", "minimum": 1},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"const": "cat"},
        {"enum": ["dog", 1, None]},
        {"type": "string", "pattern": "^(?=.*1)a"},
        {"type": "string", "pattern": "a(?!b)"},
        {"type": "string", "format": "base64"},
        {"type": "string", "format": "odd"},
    ]
)


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    branches = st.lists(inner, min_size=1, max_size=3)
    some = {
        "type": st.sampled_from(["object", "array", ["object", "null"], "string"]),
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "required": st.lists(NAMES, max_size=2, unique=True),
        "additionalProperties": inner | st.booleans(),
        "propertyNames": st.sampled_from(
            [{"type": "string"}, {"enum": ["a", "b"]}, {"maxLength": 1}, {"pattern": "i"}]
        ),
        "unevaluatedProperties": st.booleans(),
        "dependentRequired": st.sampled_from([{}, {"a": ["b"]}]),
        "minProperties": st.integers(0, 2),
        "maxProperties": st.integers(1, 3),
        "items": inner,
        "uniqueItems": st.booleans(),
        "contains": inner,
        "minContains": st.integers(0, 1),
        "maxItems": st.integers(0, 2),
        "oneOf": branches,
        "anyOf": branches,
        "allOf": branches,
        "not": inner,
        "if": inner,
        "then": inner,
    }
    return st.fixed_dictionaries({}, optional=some)


@settings(max_examples=400, deadline=None)
@given(st.recursive(LEAVES, _grown, max_leaves=8).filter(lambda schema: isinstance(schema, dict)), VALUES)
def test_answer_fits_the_schema_when_nothing_of_it_is_left(schema: dict[str, Any], value: Any) -> None:
    """Whatever was written otherwise: what fits it fits what was asked for."""
    found = make_enforceable(schema)
    if not found.left and jsonschema.Draft202012Validator(found.schema).is_valid(value):
        jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("name", [*corpus()])
def test_schema_stays_as_it_is_when_all_of_it_can_be_enforced(name: str) -> None:
    """What clients send usually is neither loosened nor rewritten."""
    schema = corpus()[name]
    found = make_enforceable(schema)
    assert found.left == []
    if "maxProperties" not in str(schema):
        assert found.schema == schema


def _keywords(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_keywords, schema))
    if not isinstance(schema, dict):
        return set()
    return schema.keys() | set().union(*map(_keywords, schema.values()))
