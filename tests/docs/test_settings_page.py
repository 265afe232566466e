"""The tables of settings in docs/settings.md are the code's."""

import re
from pathlib import Path

from gateway import config as gateway_config
from worker import config as worker_config

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()


def rows(kind: str) -> dict[tuple[str, ...], set[str]]:
    """Flags → environment names, of the table headed by `kind`."""
    lines = PAGE.split(f"| {kind} | variable |")[1].split("\n\n")[0].splitlines()[2:]
    flags, variables = ([re.findall(r"`([^`]+)`", line.split("|")[column]) for line in lines] for column in (1, 2))
    return {tuple(names): set(found) for names, found in zip(flags, variables, strict=True)}


def test_gateway_settings_are_documented_when_they_exist() -> None:
    """Every flag with every variable, and nothing that is not there."""
    settings = gateway_config.SETTINGS
    assert rows("gateway") == {setting.flags or setting.keys: set(setting.variables) for setting in settings}


def test_worker_settings_are_documented_when_they_exist() -> None:
    """Every flag with every variable, and nothing that is not there."""
    assert rows("worker") == {setting.flags: set(setting.variables) for setting in worker_config.SETTINGS}
