"""What schemas leave to the model: refused under `strict`, else listed for a header."""

from typing import Any

import orjson
import pytest

from gateway.schema import unenforced
from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.completion import CompletionRequest
from gateway.schema.decode import decode
from gateway.schema.errors import ApiError
from tests.support.library_schemas import pydantic_schemas

FORMAT = "response_format.json_schema.schema"
SCHEMA = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}}
TAGGED = {
    "oneOf": [
        {"type": "object", "properties": {"kind": {"const": "a", "default": "a"}}},
        {"type": "object", "properties": {"kind": {"const": "b", "default": "b"}}},
    ]
}


def read(**fields: Any) -> ChatCompletionRequest:
    return decode(orjson.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}), ChatCompletionRequest)


def formatted(schema: Any, strict: bool | None = None) -> dict[str, Any]:
    named = {"name": "x", "schema": schema} | ({} if strict is None else {"strict": strict})
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def tools(schema: Any, *, strict: bool = False) -> dict[str, Any]:
    function = {"name": "f", "parameters": schema, "strict": strict}
    return {"tools": [{"type": "function", "function": {"name": "g"}}, {"type": "function", "function": function}]}


@pytest.mark.parametrize("strict", [None, False])
def test_keyword_is_listed_when_the_schema_is_not_strict(strict: bool | None) -> None:
    """By its place in the request; the job keeps the schema as it came."""
    request = read(**formatted(SCHEMA, strict))
    assert request.list_unenforced() == [f"{FORMAT}.properties.tags.uniqueItems"]
    grammar = request.make_grammar()
    assert grammar is not None
    assert orjson.loads(grammar.text) == SCHEMA


def test_keyword_is_refused_when_the_schema_is_strict() -> None:
    """400 that names the parameter and the place in the schema, in our words."""
    with pytest.raises(ApiError) as refused:
        read(**formatted(SCHEMA, True))
    assert (refused.value.status, refused.value.param) == (400, FORMAT)
    assert f"'{FORMAT}.properties.tags.uniqueItems' can't be enforced" in refused.value.message


@pytest.mark.parametrize("strict", [None, False, True])
@pytest.mark.parametrize(
    "schema",
    [
        TAGGED,
        {"type": "object", "propertyNames": {"enum": ["red", "green"]}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
        {"type": "string", "format": "password"},
    ],
)
def test_schema_is_taken_when_nothing_is_left_of_it(schema: dict[str, Any], strict: bool | None) -> None:
    """Strict or not."""
    assert read(**formatted(schema, strict)).list_unenforced() == []


def test_schema_is_taken_when_pydantic_wrote_it() -> None:
    """All of its common types without `strict`; with it those of which nothing is left to the model."""
    for schema in pydantic_schemas().values():
        left = read(**formatted(schema)).list_unenforced()
        if left:
            with pytest.raises(ApiError, match="can't be enforced"):
                read(**formatted(schema, True))
        else:
            read(**formatted(schema, True))


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_tool_is_listed_when_its_call_is_demanded(choice: Any) -> None:
    """Its schema holds the answer then."""
    where = "tools[1].function.parameters"
    assert read(**tools(SCHEMA), tool_choice=choice).list_unenforced() == [f"{where}.properties.tags.uniqueItems"]
    assert read(**tools({"type": "nonsense"}), tool_choice=choice).list_unenforced() == [where]


def test_tool_is_not_listed_when_nothing_holds_its_call() -> None:
    """Calls that the model makes of its own accord are not enforced at all."""
    assert read(**tools(SCHEMA)).list_unenforced() == []
    named = {"type": "function", "function": {"name": "g"}}
    assert read(**tools(SCHEMA), tool_choice=named).list_unenforced() == []


def test_tool_is_refused_when_it_is_strict() -> None:
    """As a strict answer is."""
    with pytest.raises(ApiError, match=r"tools\[1\]\.function\.parameters\.properties\.tags\.uniqueItems") as refused:
        read(**tools(SCHEMA, strict=True))
    assert refused.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize("given", [SCHEMA, orjson.dumps(SCHEMA).decode()])
def test_extra_field_is_listed_in_chat_and_in_completions(given: Any) -> None:
    """`structured_outputs` knows no `strict`."""
    expected = ["structured_outputs.json.properties.tags.uniqueItems"]
    assert read(structured_outputs={"json": given}).list_unenforced() == expected
    text = decode(orjson.dumps({"prompt": "x", "structured_outputs": {"json": given}}), CompletionRequest)
    assert text.list_unenforced() == expected


def test_schema_is_refused_when_it_is_none() -> None:
    """With its place, also where nothing is strict."""
    with pytest.raises(ApiError, match=r"properties\.a\.type is 'text', which is no type of JSON") as refused:
        read(**formatted({"properties": {"a": {"type": "text"}}})).list_unenforced()
    assert (refused.value.status, refused.value.param) == (400, FORMAT)


def test_header_holds_any_place_when_there_are_many() -> None:
    """No character breaks it, and it stays short."""
    assert unenforced.header_of(["a.b[0].not", 'x.ü, "\n.if']) == "a.b[0].not, x.%C3%BC%2C%20%22%0A.if"
    many = unenforced.header_of([f"a.properties.name{number}.uniqueItems" for number in range(500)])
    assert len(many) < 1100
    assert many.endswith(" more")
