"""`/health` and its relatives, `/ping`."""

from gateway.schema.base import Answer


class Memory(Answer, frozen=True, kw_only=True):
    """Bytes, summed over workers: in use and cached by MLX, and held by prefix caches."""

    active_bytes: int
    cache_bytes: int
    prefix_bytes: int


class ModelHealth(Answer, frozen=True, kw_only=True):
    """One model. `healthy`: it takes requests. `expected`: it should, for it was not stopped on purpose.

    `restarts` and `last_exit_code` are its supervisors' (a negative code is a signal).

    `reason` says that its engines are started again and again, and why, also while one of them is ready.
    """

    id: str
    kind: str
    state: str
    healthy: bool
    expected: bool
    replicas: int
    warmup_enabled: bool | None
    warmup_completed: bool | None
    load_s: float | None
    memory: Memory
    restarts: int
    last_exit_code: int | None
    reason: str | None


class Health(Answer, frozen=True, kw_only=True):
    """The pool. `status` is `ok` while the gateway runs; the HTTP status says whether every expected model is up."""

    status: str
    model_id: str | None
    model_status: str
    model_loaded: bool
    models_healthy: bool
    warmup_enabled: bool | None
    warmup_completed: bool | None
    uptime: float
    memory: Memory
    models: list[ModelHealth]


class HealthSummary(Answer, frozen=True, kw_only=True):
    """The pool, as strangers see it."""

    status: str
    models_healthy: bool


class Alive(Answer, frozen=True, kw_only=True):
    """The gateway answers."""

    status: str
