"""A gateway that asks for keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.guarded_app import Client, guarded


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """As configured for production, without workers."""
    async with guarded(tmp_path) as connected:
        yield connected
