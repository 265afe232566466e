"""The tables of endpoints and errors in docs/api.md are the code's."""

import re
from pathlib import Path

import pytest

from gateway.access.keys.key import OPEN
from gateway.http.openapi import ROUTES
from gateway.routes import health
from gateway.schema.errors import TABLE
from tests.support.guarded_app import app_of, guarded

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def rows(head: str) -> list[list[str]]:
    """The cells of each row of the table whose first column is called so."""
    table = PAGE.split(f"\n| {head} |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.skipif(not hasattr(health, "SEEING"), reason="the page tells of permissions to come")
async def test_endpoints_are_documented_when_they_exist(tmp_path: Path) -> None:
    """Every route with its permissions, and nothing that is not there."""
    told = {}
    for endpoint, permission, _ in rows("endpoint"):
        method, path = endpoint.strip("`").split()
        told[method, path] = {OPEN} if permission == "open" else set(re.findall(r"`([^`]+)`", permission))
    async with guarded(tmp_path) as client:
        operations = app_of(client)[ROUTES].values()
        served = {(one.method, re.sub(r":[^}]+", "", one.path)): set(one.access) for one in operations}
    assets = {key for key in served if key[1].startswith("/docs/assets/")}
    assert told == {key: access for key, access in served.items() if key not in assets}


def test_errors_are_documented_when_they_exist() -> None:
    """Every code with its status, and nothing that is not there."""
    told = {code.strip("`"): int(status) for code, status, _ in rows("code")}
    assert told == {code: policy.status for code, policy in TABLE.items()}
