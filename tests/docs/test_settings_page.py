"""The tables of settings in docs/settings.md are the code's."""

import re
from pathlib import Path

from gateway import config as gateway_config
from worker import config as worker_config

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()


def rows(kind: str) -> dict[str, set[str]]:
    """Flag → environment names, of the table headed by `kind`."""
    table = PAGE.split(f"| {kind} | variable |")[1].split("\n\n")[0]
    found = (re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines()[2:])
    flags = [flag[0] for flag in found]
    variables = [set(re.findall(r"`([^`]+)`", line.split("|")[2])) for line in table.splitlines()[2:]]
    return dict(zip(flags, variables, strict=True))


def test_gateway_settings_are_documented_when_they_exist() -> None:
    """Every flag with every variable, and nothing that is not there."""
    settings = gateway_config.SETTINGS
    assert rows("gateway") == {(*setting.flags, setting.key)[0]: set(setting.variables) for setting in settings}


def test_worker_settings_are_documented_when_they_exist() -> None:
    """Every flag with every variable, and nothing that is not there."""
    assert rows("worker") == {setting.flags[0]: set(setting.variables) for setting in worker_config.SETTINGS}
