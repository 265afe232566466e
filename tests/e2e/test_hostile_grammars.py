"""One key's grammars are its own affair: whoever else asks, for a new schema or for none, is served."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from stress.hostile_grammars import attack_by_grammars
from stress.key_commands import PRODUCTION, used
from stress.running_pool import RunningPool, wait_until

REQUESTS = 12


@pytest.mark.mlx
def test_others_are_served_as_ever_when_one_key_sends_hostile_grammars(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], record: Callable[[str, object], None]
) -> None:
    """Sixteen at once, then one a second: another key's new schema is compiled, its chat goes on much as before."""
    pool = start_pool(
        ("--model-path", str(model_folder("qwen3")), "--served-name", "tiny", "--max-concurrency", "16"),
        environment=PRODUCTION,
    )
    report = attack_by_grammars(pool, requests=REQUESTS)
    record("answers to the attacker", report.attacker_statuses)
    for name, chats in report.chats.items():
        record(f"chat {name}", [round(median(chats), 3), round(max(chats), 3)])
    for name, schemas in report.schemas.items():
        record(f"new schema {name}", [round(median(schemas), 3), round(max(schemas), 3)])
    assert max(report.schemas["beside"]) < 20
    assert median(report.chats["beside"]) < 10 * median(report.chats["alone"])
    # What was compiled for it has its price.
    wait_until(lambda: used(pool, report.attacker_key)[1] > 100)
