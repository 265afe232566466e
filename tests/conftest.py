"""What every test may need: the tiny models, made once and kept between runs in a git-ignored folder.

And what every test is held to: no key that it uses may stand in a log.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stress.key_traces import LOGGERS, KeyLogHandler, note_minted_keys

from gateway.access.keys import key as record

pytest_plugins = ["tests.support.pool_fixtures"]
TESTS = Path(__file__).parent
ROOT = TESTS.parent
WITH_PROCESSES = ("chaos", "clients", "e2e", "hostile", "gateway/dispatch", "worker/process", "worker/supervisor")
"""Folders of tests that start processes, and expect them to get on."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs processes: how these get on depends on what else the machine does."""
    folders = tuple(f"{TESTS / folder}/" for folder in WITH_PROCESSES)
    for item in items:
        if str(item.path).startswith(folders):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """Answers the folder of a tiny model, by name."""
    from make_models import make

    return lambda name: make(name, ROOT / ".models")


@pytest.fixture(scope="session")
def _listener() -> Iterator[KeyLogHandler]:
    """Hears what the gateway says at its most verbose, whatever the level of a test."""
    listener = KeyLogHandler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "mint", note_minted_keys(record.mint))
        logging.getLogger("gateway").setLevel(logging.DEBUG)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(listener)
        yield listener


@pytest.fixture(autouse=True)
def _keys_stay_out_of_logs(_listener: KeyLogHandler) -> Iterator[None]:
    _listener.found.clear()
    yield
    assert not _listener.found, f"keys in this process's log: {_listener.found[:5]}"
