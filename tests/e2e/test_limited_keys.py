"""Keys that are limited to some models, and what one key can find out about another."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from stress.key_commands import MASTER, PRODUCTION, bearer
from stress.key_traces import shown
from stress.running_pool import FAKE, RunningPool, chat_body, wait_until

OPEN_ROUTES = ("chat", "vision", "embed:text", "embed:image", "models")
NAMES = {"secret", "shed", "hush", "vault", "hidden-lora", "mine", "friend", "tone", "own-lora", "vectors"}
SECRETS = ("secret", "hidden-lora", "hush", "vault")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPool]:
    """Models `mine` and `vectors`; and `secret`, whose folder is called `shed`, with an adapter and an alias."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("shed", "hidden-lora", "own-lora"):
        (folder / name).mkdir()
    engine = FAKE[:2]
    pool = RunningPool(
        (*engine, "--model-path", "mine", "--adapter", f"tone={folder / 'own-lora'}"),
        (*engine, "--model-path", str(folder / "shed"), "--served-name", "secret",
         "--adapter", f"hush={folder / 'hidden-lora'}"),
        (*engine, "--model-path", "vectors", "--model-type", "embedding"),
        environment=PRODUCTION, gateway=("--aliases", "vault=secret,friend=mine"),
    )  # fmt: skip
    wait_until(lambda: len(pool.get("/v1/models", headers=bearer(MASTER)).json()["data"]) == 5, what="all are known")
    pool.wait_healthy()
    # Within the first seconds a model may yet come, so that what is not there is 503.
    wait_until(lambda: pool.get("/v1/models/nobodys", headers=bearer(MASTER)).status == 404, what="all have registered")
    yield pool
    pool.stop()
    try:
        pool.check_logs("")
    finally:
        pool.remove()


def made(pool: RunningPool, *models: str) -> dict[str, str]:
    """A key for these models."""
    body = {"name": "limited", "permissions": [*OPEN_ROUTES], "models": [*models], "limits": {"burst": 0, "rpm": 0}}
    return bearer(shown(pool.post("/admin/api-keys", body, headers=bearer(MASTER)).json()["key"]))


def listed(pool: RunningPool, key: dict[str, str]) -> dict[str, Any]:
    return {card["id"]: card for card in pool.get("/v1/models", headers=key).json()["data"]}


def asks(pool: RunningPool, key: dict[str, str], name: str) -> list[tuple[int, str]]:
    """What every route says that takes the name of a model: status and body, with the name made one for all."""
    answers = [
        pool.post(path, {**body, "model": name}, headers=key)
        for path, body in (
            ("/v1/chat/completions", chat_body("hello")),
            ("/v1/completions", {"prompt": "hello"}),
            ("/v1/embeddings", {"input": "hello"}),
            ("/embed/text", {"texts": ["hello"]}),
            ("/similarity", {"left": ["a"], "right": ["b"]}),
            ("/v1/tokenize", {"prompt": "hello"}),
            ("/v1/detokenize", {"tokens": [1]}),
        )
    ]
    answers += [pool.get(path, headers=key) for path in (f"/v1/models/{name}", f"/info?model={name}")]
    return [(one.status, told(one.json(), name)) for one in answers]


def told(body: dict[str, Any], name: str) -> str:
    body.get("error", {}).pop("error_id", None)
    return json.dumps(body).replace(f"'{name}'", "'NAME'")


