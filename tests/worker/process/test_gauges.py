"""What an engine shows of itself and what travels: one list of fields."""

from typing import Any

import msgspec

from protocol.messages import Beat
from worker.engines.base import Gauges


def _shown(struct: type[Any]) -> dict[str, tuple[Any, Any]]:
    return {field.name: (field.type, field.default) for field in msgspec.structs.fields(struct)}


def test_every_gauge_travels_when_an_engine_beats() -> None:
    """A field that one of the two lacks would be lost, or end the link."""
    of_the_process = {"state", "step", "step_age_s", "busy", "resident_bytes", "progress"}
    travels = {name: field for name, field in _shown(Beat).items() if name not in of_the_process}
    assert _shown(Gauges) == travels
