"""What a refusal of a model's name tells: the nearest name and the list, to those who may know."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.context import POOL
from protocol.messages import Kind
from tests.support.dispatch_rig import announcement
from tests.support.guarded_app import MASTER, Client, app_of, bearer, guarded, issue

CHAT = {"messages": [{"role": "user", "content": "x"}]}
NAMES = ("Qwen3-0.6B-4bit", "demo", "org/Llama-3.1-8B", "secret-project")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with guarded(tmp_path, aliases={"gpt-4o": "demo"}) as connected:
        registry = app_of(connected)[POOL]._registry
        for at, name in enumerate(NAMES):
            announce = announcement(f"w{at}", name, source=name, kind=Kind.EMBEDDING if name == "demo" else Kind.CHAT)
            assert registry.register_worker(f"w{at}".encode(), announce, 1.0) is not None
        registry.end_startup_grace()
        yield connected


async def refusal(client: Client, key: str, name: str) -> tuple[int, str]:
    answer = await client.post("/v1/chat/completions", json={**CHAT, "model": name}, headers=bearer(key))
    return answer.status, (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("qwen3-0.6b-4bit", "Qwen3-0.6B-4bit"),
        ("Qwen3-0.6B", "Qwen3-0.6B-4bit"),
        ("llama-3.1-8b", "org/Llama-3.1-8B"),
        ("org/llama-3.1-8B", "org/Llama-3.1-8B"),
        ("gpt-4o-mini", "demo"),
        ("demp", "demo"),
        ("zzzzzz", None),
    ],
)
async def test_nearest_name_and_the_list_are_told_when_a_name_is_mistyped(
    client: Client, asked: str, near: str | None
) -> None:
    """Whatever its case, by the last part of a hub id, by an alias."""
    listed = " Served here: Qwen3-0.6B-4bit, demo, org/Llama-3.1-8B, secret-project."
    hint = f" Did you mean {near!r}?" if near else ""
    assert await refusal(client, MASTER, asked) == (404, f"The model {asked!r} does not exist.{hint}{listed}")


async def test_limited_key_is_told_its_own_models_when_it_names_another(client: Client) -> None:
    """In the same words, whether the other is served or not, and never a name that is not its own."""
    key = await issue(client, "chat", "models", models=("Qwen3-0.6B-4bit",))
    for asked in ("secret-project", "secret-projekt", "nothing"):
        status, message = await refusal(client, key, asked)
        assert status == 403
        assert message == (f"The API key does not allow the use of the model {asked!r}. Served here: Qwen3-0.6B-4bit.")
    status, message = await refusal(client, key, "qwen3-0.6b-4bit")
    assert "Did you mean 'Qwen3-0.6B-4bit'?" in message
    answer = await client.get("/v1/models/secret-projekt", headers=bearer(key))
    assert answer.status == 404
    assert "secret-project'" not in await answer.text()


async def test_nobody_is_told_names_who_may_not_list_models(client: Client) -> None:
    """The permission `models` is what lists of models ask for."""
    key = await issue(client, "chat")
    assert await refusal(client, key, "demp") == (404, "The model 'demp' does not exist.")


async def test_kind_is_a_name_when_no_model_is_called_so(client: Client) -> None:
    """`chat`, `vision`, `embedding` mean the default model of that kind: real models serve on in a demo's place."""
    for asked, name in (("chat", "Qwen3-0.6B-4bit"), ("embedding", "demo")):
        card = await (await client.get(f"/v1/models/{asked}", headers=bearer(MASTER))).json()
        assert card["id"] == name
    assert (await client.get("/v1/models/vision", headers=bearer(MASTER))).status == 404
    registry = app_of(client)[POOL]._registry
    registry.register_worker(b"w9", announcement("w9", "chat", source="chat"), 1.0)
    assert (await (await client.get("/v1/models/chat", headers=bearer(MASTER))).json())["id"] == "chat"
    key = await issue(client, "chat", "models", models=("secret-project",))
    card = await (await client.get("/v1/models/chat", headers=bearer(key))).json()
    assert card["id"] == "secret-project"
