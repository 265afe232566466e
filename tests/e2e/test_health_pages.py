"""What operators and their tools read: health, metrics, statistics, documentation."""

import os
import re
import signal
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from prometheus_client.parser import text_string_to_metric_families
from stress.running_pool import FAKE, RunningPool, wait_until

from tests.support.pool_fixtures import QWEN_NAME

HEALTHS = ("/health", "/health/ready", "/health/fake")


def test_health_follows_the_engine_when_it_comes_goes_and_returns(start_pool: Callable[..., RunningPool]) -> None:
    """503 before there is a worker, 200 with it, 503 while it is away, 200 again; `/ping` and liveness never waver."""
    pool = start_pool(healthy=False)
    body = pool.get("/health").json()
    assert pool.get("/health").status == 503
    assert (body["status"], body["model_id"], body["model_status"]) == ("ok", None, "uninitialized")
    assert (body["models_healthy"], body["warmup_enabled"], body["warmup_completed"]) == (False, None, None)
    assert pool.get("/health/fake").status == 404
    refused = pool.chat()
    assert (refused.status, refused.error["code"]) == (503, "model_not_ready")
    assert refused.headers["retry-after"]
    pool.add_worker(FAKE)
    pool.wait_healthy()
    assert {pool.get(path).status for path in HEALTHS} == {200}
    body = pool.get("/health").json()
    assert (body["model_id"], body["model_status"], body["models_healthy"]) == ("fake", "initialized", True)
    assert body["model_loaded"] is body["warmup_enabled"] is body["warmup_completed"] is True
    assert body["uptime"] > 0
    engine = pool.engine_pid()
    pool.supervisors[0].signal(signal.SIGSTOP)  # so that no other engine is there before we have looked
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: pool.get("/health").status == 503, what="the engine is missed")
    assert {pool.get(path).status for path in HEALTHS} == {503}
    assert pool.get("/ping").status == pool.get("/health/live").status == 200
    pool.supervisors[0].signal(signal.SIGCONT)
    pool.wait_healthy()
    [model] = pool.get("/health").json()["models"]
    assert (model["restarts"], model["last_exit_code"]) == (1, -9)


def test_metrics_parse_and_count_when_requests_have_run(start_pool: Callable[..., RunningPool]) -> None:
    """Prometheus' own parser reads them; counts of requests, tokens and errors are exact."""
    pool = start_pool(FAKE)
    for _ in range(3):
        pool.chat("fake: tokens@5")
    assert b"[DONE]" in pool.chat("fake: tokens@4", stream=True).body
    assert pool.chat("fake: oom@0").status == 507
    families = {family.name: family for family in text_string_to_metric_families(pool.get("/metrics").body.decode())}
    found = {
        (sample.labels["type"], sample.labels["outcome"]): sample.value for sample in families["pool_requests"].samples
    }
    assert found == {("text", "done"): 3, ("text_stream", "done"): 1, ("text", "failed"): 1}
    tokens = {sample.labels["direction"]: sample.value for sample in families["pool_tokens"].samples}
    assert tokens["completion"] == 19
    assert all(family.documentation for family in families.values())
    histogram = families["pool_time_to_first_token_seconds"].samples
    assert next(sample.value for sample in histogram if sample.name.endswith("_count")) == 4
    stats = pool.get("/v1/queue/stats").json()
    assert stats["status"] == "ok"
    assert stats["metrics"]["total_requests"] == 5
    assert stats["metrics"]["error_count"] == 1
    assert stats["metrics"]["request_types"] == {
        "vision": 0,
        "vision_stream": 0,
        "text": 4,
        "text_stream": 1,
        "embedding": 0,
    }
    assert stats["metrics"]["performance"]["recent_requests"] == 4
    chat = stats["queue_stats"]["chat_queue"]
    assert (chat["running"], chat["max_queue_size"], chat["max_concurrency"]) == (True, 100, 32)


class Links(HTMLParser):
    """Everything that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect scripts, styles, images and frames."""
        for name, value in attrs:
            if value and (name == "src" or (name == "href" and tag == "link") or name == "spec-url"):
                self.found.append(value)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_load_from_here_only(qwen: RunningPool, page: str) -> None:
    """Every asset of the documentation pages is served by the gateway, with a type that browsers accept."""
    answer = qwen.get(page)
    assert answer.status == 200
    html = answer.body.decode()
    assert not re.search(r"https?://|//[a-z]", html)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    links = Links()
    links.feed(html)
    assert len(links.found) >= 2
    for link in links.found:
        asset = qwen.get(link if link.startswith("/") else f"/{link}")
        assert asset.status == 200, link
        kind = {"js": "javascript", "css": "css", "png": "png", "json": "json"}[link.rpartition(".")[2]]
        assert kind in asset.headers["Content-Type"], link


def test_document_names_every_route(qwen: RunningPool) -> None:
    """`/openapi.json` is OpenAPI 3.1, and its references and paths exist."""
    document = qwen.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    paths = set(document["paths"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{id}", "/health", "/metrics"} <= paths
    names = set(document["components"]["schemas"])
    used = set(re.findall(r"#/components/schemas/([\w.-]+)", str(document)))
    assert used <= names
    for path, operations in document["paths"].items():
        if "get" in operations and path != "/admin/api-keys/{id}":
            assert qwen.get(path.format(id=QWEN_NAME, model=QWEN_NAME)).status == 200, path


def test_unknown_addresses_and_methods_are_refused_in_shape(qwen: RunningPool) -> None:
    """404 and 405 look like every other error."""
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        answer = qwen.request(method, path)
        assert answer.status == status
        assert {"message", "type", "param", "code", "error_id"} == answer.error.keys()
        assert answer.headers["X-Request-ID"]
