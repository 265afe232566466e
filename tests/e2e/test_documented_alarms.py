"""The alarms of the operator's page, judged by what `/metrics` says before and after."""

import operator
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from stress.key_commands import MASTER, PRODUCTION, bearer, keys
from stress.key_traces import shown
from stress.running_pool import FAKE, ROOT, RunningPool, chat_body, wait_until

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]
CHAT = "/v1/chat/completions"
MACHINE = "pool_event_loop_lag_longest_seconds > 1"
"""Tells of the machine that the tests run on, too."""
COMPARE = {"==": operator.eq, ">": operator.gt}
SELECTOR = r"(\w+)(?:\{([^}]*)\})?"
RISE = re.compile(rf"(increase|rate)\({SELECTOR}\[\d+m\]\) > ([\d.]+)")
VALUE = re.compile(rf"{SELECTOR} (==|>) (?:([\d.]+) \* (\w+)|([\d.]+))")


def alarms() -> list[str]:
    """Every expression of the page's table."""
    table = (
        (ROOT / "docs" / "operations.md").read_text().partition("Alarms worth having:")[2].partition("\n\n`outcome`")[0]
    )
    return re.findall(r"^\| `(pool_[^|]*|increase[^|]*|rate[^|]*)` \|", table, re.MULTILINE)


def read(pool: RunningPool) -> Samples:
    text = pool.get("/metrics", headers=bearer(MASTER)).body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def select(samples: Samples, name: str, labels: str | None) -> Iterator[tuple[Labels, float]]:
    wanted = set(re.findall(r'(\w+)="([^"]*)"', labels or ""))
    for (found, own), value in samples.items():
        if found == name and wanted <= own:
            yield own, value


def fires(expression: str, before: Samples, after: Samples) -> bool:
    """Judge an expression as Prometheus would, with two scrapes; a series that is new rose from nothing."""
    if match := RISE.fullmatch(expression):
        _, name, labels, bound = match.groups()
        earlier = dict(select(before, name, labels))
        return any(value - earlier.get(own, 0.0) > float(bound) for own, value in select(after, name, labels))
    match = VALUE.fullmatch(expression)
    assert match, f"nobody can judge {expression!r} here"
    name, labels, sign, factor, other, bound = match.groups()
    limit = float(bound) if bound else float(factor) * next(value for _, value in select(after, other, None))
    return any(COMPARE[sign](value, limit) for _, value in select(after, name, labels))


def firing(before: Samples, after: Samples) -> set[str]:
    return {expression for expression in alarms() if expression != MACHINE and fires(expression, before, after)}


@pytest.fixture
def pool(start_pool: Callable[..., RunningPool]) -> RunningPool:
    """In production: a model that serves, and one that was unloaded."""
    made = start_pool(
        FAKE, (*FAKE, "--served-name", "idle"), healthy=False, environment=PRODUCTION, expected="RuntimeError|Traceback"
    )
    known = {"fake": "ready", "idle": "ready"}
    wait_until(lambda: states(made) == known)
    # A worker may be known a moment before its supervisor is.
    unload = ("/admin/models/idle/unload", {"grace": 0})
    wait_until(lambda: made.post(*unload, headers=bearer(MASTER)).status == 200)
    wait_until(lambda: states(made) == {**known, "idle": "stopped"})
    return made


def states(pool: RunningPool) -> dict[str, str]:
    models = pool.get("/health", headers=bearer(MASTER)).json().get("models", [])
    return {model["id"]: model["state"] for model in models}


MISTAKES: list[tuple[str, str, object, int]] = [
    ("POST", CHAT, b'{"messages": ', 400),
    ("POST", CHAT, {}, 400),
    ("POST", CHAT, chat_body("x", temperature=9), 400),
    ("POST", CHAT, chat_body("x", no_such_parameter=1), 400),
    ("POST", CHAT, chat_body("x", model="no-such-model"), 404),
    ("POST", CHAT, chat_body("x", model="idle"), 503),
    ("POST", CHAT, chat_body("x " * 200_000), 400),
    (
        "POST",
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
    ),
    ("POST", "/v1/completions", {"prompt": [999_999_999]}, 400),
    ("POST", "/v1/embeddings", {"input": "x"}, 400),
    ("POST", "/v1/tokenize", {"prompt": 5}, 400),
    ("GET", "/v1/nothing", None, 404),
    ("GET", CHAT, None, 405),
    ("DELETE", "/admin/models/fake", None, 409),
    ("POST", "/admin/models/fake/scale", {"replicas": 999}, 400),
]


def test_alarms_are_silent_when_callers_only_make_mistakes(pool: RunningPool, tmp_path: Path) -> None:
    """Every refusal that a caller can bring about, again and again, with and without a key, at its limits."""
    # A model that is not there may still be about to register.
    wait_until(lambda: pool.post(CHAT, chat_body("x", model="none"), headers=bearer(MASTER)).status == 404)
    before = read(pool)
    assert len(alarms()) >= 9
    assert not firing(before, before)
    for _ in range(3):
        for method, path, body, status in MISTAKES:
            answer = pool.request(method, path, body, headers=bearer(MASTER))
            assert answer.status == status, (path, body, answer.body)
    key = keys(pool, "create", "slow", "--rpm", "2", "--burst", "2")
    wait_until(lambda: pool.get("/v1/models", headers=bearer(key)).status == 200)
    limited = [pool.post(CHAT, chat_body("x", max_tokens=1), headers=bearer(key)).status for _ in range(6)]
    assert 429 in limited
    old = bearer(shown("mlx_an-old-key-of-some-client"))
    # A client that was not told of its new key comes back for hours.
    assert {pool.get("/v1/models", headers=old).status for _ in range(150)} == {401}
    assert {pool.get("/v1/models").status for _ in range(20)} == {401}
    assert not firing(before, read(pool))


def test_alarms_are_heard_when_something_is_wrong(pool: RunningPool) -> None:
    """An engine that raises, a model that nobody stopped, somebody who tries keys."""
    before = read(pool)
    assert pool.post(CHAT, chat_body("fake: raise@0"), headers=bearer(MASTER)).status == 500
    pool.supervisors[0].stop()
    for number in range(130):
        pool.get("/v1/models", headers=bearer(shown(f"guess-number-{number}")))
    after = read(pool)
    # Stopped as asked: nobody misses the model.
    assert firing(before, after) == {
        'rate(pool_requests_total{outcome="failed"}[5m]) > 0',
        'increase(pool_failed_logins_total{reason="blocked"}[10m]) > 100',
    }
