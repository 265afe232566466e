"""The dashboard file and the operator's page name only what `/metrics` has."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.guarded_app import MASTER, bearer, guarded

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD, OPERATIONS = DOCS / "grafana.json", DOCS / "operations.md"
FIGURES = (
    "requests", "tokens", "time_to_first_token", "inter_token", "queue_wait", "running_rows", "prefix_hits",
    "vector_cache_lookups", "active_bytes", "restarts", "batch_size", "connections", "connections_refused",
    "jobs_continued", "jobs_refused", "shared_limits_up", "embedded_inputs", "prefix_disk_hits", "prefix_disk_bytes",
    "feature_hits",
)  # fmt: skip


async def families(folder: Path) -> set[str]:
    """What `/metrics` has."""
    async with guarded(folder) as client:
        text = await (await client.get("/metrics", headers=bearer(MASTER))).text()
    return {family.name for family in text_string_to_metric_families(text)}


def asked(text: str) -> set[str]:
    """The metrics that a text names, without what Prometheus adds to them."""
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"pool_\w+", text)}


async def test_every_metric_of_the_dashboard_exists(tmp_path: Path) -> None:
    """And the figures that operators look for are on it."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    names = asked(" ".join(target["expr"] for panel in panels for target in panel["targets"]))
    assert names <= await families(tmp_path)
    assert not [figure for figure in FIGURES if not re.search(rf"pool_\w*{figure}", " ".join(names))]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_rates_are_of_what_came_lately() -> None:
    """Counts that grow as long as a process lives are never divided as they are; no two panels cover each other."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    grown = r"pool_\w+_(?:total|hits|lookups|sum|count|bucket)(?:\{[^}]*\})?(?!\w)(.)"
    bare = [expression for expression in expressions for after in re.findall(grown, expression + " ") if after != "["]
    assert not bare
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


async def test_every_metric_of_the_documents_exists(tmp_path: Path) -> None:
    """The names in the operator's page, with those that other servers have for the same."""
    names = asked(OPERATIONS.read_text())
    assert {"pool_batch_size", "pool_queue_wait_seconds", "pool_tokens"} <= names
    assert names <= await families(tmp_path)
