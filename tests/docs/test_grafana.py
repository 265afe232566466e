"""The dashboard file asks only for what `/metrics` has."""

import json
import re
from pathlib import Path

from guarded_app import MASTER, bearer, guarded
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
FIGURES = (
    "requests", "tokens", "time_to_first_token", "inter_token", "queue_wait", "running_rows", "prefix_hits",
    "vector_cache_lookups", "active_bytes", "restarts",
)  # fmt: skip


async def test_every_metric_of_the_dashboard_exists(tmp_path: Path) -> None:
    """And the figures that operators look for are on it."""
    expressions = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
    ]
    asked = set(re.findall(r"pool_\w+", " ".join(expressions)))
    async with guarded(tmp_path) as client:
        text = await (await client.get("/metrics", headers=bearer(MASTER))).text()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} <= families
    assert not [figure for figure in FIGURES if not re.search(rf"pool_\w*{figure}", " ".join(asked))]
