"""`GET /info`."""

from gateway.schema.base import Answer


class MemoryUse(Answer, frozen=True, kw_only=True):
    """Bytes, over all workers of the model. `peak` and `resident` are the most there ever was."""

    weights: int
    active: int
    cache: int
    peak: int
    resident: int


class CacheUse(Answer, frozen=True, kw_only=True):
    """The gateway's vector cache, for all embedding models; counts since its start, sizes in bytes.

    What it holds and what was found in it is of all keys together: null for callers without the permission `admin`.
    """

    enabled: bool
    hits: int | None = None
    misses: int | None = None
    hit_rate: float | None = None
    entries: int | None = None
    used_bytes: int | None = None
    capacity_bytes: int = 0
    ttl_s: float = 0.0
    evicted: int | None = None
    expired: int | None = None


class EmbeddingRates(Answer, frozen=True, kw_only=True):
    """Inputs and their tokens, cached ones included: since the start, and per second of the last minute."""

    inputs: int
    tokens: int
    inputs_per_second: float
    tokens_per_second: float


class ModelInfo(Answer, frozen=True, kw_only=True):
    """One model. What only a loaded model knows is null until a worker has been ready once; times in seconds.

    `embedding_dim` is the length of its vectors; `quantization` how the weights are held.
    """

    model: str
    source: str
    kind: str
    state: str
    replicas: int
    description: str
    capabilities: list[str]
    embedding_dim: int | None
    context_length: int | None
    quantization: str | None
    backend: str | None
    device: str | None
    load_time: float | None
    warmup_time: float | None
    memory: MemoryUse
    cache: CacheUse
    throughput: EmbeddingRates


class VersionAnswer(Answer, frozen=True, kw_only=True):
    """Which version of the pool answers."""

    version: str
