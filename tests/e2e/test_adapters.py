"""A model and its LoRA adapters behind one worker, as clients see them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from openai import OpenAI
from stress.running_pool import RunningPool

from tests.support.tiny_adapters import make_adapter

pytestmark = pytest.mark.mlx


def test_adapters_are_models_of_their_own_to_clients(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Listed with their parent, asked for by name, answering for themselves; one engine process has them all."""
    base = model_folder("qwen3")
    folders = [make_adapter(base, tmp_path / f"{name}-lora", seed=seed) for seed, name in enumerate(("sql", "poems"))]
    pairs = [f"{name}={folder}" for name, folder in zip(("sql", "poems"), folders, strict=True)]
    pool = start_pool(
        ("--model-path", str(base), "--served-name", "chat", "--adapter", pairs[0], "--adapter", pairs[1]),
    )
    client = OpenAI(base_url=pool.base_url, api_key="any", max_retries=0)
    cards = {card.id: card.model_dump() for card in client.models.list()}
    assert {name: (card["root"], card["parent"]) for name, card in cards.items()} == {
        "chat": ("qwen3", None),
        "sql": ("sql-lora", "chat"),
        "poems": ("poems-lora", "chat"),
    }
    assert {card["state"] for card in cards.values()} == {"ready"}
    assert client.models.retrieve("poems").model_dump() == cards["poems"]
    answers = {}
    for name in cards:
        answer = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hello!"}], temperature=0, max_tokens=12
        )
        assert answer.model == name
        answers[name] = (answer.choices[0].message.content, answer.system_fingerprint)
    assert len(set(answers.values())) == 3
    assert client.models.retrieve("sql").id == "sql"
    assert pool.get("/health").json()["models_healthy"] is True
    workers = pool.get("/admin/workers").json()["data"]
    assert [(worker["model"], worker["adapters"], worker["unserved_adapters"]) for worker in workers] == [
        ("chat", ["poems", "sql"], {})
    ]
    requests = pool.get("/metrics").body.decode()
    for name in cards:
        assert f'pool_requests_total{{model="{name}",outcome="done",type="text"}} 1.0' in requests
