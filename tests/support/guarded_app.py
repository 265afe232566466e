"""The whole application, as configured for production, without workers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from stress.key_traces import shown

from gateway.access.keys.key import new_key
from gateway.app import make_app
from gateway.config import GatewayConfig
from gateway.context import KEY_SYNC

MASTER = shown("the-master-key-of-this-test")
Client = TestClient[web.Request, web.Application]


@asynccontextmanager
async def guarded(folder: Path, **changes: Any) -> AsyncIterator[Client]:
    """A client of a gateway that keeps its things in `folder`."""
    fields = {"run_dir": folder / "run", "data_dir": folder / "data", "api_key": MASTER}
    async with TestClient(TestServer(make_app(GatewayConfig(**{**fields, **changes})))) as connected:
        yield connected


def app_of(client: Client) -> web.Application:
    """Its application."""
    assert client.app is not None
    return client.app


async def issue(client: Client, *permissions: str, **fields: Any) -> str:
    """The text of a new key."""
    given = {"name": "test", "permissions": permissions, **fields}
    _, text = await app_of(client)[KEY_SYNC].write_key(lambda pepper: new_key(pepper, 1.0, **given))
    return text


def bearer(text: str) -> dict[str, str]:
    """A header with a key."""
    return {"Authorization": f"Bearer {text}"}