def test_limited_key_reaches_nothing_but_its_models(pool: RunningPool) -> None:
    """By served name, folder, alias, adapter or family: refused in the words that a name gets that nobody has."""
    # The folder's name opens nothing, nor does the base open its adapter, or the adapter its base.
    for models, own, names in (
        ({"shed"}, set(), set()),
        ({"hidden-lora", "own-lora"}, set(), set()),
        ({"mine"}, {"mine"}, {"mine", "friend"}),
        ({"friend"}, {"mine"}, {"mine", "friend"}),
        ({"tone"}, {"tone"}, {"tone"}),
        ({"vault"}, {"secret"}, {"secret", "vault", "shed"}),
    ):
        key = made(pool, *models)
        cards = listed(pool, key)
        assert set(cards) == own, models
        unknown = asks(pool, key, "no-such-model")
        assert {status for status, _ in unknown} == {403, 404}
        for name in NAMES - names - models:
            assert asks(pool, key, name) == unknown, (models, name)
        if own != {"secret"}:
            unnamed = [pool.post("/v1/chat/completions", chat_body("hello"), headers=key)]
            unnamed += [pool.get(path, headers=key) for path in ("/v1/queue/stats", "/v1/models", "/info")]
            assert not [word for word in SECRETS for answer in unnamed if word in answer.body.decode()]
    assert listed(pool, made(pool, "tone"))["tone"]["parent"] is None
    assert listed(pool, made(pool, "tone", "mine"))["tone"]["parent"] == "mine"
    # A kind's name is that kind's default among its own models, as if none was named.
    for kind, status in (("chat", 200), ("embedding", 403)):
        body = {**chat_body("hello"), "model": kind}
        assert pool.post("/v1/chat/completions", body, headers=made(pool, "mine")).status == status
    # What it may use, it may use by every name that it has.
    key = made(pool, "mine")
    for name in ("mine", "friend"):
        answer = pool.post("/v1/chat/completions", {**chat_body("hello"), "model": name}, headers=key)
        assert (answer.status, answer.json()["model"]) == (200, "mine")
    assert pool.post("/v1/chat/completions", chat_body("hello"), headers=made(pool, "tone")).json()["model"] == "tone"


def test_counts_are_those_of_ones_own_models_when_a_key_is_limited(pool: RunningPool) -> None:
    """What others ask of other models moves no figure."""
    key, other = made(pool, "mine"), made(pool, "secret")

    def figures() -> list[bytes]:
        return [pool.get(path, headers=key).body for path in ("/v1/queue/stats", "/v1/models")]

    before = figures()
    for _ in range(3):
        assert pool.post("/v1/chat/completions", chat_body("fake: tokens@9"), headers=other).status == 200
    assert figures() == before
    assert pool.post("/v1/chat/completions", chat_body("fake: tokens@9"), headers=key).status == 200
    mine = json.loads(before[0])["metrics"]

    def metrics(key: dict[str, str] = key) -> dict[str, Any]:
        found: dict[str, Any] = pool.get("/v1/queue/stats", headers=key).json()["metrics"]
        return found

    wait_until(lambda: metrics()["total_requests"] == mine["total_requests"] + 1)
    assert metrics()["performance"]["recent_requests"] == mine["performance"]["recent_requests"] + 1
    assert metrics()["total_time"] > mine["total_time"]
    assert metrics(bearer(MASTER))["total_requests"] >= metrics()["total_requests"] + 3


def test_no_key_learns_what_another_has_embedded(pool: RunningPool) -> None:
    """A text that another key has sent is as new as any: in `cached`, in hits, in every count that a key may see."""
    one, other = made(pool, "vectors"), made(pool, "vectors")

    def embed(key: dict[str, str], text: str) -> tuple[bool, int, bool]:
        plain = pool.post("/embed/text", {"texts": [text]}, headers=key).json()["cached"]
        alike = pool.post("/similarity", {"left": [f"{text}!"], "right": [f"{text}!"]}, headers=key).json()["cached"]
        timed = pool.post("/v1/embeddings", {"input": f"{text}?", "return_timing": True}, headers=key)
        return plain, timed.json()["usage"]["cache_hits"], alike

    before = pool.get("/info", headers=other).json()["cache"]
    assert embed(one, "a secret text") == (False, 0, False)
    assert embed(one, "a secret text") == (True, 1, True)
    assert pool.get("/info", headers=other).json()["cache"] == before
    assert (before["enabled"], before["hits"], before["entries"], before["used_bytes"]) == (True, None, None, None)
    assert embed(other, "a secret text") == (False, 0, False)
    assert embed(other, "a secret text") == (True, 1, True)
    assert pool.get("/info", headers=bearer(MASTER)).json()["cache"]["entries"] == 6
