"""What all answers and frames of one request have in common."""

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec
import orjson

from gateway.schema.parts.answers import Alternative, Finish, LogprobBody, Timings, UsageBody
from protocol.messages import Delta
from protocol.messages import TokenLogprob as JobLogprob

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

LEAST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON can't say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseMeta:
    """Who answers, under which id, since when (Unix seconds)."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def for_model(cls, model: "ModelState", prefix: str) -> Self:
        """Make one with a fresh id; the fingerprint is the same for every answer of one model."""
        digest = hashlib.blake2s(f"{model.name}\0{model.source}".encode(), digest_size=5).hexdigest()
        return cls(
            id=f"{prefix}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=model.name,
            system_fingerprint=f"fp_{digest}",
        )

    def frame_head(self, kind: str) -> bytes:
        """Return everything of an event that comes before its choices."""
        head: dict[str, Any] = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }
        return b"data: " + orjson.dumps(head)[:-1] + b',"choices":['


def closing_frame(head: bytes, usage: UsageBody | None, timings: Timings | None) -> bytes:
    """Encode a frame without choices that carries what was asked for; empty where nothing was."""
    extras = {name: value for name, value in (("usage", usage), ("timings", timings)) if value is not None}
    return head + b"]," + msgspec.json.encode(extras)[1:] + b"\n\n" if extras else b""


def finish_of(delta: Delta) -> Finish:
    """Return the reason in OpenAI's closed set; one that it does not know (from a newer worker) is `stop`."""
    match delta.finish:
        case "length" | "tool_calls" | "content_filter" as finish:
            return finish
        case _:
            return "stop"


def finite_logprob(logprob: float) -> float:
    """Return a log-probability that JSON can carry."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def logprob_of(token: JobLogprob) -> LogprobBody:
    """Write one token in OpenAI's shape."""
    return LogprobBody(
        token=token.token,
        bytes=list(token.raw),
        logprob=finite_logprob(token.logprob),
        top_logprobs=[
            Alternative(token=text, bytes=list(raw), logprob=finite_logprob(logprob))
            for text, raw, logprob in token.top
        ],
    )
