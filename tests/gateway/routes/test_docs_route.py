"""The OpenAPI document and the pages that show it."""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from yarl import URL

from gateway.http.field_texts import FIELD_TEXTS
from gateway.http.openapi import OPERATIONS
from gateway.routes.docs import ASSETS, PAGES
from gateway.schema import chat, completion, errors, info, models, tokenize
from gateway.schema.decode import decode
from gateway.schema.errors import TABLE
from gateway.schema.parts import answers, messages, sampling, structured, thinking, tools
from tests.support.guarded_app import guarded

MODULES = (answers, chat, completion, errors, info, messages, models, sampling, structured, thinking, tokenize, tools)


async def document(client: Any) -> dict[str, Any]:
    response = await client.get("/openapi.json")
    assert response.status == 200
    return await response.json()


def types() -> set[str]:
    return {
        name
        for module in MODULES
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    } - {"Generation"}


async def test_every_type_is_documented_when_it_validates_or_answers(client: Any) -> None:
    """No schema exists that the document does not show."""
    assert set((await document(client))["components"]["schemas"]) == types()


async def test_every_route_is_documented_when_it_is_an_api(client: Any) -> None:
    """Paths and methods of the document are those of the router."""
    described = await document(client)
    expected = {
        ("/v1/chat/completions", "post"),
        ("/v1/completions", "post"),
        ("/v1/tokenize", "post"),
        ("/v1/detokenize", "post"),
        ("/v1/tokenizer_info", "get"),
        ("/tokenize", "post"),
        ("/detokenize", "post"),
        ("/tokenizer_info", "get"),
        ("/version", "get"),
        ("/info", "get"),
        ("/v1/models", "get"),
        ("/v1/models/{id}", "get"),
    }
    assert {(path, method) for path, item in described["paths"].items() for method in item} == expected
    mounted = {(o.path, o.method) for o in client.app[OPERATIONS]}
    routes = {(r.resource.canonical, r.method) for r in client.app.router.routes() if r.method != "HEAD"}
    assert {(re.sub(r":[^}]*", "", path), method) for path, method in mounted} == routes - {("/broken", "GET")}


