"""`GET /v1/models` and `/v1/models/{id}`."""

from typing import Any

import pytest
from openai.types import Model
from yarl import URL

from protocol.messages import Kind

CARD = {
    "id": "small",
    "object": "model",
    "created": 1_700_000_000,
    "owned_by": "local-mlx",
    "description": "A small one",
    "context_length": 4096,
    "family": "qwen3",
    "tags": ["local", "chat"],
    "tier": "3A",
    "kind": "chat",
    "state": "ready",
    "replicas": 1,
    "root": "org/small-4bit",
    "parent": None,
    "capabilities": ["chat", "tools"],
    "type": "llm",
    "task": "text-generation",
}


async def test_list_holds_every_model_when_asked(client: Any) -> None:
    """All fields, in the SDK's shape and more."""
    answer = await (await client.get("/v1/models")).json()
    assert answer == {"object": "list", "data": [CARD]}
    Model.model_validate(answer["data"][0], strict=True)


@pytest.fixture
def zoo(pool: Any) -> None:
    """A model of each kind."""
    make = type(pool.served[0])
    pool.served = [make(name=kind.value, kind=kind, aliases=()) for kind in Kind]


@pytest.mark.usefixtures("zoo")
async def test_kind_is_told_in_others_words_when_models_are_listed(client: Any) -> None:
    """LM Studio's `type` and the hub's `task`."""
    cards = (await (await client.get("/v1/models")).json())["data"]
    assert {card["kind"]: (card["type"], card["task"]) for card in cards} == {
        "chat": ("llm", "text-generation"),
        "vision": ("vlm", "image-text-to-text"),
        "embedding": ("embedding", "feature-extraction"),
    }


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("llm", ["chat"]),
        ("llm,vlm", ["chat", "vision"]),
        ("Chat, vision", ["chat", "vision"]),
        ("embedding", ["embedding"]),
        ("", ["chat", "vision", "embedding"]),
    ],
)
async def test_list_is_shorter_when_types_are_asked_for(client: Any, query: str, names: list[str]) -> None:
    """For clients whose base URL may have a query."""
    answer = await (await client.get("/v1/models", params={"type": query})).json()
    assert [card["id"] for card in answer["data"]] == names


async def test_type_is_refused_when_there_is_none_such(client: Any) -> None:
    """A list that is empty by mistake would be worse."""
    response = await client.get("/v1/models", params={"type": "llm,reranker"})
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "type"


@pytest.mark.parametrize("name", ["small", "gpt-x", "org/small-4bit", "org%2Fsmall-4bit", "org%2fsmall-4bit"])
async def test_model_is_found_when_named_in_any_way(client: Any, name: str) -> None:
    """By served name, alias, or hub id with a raw or an encoded slash."""
    response = await client.get(URL(f"/v1/models/{name}", encoded=True))
    assert response.status == 200
    assert await response.json() == CARD


async def test_card_is_honest_when_no_worker_was_ready_yet(client: Any, pool: Any) -> None:
    """What only a loaded model knows is null or empty until then."""
    pool.served[0].ready, pool.served[0].state, pool.served[0].replicas = None, "loading", 0
    card = await (await client.get("/v1/models/small")).json()
    assert (card["state"], card["replicas"], card["context_length"], card["family"]) == ("loading", 0, None, "")


@pytest.mark.parametrize("name", ["nope", "../../etc/passwd", "small/x", "x" * 5000])
async def test_model_is_404_when_unknown(client: Any, name: str) -> None:
    """A short answer in the one shape of errors."""
    response = await client.get(URL(f"/v1/models/{name.replace('..', '%2e%2e')}", encoded=True))
    assert response.status == 404
    body = await response.json()
    assert body["error"]["code"] in {"model_not_found", "not_found"}
    assert len(body["error"]["message"]) < 200
