"""The dispatcher without sockets."""

import pytest

from tests.support.dispatch_rig import Rig


@pytest.fixture
async def rig() -> Rig:
    """A dispatcher with hand-fed frames; made inside a loop, since streams make futures."""
    return Rig()
