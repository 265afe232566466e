"""The table of routes and the OpenAPI 3.1 document made of it, from the very types that validate requests."""

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from aiohttp.web_urldispatcher import AbstractRoute

from gateway.access.keys.key import METERED, OPEN
from gateway.http.connection import expect_permission
from gateway.http.field_texts import FIELD_TEXTS
from gateway.schema import ignored
from gateway.schema.base import Answer, Request
from gateway.schema.errors import TABLE, ErrorBody
from gateway.schema.parts.bounds import MAX_IMAGES

_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_GUARDED_ERRORS = (
    "missing_api_key",
    "invalid_api_key",
    "expired_api_key",
    "insufficient_permissions",
    "keys_unavailable",
)
_METERED_ERRORS = ("model_not_allowed", "rate_limit_exceeded")
_FILES = MappingProxyType(
    {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": MAX_IMAGES}
)
_IGNORED = MappingProxyType(
    {
        ignored.HEADER: {
            "description": "Parameters that were taken and change nothing, where there were any.",
            "schema": {"type": "string"},
        }
    }
)
_SCHEMES = MappingProxyType(
    {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key. `X-API-Key: KEY` and `?api_key=KEY` do as well. In development any will do.",
        }
    }
)
_ABOUT = """Several MLX models behind one OpenAI-compatible API.

- `model` is a served name, an alias, a hub id or its last part, or a kind (`chat`, `vision`, `embedding`). Without
  it the default model answers.
- Every error has one shape: `{"error": {"message", "type", "param", "code", "error_id"}}`. `x-should-retry`,
  `retry-after` and `retry-after-ms` say whether and when to try again.
- What would change the answer and is not done is refused by name. What can't change it is named in
  `x-ignored-parameters`.
- Streams are server-sent events that end with `data: [DONE]`, or with an error and no `[DONE]`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One route, as the router and the documentation see it.

    Args:
        path: aiohttp's pattern.
        tag: the group it is shown in.
        body: type of the JSON request body, `example` a body to try it with.
        form: type of the fields beside the files where the body may be a form, too; `file` what those are called.
        answer: type of the JSON answer; None where the answer is not JSON of a fixed shape.
        chunk: type of the frames where the route also streams.
        errors: codes of `gateway.schema.errors.TABLE` that callers should expect.
        media_type: of an answer without a type.
        access: permissions, one of which a caller needs; `(OPEN,)` asks nobody for a key. Without any it is closed to
            everyone wherever keys are asked for.
        pool_wide: True for what concerns all models; closed to keys that are limited to some.
        documented: False for pages that are no API.
        quiet: True for what machines ask every few seconds; its log lines are for debugging only.

    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    body: type[Request] | None = None
    example: dict[str, Any] | None = None
    form: type[Request] | None = None
    file: str = ""
    answer: type[Answer] | None = None
    chunk: type[Answer] | None = None
    errors: tuple[str, ...] = ()
    media_type: str = _JSON
    access: tuple[str, ...] = ()
    pool_wide: bool = False
    documented: bool = True
    quiet: bool = False

    @property
    def all_errors(self) -> tuple[str, ...]:
        """Codes that callers should expect, with those that stand before the handler."""
        guarded = () if OPEN in self.access else _GUARDED_ERRORS
        metered = () if METERED.isdisjoint(self.access) else _METERED_ERRORS
        return tuple(dict.fromkeys((*self.errors, *guarded, *metered)))


OPERATIONS: web.AppKey[list[Operation]] = web.AppKey("operations", list)
ROUTES: web.AppKey[dict[AbstractRoute, Operation]] = web.AppKey("routes", dict)
"""What is known of a request, by the route object it was resolved to; its path has many spellings."""


def mount(app: web.Application, operations: tuple[Operation, ...]) -> None:
    """Add routes; what is added here is documented. GET answers HEAD, too."""
    app.setdefault(OPERATIONS, []).extend(operations)
    routes = app.setdefault(ROUTES, {})
    for operation in operations:
        resource = app.router.add_resource(operation.path)
        methods = (hdrs.METH_HEAD, hdrs.METH_GET) if operation.method == hdrs.METH_GET else (operation.method,)
        for method in methods:
            routes[resource.add_route(method, operation.handler, expect_handler=expect_permission)] = operation


def document(operations: list[Operation], *, title: str, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of those operations that are documented."""
    shown = [operation for operation in operations if operation.documented]
    types: set[type] = {ErrorBody}
    for operation in shown:
        kinds = (operation.body, operation.form, operation.answer, operation.chunk)
        types.update(kind for kind in kinds if kind is not None)
    ordered = sorted(types, key=lambda kind: kind.__name__)
    references, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    for component in components.values():
        for field in component.get("properties", {}).values():
            # "Absent" is how the types say it; to a reader of the document a default of null says nothing.
            if field.get("default", ...) is None:
                del field["default"]
    for operation in shown:
        if operation.form is not None:
            form = components[operation.form.__name__]
            form["properties"] = {operation.file: dict(_FILES), **form["properties"]}
            form["required"] = [operation.file, *form.get("required", [])]
    for name, component in components.items():
        _explain(name, component)
    schemas = dict(zip(ordered, references, strict=True))
    paths: dict[str, Any] = {}
    for operation in shown:
        path = re.sub(r"{(\w+)[^}]*}", r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _describe(operation, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The pool that serves this page"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in shown)],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": dict(_SCHEMES)},
        "security": [{name: []} for name in _SCHEMES],
    }


def _explain(name: str, component: dict[str, Any]) -> None:
    """Say of each field what it means, and in words that viewers understand what it holds."""
    for field, schema in component.get("properties", {}).items():
        _name_alternatives(schema)
        inner = [option.pop("description", None) for option in schema.get("anyOf", ())]
        text = FIELD_TEXTS.get(f"{name}.{field}") or next(filter(None, inner), None) or FIELD_TEXTS.get(field)
        if text is not None and "description" not in schema:
            schema["description"] = text


def _name_alternatives(schema: dict[str, Any]) -> None:
    """Have viewers show tagged objects as a choice of objects, and names as texts, where they would say `any`."""
    if "discriminator" in schema and "anyOf" in schema:
        schema["oneOf"] = schema.pop("anyOf")
        schema["type"] = "object"
    if all(isinstance(value, str) for value in schema.get("enum", [None])):
        schema.setdefault("type", "string")
    for inner in (schema.get("items"), *schema.get("anyOf", ())):
        if isinstance(inner, dict):
            _name_alternatives(inner)


def _describe(operation: Operation, path: str, schemas: dict[type, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media_type: {}}
    if operation.answer is not None:
        content[operation.media_type] = {"schema": schemas[operation.answer]}
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": schemas[operation.chunk]}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
    if operation.body is not None and operation.body.ignorable:
        responses["200"]["headers"] = dict(_IGNORED)
    by_status: dict[int, list[str]] = {}
    for code in operation.all_errors:
        by_status.setdefault(TABLE[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        described = {"description": ", ".join(f"`{code}`" for code in codes)}
        responses[str(status)] = described | {"content": {_JSON: {"schema": schemas[ErrorBody]}}}
    described_operation: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', path).rstrip('_')}",
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses,
    }
    if OPEN in operation.access:
        described_operation["security"] = []
    if names := re.findall(r"{(\w+)}", path):
        described_operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        described_operation["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": schemas[operation.body], "example": operation.example}},
        }
    if operation.form is not None:
        form = {"schema": schemas[operation.form]}
        described_operation["requestBody"]["content"]["multipart/form-data"] = form
    return described_operation