async def test_references_resolve_when_followed(client: Any) -> None:
    """Every `$ref` names a schema that is there, and every operation has an id of its own."""
    described = await document(client)
    assert described["openapi"] == "3.1.0"
    references = set(re.findall(r"#/components/schemas/(\w+)", str(described)))
    assert references <= set(described["components"]["schemas"])
    ids = [operation["operationId"] for item in described["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids)) == 12
    statuses = set(described["paths"]["/v1/chat/completions"]["post"]["responses"])
    assert {"200", "400", "401", "403", "404", "413", "415", "429", "500", "503", "504", "507"} == statuses
    assert statuses - {"200"} <= {str(policy.status) for policy in TABLE.values()}


async def test_bounds_are_documented_when_they_are_enforced(client: Any) -> None:
    """The document carries the very ranges that validate."""
    schemas = (await document(client))["components"]["schemas"]
    request = schemas["ChatCompletionRequest"]
    assert request["additionalProperties"] is False
    assert request["required"] == ["messages"]
    temperature = request["properties"]["temperature"]["anyOf"][0]
    assert (temperature["minimum"], temperature["maximum"]) == (0, 2)
    assert request["properties"]["messages"]["maxItems"] == 2048


async def test_header_is_documented_when_a_body_may_hold_what_changes_nothing(client: Any) -> None:
    """It is on the answers of every such endpoint."""
    paths = (await document(client))["paths"]
    named = {path for path, item in paths.items() if "headers" in (item.get("post") or item["get"])["responses"]["200"]}
    takers = {"/v1/chat/completions", "/v1/completions"}
    assert named == takers | {f"{prefix}/{name}" for prefix in ("", "/v1") for name in ("tokenize", "detokenize")}


async def test_example_is_a_legal_request_when_shown(client: Any) -> None:
    """What a reader can try out works."""
    shown = [operation for operation in client.app[OPERATIONS] if operation.body is not None]
    assert len(shown) == 6
    for operation in shown:
        decode(orjson.dumps(operation.example), operation.body)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_page_loads_nothing_from_elsewhere_when_opened(client: Any, page: str) -> None:
    """HTML names only paths of this server, all of which answer, and the policy forbids the rest."""
    response = await client.get(page)
    html = await response.text()
    assert response.status == 200
    assert response.content_type == "text/html"
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    linked = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(linked) >= 3
    for link in linked:
        assert link.startswith("/docs/assets/")
        assert (await client.get(link)).status == 200


@pytest.mark.parametrize("name", ["VENDORED.md", "swagger.html", "..%2f..%2fapp.py", "%2e%2e", "x.js"])
async def test_asset_is_404_when_not_on_the_list(client: Any, name: str) -> None:
    """Nothing but the closed list of files is served."""

    assert (await client.get(URL(f"/docs/assets/{name}", encoded=True))).status == 404


def test_own_scripts_load_nothing_from_elsewhere_when_read() -> None:
    """The pages' own files hold no address; the badge that would send ours away is off."""
    for name in ("swagger.html", "redoc.html", "swagger-page.js", "redoc-page.js"):
        assert "//" not in re.sub(r"^// .*$", "", (PAGES / name).read_text(), flags=re.MULTILINE)
    assert "validatorUrl: null" in (PAGES / "swagger-page.js").read_text()


def test_third_party_files_are_unchanged_when_hashed() -> None:
    """Each is the released file, with its licence beside it."""
    listed = dict(
        reversed(line.split("  "))
        for line in (PAGES / "VENDORED.md").read_text().splitlines()
        if re.match(r"[0-9a-f]{64}  ", line)
    )
    assert set(listed) < ASSETS
    for name, digest in listed.items():
        assert hashlib.sha256((PAGES / name).read_bytes()).hexdigest() == digest
    assert "Apache License" in (PAGES / "swagger-ui.LICENSE").read_text()
    assert "MIT" in (PAGES / "redoc.LICENSE").read_text()


async def test_document_introduces_itself_when_it_is_read(client: Any) -> None:
    """A title, what all of it has in common, the server that serves it, and one place for the key."""
    described = await document(client)
    assert described["info"]["title"] == "MLX pool API"
    assert "`model` is a served name" in described["info"]["description"]
    assert [server["url"] for server in described["servers"]] == ["/"]
    assert list(described["components"]["securitySchemes"]) == ["key"]
    assert described["security"] == [{"key": []}]
    used = {tag for item in described["paths"].values() for operation in item.values() for tag in operation["tags"]}
    assert used == {tag["name"] for tag in described["tags"]}
    for page in ("/docs", "/redoc"):
        assert "<title>MLX pool: API" in await (await client.get(page)).text()


async def test_every_field_is_explained_when_it_is_documented(tmp_path: Path) -> None:
    """Of every type; and no explanation is left over."""
    async with guarded(tmp_path) as whole:
        schemas = (await document(whole))["components"]["schemas"]
    fields = {
        (name, field): text for name, kind in schemas.items() for field, text in kind.get("properties", {}).items()
    }
    assert not [place for place, schema in fields.items() if not schema.get("description")]
    known = {field for _, field in fields} | {f"{name}.{field}" for name, field in fields}
    assert not FIELD_TEXTS.keys() - known


async def test_messages_are_shown_as_a_choice_of_objects(client: Any) -> None:
    """A viewer shows no `any` where it needs a type to say more; parts of a message are a choice, too."""
    schemas = (await document(client))["components"]["schemas"]
    items = schemas["ChatCompletionRequest"]["properties"]["messages"]["items"]
    assert items["type"] == "object"
    assert {option["$ref"].rpartition("/")[2] for option in items["oneOf"]} >= {"SystemMessage", "UserMessage"}
    assert items["discriminator"]["propertyName"] == "role"
    parts = next(option for option in schemas["UserMessage"]["properties"]["content"]["anyOf"] if "items" in option)
    assert parts["items"]["type"] == "object"
    assert "oneOf" in parts["items"]
    assert schemas["UserMessage"]["properties"]["role"]["type"] == "string"
