"""What requests find in the application and on themselves. Keys and their types only."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from protocol.messages import Delta

if TYPE_CHECKING:
    from gateway.access.keys.sync import KeySync
    from gateway.config import LoadedConfig
    from gateway.dispatch.jobs.stream import JobStream
    from gateway.dispatch.pool import Pool
    from gateway.embedding_cache import EmbeddingCache
    from gateway.http.listener import Listener
    from gateway.media.fetcher import Fetcher
    from gateway.media.image_resolver import ImageResolver
    from gateway.schema.errors import FailureNote
    from gateway.telemetry.events import Events
    from gateway.telemetry.logs import Redaction


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpSettings:
    """What the routes need to know of the configuration.

    `sse_ping_interval_s`: a stream that was silent this long gets a comment line. `write_timeout_s`: a client that
    has not read for this long is dropped. `tier`: what the model list says.
    """

    sse_ping_interval_s: float = 5.0
    write_timeout_s: float = 30.0
    tier: str = "3A"


@dataclass(kw_only=True, slots=True)
class GenerationStats:
    """What a generation amounted to; filled while it runs, reported when its request ends, however it ends.

    `request_type` is one of `gateway.dispatch.stats.REQUEST_TYPES`. `tokens` counts what was delivered, that is written
    to the client's connection, until the workers' own count of all of it replaces it; of embeddings it is the prompt's.
    `streams` are the jobs. `texts` (pieces by choice) are kept only to be counted: they are never logged.
    """

    request_type: str
    model: str
    tokens: int = 0
    streams: "list[JobStream]" = field(default_factory=list)
    texts: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add_text(self, deltas: list[Delta], first_choice: int = 0) -> None:
        """Count deltas of a job whose choice 0 is the request's choice `first_choice`."""
        for delta in deltas:
            self.tokens += len(delta.tokens)
            if delta.text or delta.reasoning:
                self.texts[first_choice + delta.choice].append(delta.reasoning + delta.text)

    def prompt_and_completion(self) -> tuple[int, int]:
        """Count tokens of the prompt, as far as workers have taken it, and of the answer."""
        if self.request_type == "embedding":
            return self.tokens, 0
        return sum(stream.prompt_tokens for stream in self.streams), self.tokens

    def count_words(self) -> tuple[int, int]:
        """Count words and characters."""
        texts = ["".join(pieces) for pieces in self.texts.values()]
        return sum(len(text.split()) for text in texts), sum(map(len, texts))


POOL: web.AppKey["Pool"] = web.AppKey("pool")
EMBEDDING_CACHE: web.AppKey["EmbeddingCache | None"] = web.AppKey("embedding_cache")
"""None: nothing is cached."""
FETCHER: web.AppKey["Fetcher | None"] = web.AppKey("fetcher")
"""None: images come in data: URLs alone."""
IMAGE_RESOLVER: web.AppKey["ImageResolver"] = web.AppKey("image_resolver")
LISTENER: web.AppKey["Listener"] = web.AppKey("listener")
HTTP: web.AppKey[HttpSettings] = web.AppKey("http", HttpSettings)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
IGNORED: web.RequestKey[set[str]] = web.RequestKey("ignored", set)
"""Names of the parameters of a request that change nothing."""
UNENFORCED: web.RequestKey[list[str]] = web.RequestKey("unenforced", list)
"""Places in a request's schemas that are left to the model."""
GENERATION_STATS: web.RequestKey[GenerationStats] = web.RequestKey("generated", GenerationStats)
FAILURE: web.RequestKey["FailureNote"] = web.RequestKey("failure")
"""Why a request failed, once its client was told, be it in a stream."""
KEY_SYNC: web.AppKey["KeySync"] = web.AppKey("key_sync")
RESPONSE_COUNTS: web.AppKey[Counter[tuple[str, str, int]]] = web.AppKey("response_counts", Counter)
"""Counts by route, method and status."""
EVENTS: web.AppKey["Events"] = web.AppKey("events")
REDACT: web.AppKey["Redaction"] = web.AppKey("redact")
"""Takes keys out of a text."""
LOADED: web.AppKey["LoadedConfig"] = web.AppKey("loaded")
