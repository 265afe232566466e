"""`GET /v1/queue/stats`."""

from gateway.schema.base import Answer


class QueueState(Answer, frozen=True, kw_only=True):
    """One queue, or the sum of several: jobs that wait, jobs at workers, rows that workers step together."""

    running: bool
    queue_size: int
    max_queue_size: int
    active_requests: int
    max_concurrency: int


class QueueStats(QueueState, frozen=True, kw_only=True):
    """The sum of all queues, and one per kind of model that is served."""

    chat_queue: QueueState | None = None
    vision_queue: QueueState | None = None
    embedding_queue: QueueState | None = None


class Speeds(Answer, frozen=True, kw_only=True):
    """Generated tokens per second of the recent requests."""

    avg_tps: float
    max_tps: float
    min_tps: float
    recent_requests: int


class Counts(Answer, frozen=True, kw_only=True):
    """Since the start of the gateway. `total_time` in seconds."""

    total_requests: int
    total_tokens: int
    total_time: float
    request_types: dict[str, int]
    error_count: int
    performance: Speeds


class QueueReport(Answer, frozen=True, kw_only=True):
    """What waits, what runs, what was done."""

    status: str
    queue_stats: QueueStats
    metrics: Counts
