"""Every route of a running gateway, read from its own OpenAPI document: a new one is attacked without being named."""

from dataclasses import dataclass
from typing import Any

from hostility.exchanges import Address, ask

JSON = "application/json"
FORM = "multipart/form-data"
_NOBODY = "nobody-0123456789"
"""Stands for names and ids in paths: nothing is drained or revoked by accident."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation. `fields` are the schemas of its JSON body, `form` the names of its form's fields."""

    method: str
    path: str
    open: bool
    example: dict[str, Any]
    fields: dict[str, Any]
    form: tuple[str, ...] = ()
    file: str = ""

    @property
    def name(self) -> str:
        """As one writes it."""
        return f"{self.method} {self.path}"

    @property
    def address(self) -> str:
        """A path that can be asked for; it names nothing that there is."""
        parts = [_NOBODY if part.startswith("{") else part for part in self.path.split("/")]
        return "/".join(parts)

    @property
    def of_users(self) -> bool:
        """Whether an ordinary key opens it."""
        return not self.path.startswith("/admin")


def read_routes(address: Address, key: str) -> list[Route]:
    """Read all routes. Raises `RuntimeError` where the gateway describes none."""
    answer = ask(address, "GET", "/openapi.json", headers={"Authorization": f"Bearer {key}"})
    document = answer.json()
    if not document or "paths" not in document:
        raise RuntimeError(f"/openapi.json answers {answer.status}")
    schemas = document["components"]["schemas"]
    return [
        _route(method, path, described, schemas)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]


def _route(method: str, path: str, described: dict[str, Any], schemas: dict[str, Any]) -> Route:
    content = described.get("requestBody", {}).get("content", {})
    shapes = {kind: _properties(entry, schemas) for kind, entry in content.items()}
    form = shapes.get(FORM, {})
    files = [name for name, shape in form.items() if shape.get("items", {}).get("format") == "binary"]
    return Route(
        method=method.upper(),
        path=path,
        open=described.get("security") == [],
        example=content.get(JSON, {}).get("example") or {},
        fields=shapes.get(JSON, {}),
        form=tuple(name for name in form if name not in files),
        file=files[0] if files else "",
    )


def _properties(entry: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    name = entry["schema"].get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schemas.get(name, entry["schema"]).get("properties", {})
    return found
