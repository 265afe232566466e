"""How a job ended, as counts and alarms tell it apart."""

from typing import Literal

from protocol.errors import Code

Outcome = Literal["done", "failed", "client_error", "refused", "cancelled"]
"""`client_error`: the caller's doing, as with what it sent, or a model that was stopped on purpose. `refused`: the
queue was full. `cancelled`: its client left. `failed`: anything else, which is the pool's to answer for."""

CLIENT_ERRORS = frozenset(
    {Code.INVALID_REQUEST, Code.UNSUPPORTED, Code.CONTEXT_LENGTH, Code.RATE_LIMITED, "model_not_found", "slow_reader"}
)
REFUSALS = frozenset({"queue_full"})


def outcome_of_failure(code: str) -> Outcome:
    """Return how a job counts that failed with `code`."""
    if code in CLIENT_ERRORS:
        return "client_error"
    return "refused" if code in REFUSALS else "failed"
