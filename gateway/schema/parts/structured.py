"""What an answer must look like: OpenAI's `response_format`, vLLM's `structured_outputs`, and what they become."""

from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from gateway.schema.base import ContentPart
from gateway.schema.decode import depth
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import MAX_CHOICES, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, NAME_PATTERN
from protocol.messages import Grammar
from protocol.schemas.enforceable import SchemaError, make_enforceable

FORMAT = "response_format.json_schema.schema"


class TextFormat(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class NamedSchema(ContentPart, frozen=True, kw_only=True):
    """A schema by OpenAI's rules. It is enforced with `strict` and without; with it, all of it or nothing."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that fits a schema."""

    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(ContentPart, frozen=True, kw_only=True):
    """vLLM's extra field: exactly one of these. `json` is a schema (or the text of one), `grammar` Lark or GBNF."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: Annotated[str, Meta(min_length=1)] | None = None
    choice: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_CHOICES)] | None = (
        None
    )
    grammar: Annotated[str, Meta(min_length=1)] | None = None


def format_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    """Return what `response_format` demands. Raises `ApiError`."""
    match wanted:
        case None | TextFormat():
            return None
        case JsonObjectFormat():
            return Grammar("json_object", "", "response_format")
        case JsonSchemaFormat():
            named = wanted.json_schema
            return Grammar("json_schema", checked_schema(named.schema, FORMAT, strict=bool(named.strict)), FORMAT)


def extra_grammar(wanted: StructuredOutputs | None) -> Grammar | None:
    """Return what `structured_outputs` demands. Raises `ApiError`."""
    if wanted is None:
        return None
    given = [name for name in wanted.__struct_fields__ if getattr(wanted, name) not in (None, False)]
    if len(given) != 1:
        names = ", ".join(wanted.__struct_fields__)
        raise invalid(f"'structured_outputs' takes exactly one of {names}.", "structured_outputs")
    where = f"structured_outputs.{given[0]}"
    match wanted:
        case StructuredOutputs(json=str() as text):
            return Grammar("json_schema", checked_schema(_object(text, where), where), where)
        case StructuredOutputs(json=dict() as schema):
            return Grammar("json_schema", checked_schema(schema, where), where)
        case StructuredOutputs(regex=str() as text):
            return Grammar("regex", _short(text, where), where)
        case StructuredOutputs(grammar=str() as text):
            return Grammar("grammar", _short(text, where), where)
        case StructuredOutputs(choice=list() as choices):
            return Grammar("choice", _short(msgspec.json.encode(choices).decode(), where), where)
        case _:
            return Grammar("json_object", "", where)


def checked_schema(schema: dict[str, Any], where: str, *, strict: bool = False) -> str:
    """Return a JSON schema within bounds, as text. Raises `ApiError` with `where` as `param`.

    `strict`: a keyword that can't be enforced is refused, too.
    """
    try:
        text = orjson.dumps(schema)
    except TypeError:  # orjson's own limit, 254 levels
        raise _too_deep(where) from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise _too_long(where)
    if depth(schema, MAX_SCHEMA_DEPTH) > MAX_SCHEMA_DEPTH:
        raise _too_deep(where)
    if strict and (left := unenforced_in(schema, where)):
        raise invalid(
            f"'{left[0]}' can't be enforced: leave it out, or do without 'strict'; it is left to the model then.", where
        )
    return text.decode()


def unenforced_in(schema: dict[str, Any], where: str) -> list[str]:
    """Return the places of all that a schema leaves to the model. Raises `ApiError` where it is no schema."""
    try:
        return [f"{where}.{place}" for place in make_enforceable(schema).left]
    except SchemaError as error:
        raise invalid(f"'{where}' is no JSON schema that can be followed: {error}.", where) from None


def unenforced_format(wanted: ResponseFormat | None) -> list[str]:
    """Return what `response_format` leaves to the model. Raises `ApiError`."""
    if not isinstance(wanted, JsonSchemaFormat) or wanted.json_schema.strict:
        return []
    return unenforced_in(wanted.json_schema.schema, FORMAT)


def unenforced_extra(wanted: StructuredOutputs | None) -> list[str]:
    """Return what `structured_outputs` leaves to the model. Raises `ApiError`."""
    if wanted is None or wanted.json is None:
        return []
    where = "structured_outputs.json"
    return unenforced_in(_object(wanted.json, where) if isinstance(wanted.json, str) else wanted.json, where)


def _too_deep(where: str) -> ApiError:
    return invalid(f"'{where}' is nested more than {MAX_SCHEMA_DEPTH} levels deep.", where)


def _short(text: str, where: str) -> str:
    # A character takes a byte at least: a text of megabytes is not encoded to find out.
    if len(text) > MAX_SCHEMA_BYTES or len(text.encode()) > MAX_SCHEMA_BYTES:
        raise _too_long(where)
    return text


def _too_long(where: str) -> ApiError:
    return invalid(f"'{where}' is larger than {MAX_SCHEMA_BYTES} bytes.", where)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = orjson.loads(_short(text, where))
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise invalid(f"'{where}' is not a JSON schema.", where)
    return found
