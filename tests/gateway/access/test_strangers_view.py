"""What strangers and limited keys see of the pool: whether it is well, and what is theirs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.access.keys.text import mint
from gateway.context import POOL
from gateway.http.openapi import OPERATIONS
from gateway.schema.decode import read_option
from gateway.schema.errors import ApiError
from tests.support.guarded_app import MASTER, Client, app_of, bearer, guarded, issue


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
async def test_health_shows_strangers_nothing_but_whether_all_is_well(client: Client, path: str) -> None:
    """With a key that may see models, everything; without, with a bad one, or one for other things, two fields."""
    chat_only, seeing = await issue(client, "chat"), await issue(client, "models")
    for headers in ({}, bearer("nonsense"), bearer(chat_only)):
        answer = await client.get(path, headers=headers)
        assert (answer.status, await answer.json()) == (503, {"status": "ok", "models_healthy": False})
    for key in (seeing, MASTER, await issue(client, "admin")):
        answer = await client.get(path, headers=bearer(key))
        assert answer.status == 503
        assert {"models", "memory", "uptime", "model_id"} <= set(await answer.json())


async def test_health_of_a_model_asks_for_a_key(client: Client) -> None:
    """Else it would tell which names there are."""
    for headers in ({}, bearer("nonsense")):
        assert (await client.get("/health/any", headers=headers)).status == 401
    assert (await client.get("/health/any", headers=bearer(await issue(client, "chat")))).status == 403
    assert (await client.get("/health/any", headers=bearer(await issue(client, "models")))).status == 404
    for path in ("/ping", "/health/live"):
        assert (await client.get(path)).status == 200


async def test_health_shows_all_in_development(tmp_path: Path) -> None:
    """Where nobody is asked for a key."""
    async with guarded(tmp_path, auth=False, api_key=None) as client:
        assert "models" in await (await client.get("/health")).json()
        assert (await client.get("/health/any")).status == 404


class Served:
    """One model of a pool."""

    def __init__(self, name: str) -> None:
        self.name, self.source, self.aliases = name, f"org/{name}", (f"{name}-alias",)
        self.variants = [self]


@pytest.fixture
def models(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two models, with counts."""
    pool = app_of(client)[POOL]
    monkeypatch.setattr(pool, "models", lambda: [Served("mine"), Served("theirs")])
    for name in ("mine", "theirs"):
        pool.stats.count_answer(Served(name), "text", took_s=1.0, prompt_tokens=3)  # type: ignore[arg-type]
    yield


async def test_metrics_show_a_limited_key_its_own_models_alone(client: Client, models: None) -> None:
    """No other name in any label, no count that others move; a key without limits sees all."""
    limited = await issue(client, "models", models=("mine-alias",))
    text = await (await client.get("/metrics", headers=bearer(limited))).text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.labels.get("model") for sample in samples} == {"mine"}
    assert "theirs" not in text
    everything = await (await client.get("/metrics", headers=bearer(await issue(client, "models")))).text()
    assert 'model="theirs"' in everything
    assert "pool_keys" in everything


@pytest.mark.parametrize("text", ["\udcff", "9" * 5000, "-" + "9" * 5000, "1" * 4301, "1e" + "9" * 5000])
@pytest.mark.parametrize("kind", [int | None, float | None, bool, str])
def test_option_that_is_no_value_is_refused_by_name(text: str, kind: Any) -> None:
    """Thousands of digits, bytes that are no UTF-8: 400, never 500."""
    if kind is str and text.isascii():
        return
    with pytest.raises(ApiError) as caught:
        read_option(text, kind, "X-Option")
    assert (caught.value.status, caught.value.param) == (400, "X-Option")


async def test_key_is_no_request_id_and_no_path_in_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """A key in a place where none belongs is in no line and not sent on: the suite's own search hears it otherwise."""
    _, key = mint()
    for secret in (key, MASTER):
        answer = await client.get("/v1/models", headers={"X-Request-ID": secret})
        assert answer.headers["X-Request-ID"] != secret
        for path in (f"/{secret}", f"/a/{secret[:20]}/{secret[20:]}/b", f"/v1/models/{secret}", f"/health/{secret}"):
            await client.get(path)
            await client.get(path, headers=bearer(MASTER))
    text = "\n".join(one.getMessage() for one in caplog.records)
    assert "Request completed: GET /v1/models/{id}" in text
    for secret in (key[4:12] + "_" + key[13:17], key[13:33], MASTER[:20]):
        assert secret not in text


async def test_a_limited_operator_reaches_nothing_that_concerns_all_models(client: Client) -> None:
    """Of `/admin`, what is about single engines, models and keys is open to it; the rest is closed."""
    limited = bearer(await issue(client, "admin", models=("mine",)))
    for operation in app_of(client)[OPERATIONS]:
        if not operation.path.startswith("/admin/"):
            continue
        path = operation.path.replace("{name:.+}", "theirs").replace("{id}", "none")
        answer = await client.request(operation.method, path, headers=limited, json={})
        single = operation.path.startswith(("/admin/workers", "/admin/models", "/admin/api-keys"))
        assert (answer.status == 403) is not single, operation.path
    assert (await client.get("/admin/events", headers=bearer(await issue(client, "admin")))).status == 200


async def test_a_limited_operator_knows_of_no_key_beyond_its_models(client: Client) -> None:
    """Keys of other models, or of all, are not there for it: not in the list, by id, or for any change."""
    text = await issue(client, "admin", models=("mine", "ours"))
    limited, own = bearer(text), await issue(client, "admin", models=("ours",))
    hidden = [await issue(client, "admin"), await issue(client, "admin", models=("mine", "theirs"))]
    listed = (await (await client.get("/admin/api-keys", headers=limited)).json())["data"]
    assert {key["id"] for key in listed} == {text[4:12], own[4:12]}
    for key, status in ((own, 200), *((key, 404) for key in hidden)):
        path = f"/admin/api-keys/{key[4:12]}"
        assert (await client.get(path, headers=limited)).status == status
        assert (await client.patch(path, headers=limited, json={"name": "n"})).status == status
        assert (await client.post(f"{path}/rotate", headers=limited)).status == status
        assert (await client.delete(path, headers=limited)).status == status
    for key in hidden:
        assert (await client.get("/v1/models", headers=bearer(key))).status == 403
