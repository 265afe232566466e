"""`GET /metrics`: Prometheus, for the gateway and all workers.

Counters are read from the dispatcher's plain numbers when someone asks, so that requests pay nothing for them.
"""

from collections import Counter
from collections.abc import Iterator

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.access.gate import CALLER, GATE, Gate
from gateway.access.keys.sync import KeySync
from gateway.context import EMBEDDING_CACHE, FETCHER, IMAGE_RESOLVER, KEY_SYNC, LISTENER, POOL, RESPONSE_COUNTS
from gateway.dispatch.stats import Snapshot, StepCounts
from gateway.embedding_cache import EmbeddingCache
from gateway.http.listener import Listener
from gateway.http.openapi import Operation, mount
from gateway.media.fetcher import Fetcher
from gateway.media.image_resolver import ImageResolver
from gateway.memory_account import MEMORY, MemoryAccount
from gateway.serving.caller import may_use
from gateway.telemetry.lag import LAG, LoopLag

WORKER_GAUGES = (
    ("running_rows", "running", "Rows that decode."),
    ("waiting_rows", "waiting", "Rows whose prompt is not computed yet."),
    ("engine_steps", "step", "Steps of the engine loop since its process started."),
    ("active_bytes", "active_bytes", "Memory that MLX uses."),
    ("cache_bytes", "cache_bytes", "Freed memory that MLX keeps."),
    ("peak_bytes", "peak_bytes", "Most memory that MLX ever used."),
    ("resident_bytes", "resident_bytes", "Largest resident size of the process."),
    ("prefix_bytes", "prefix_bytes", "Memory held by the prefix cache."),
    ("prefix_lookups", "prefix_lookups", "Prompts looked up in the prefix cache."),
    ("prefix_hits", "prefix_hits", "Prompts that found a prefix in memory."),
    ("prefix_disk_bytes", "prefix_disk_bytes", "Bytes of prefixes on disk, in the whole folder."),
    ("prefix_disk_hits", "prefix_disk_hits", "Prompts that found more on disk than in memory."),
    ("feature_bytes", "feature_bytes", "Memory held by features of images."),
    ("feature_lookups", "feature_lookups", "Images looked up in the feature cache."),
    ("feature_hits", "feature_hits", "Images whose features were found."),
    ("draft_proposed", "draft_proposed", "Tokens that the draft model proposed."),
    ("draft_accepted", "draft_accepted", "Proposed tokens that were the model's own."),
)


class _Counts(Collector):
    def __init__(self, app: web.Application) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        app = self._app
        now = app[POOL].take_snapshot()
        yield from _totals(now)
        yield from _queues(now)
        yield _batches(app[POOL].stats.steps)
        yield from _workers(now)
        yield from _images(app[IMAGE_RESOLVER], app[FETCHER])
        yield from _memory(app[MEMORY])
        vectors = app[EMBEDDING_CACHE]
        if vectors is not None:
            yield from _cached(vectors)
        yield from _access(app[GATE], app[KEY_SYNC], app[RESPONSE_COUNTS])
        yield from _connections(app[LISTENER])
        yield from _lag(app[LAG])


def _lag(lag: LoopLag) -> Iterator[Metric]:
    held = HistogramMetricFamily("pool_event_loop_lag_seconds", "How much later than asked the event loop called back.")
    held.add_metric([], lag.buckets(), lag.total_s)
    yield held
    longest = "The longest of these of the last minute."
    yield GaugeMetricFamily("pool_event_loop_lag_longest_seconds", longest, value=lag.recent_s)


def _connections(listener: Listener) -> Iterator[Metric]:
    strangers = "Connections over which no valid key has come yet."
    yield GaugeMetricFamily("pool_connections_strangers", strangers, value=listener.strangers)
    evicted = "Idle connections that were closed to make room for others."
    yield CounterMetricFamily("pool_connections_evicted", evicted, value=listener.evictions)
    handshakes = CounterMetricFamily("pool_failed_handshakes", "TLS handshakes that did not end.", labels=["reason"])
    for reason, count in listener.failed_handshakes.items():
        handshakes.add_metric([reason], count)
    yield handshakes
    malformed = CounterMetricFamily("pool_malformed_requests", "Requests that were no HTTP.", labels=["kind"])
    for kind, count in listener.malformed.items():
        malformed.add_metric([kind], count)
    yield malformed
    yield GaugeMetricFamily("pool_connections", "Connections of clients that are open.", value=listener.count)
    yield GaugeMetricFamily("pool_connections_most", "Connections that there is room for.", value=listener.most)
    refused = "Connections that were closed because there were too many."
    yield CounterMetricFamily("pool_connections_refused", refused, value=listener.refusals)


def _totals(now: Snapshot) -> Iterator[Metric]:
    requests = CounterMetricFamily("pool_requests", "Requests that have ended.", labels=["model", "type", "outcome"])
    for labels, count in now.requests.items():
        requests.add_metric(labels, count)
    yield requests
    tokens = CounterMetricFamily("pool_tokens", "Tokens of requests that have ended.", labels=["model", "direction"])
    for named, count in now.tokens.items():
        tokens.add_metric(named, count)
    yield tokens
    inputs = CounterMetricFamily(
        "pool_embedded_inputs", "Inputs that were embedded, cached ones included.", labels=["model"]
    )
    for name, rates in now.embedded.items():
        inputs.add_metric([name], rates.inputs)
    yield inputs
    wire = CounterMetricFamily(
        "pool_wire_events", "What the socket brought besides messages in order.", labels=["event"]
    )
    for event, count in now.wire.items():
        wire.add_metric([event], count)
    yield wire
    yield CounterMetricFamily("pool_jobs_continued", "Jobs that went on after a lost worker.", value=now.continued)
    yield CounterMetricFamily("pool_jobs_refused", "Jobs refused because engines died of them.", value=now.refused)


def _queues(now: Snapshot) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("pool_queue_size", "Requests that wait for a worker.", labels=["model"])
    active = GaugeMetricFamily("pool_active_requests", "Requests at workers.", labels=["model"])
    slots = GaugeMetricFamily("pool_slots", "Rows that the model's ready workers step together.", labels=["model"])
    meaning = "1 if the model takes requests, 0 if it should; nothing where it was stopped on purpose."
    up = GaugeMetricFamily("pool_model_up", meaning, labels=["model"])
    for model in now.models:
        waiting.add_metric([model.name], model.queue_size)
        active.add_metric([model.name], model.active_requests)
        slots.add_metric([model.name], model.max_concurrency)
        if model.running or model.expected:
            up.add_metric([model.name], float(model.running))
    yield from (waiting, active, slots, up)


def _batches(steps: StepCounts) -> Metric:
    sizes = HistogramMetricFamily(
        "pool_batch_size", "Rows that an engine computed together in a step.", labels=["model", "step"]
    )
    for labels, buckets, rows in steps.histograms():
        sizes.add_metric(labels, buckets, rows)
    return sizes


def _workers(now: Snapshot) -> Iterator[Metric]:
    for name, field, text in WORKER_GAUGES:
        gauge = GaugeMetricFamily(f"pool_worker_{name}", text, labels=["model", "worker"])
        for worker in now.workers:
            if worker.beat is not None:
                gauge.add_metric([worker.model, worker.uid[:8]], getattr(worker.beat, field))
        yield gauge
    restarts = CounterMetricFamily("pool_worker_restarts", "Engine processes started again.", labels=["model", "pid"])
    for report in now.supervisors:
        restarts.add_metric([report.model, str(report.pid)], report.restarts)
    yield restarts


def _images(resolver: ImageResolver, fetcher: Fetcher | None) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "pool_image_held_bytes", "Images held for requests that are not over.", value=resolver.held_bytes
    )
    if fetcher is not None:
        fetches = CounterMetricFamily("pool_image_fetches", "Images fetched from URLs, by outcome.", labels=["outcome"])
        for outcome, count in fetcher.counts.items():
            fetches.add_metric([outcome], count)
        yield fetches


def _memory(account: MemoryAccount) -> Iterator[Metric]:
    held = "Memory held for bodies, forms and images of requests that are not over."
    yield GaugeMetricFamily("pool_body_memory_bytes", held, value=account.held_bytes)
    yield GaugeMetricFamily("pool_body_memory_most_bytes", "What there is of it.", value=account.capacity_bytes)
    yield CounterMetricFamily("pool_body_memory_refused", "Requests that found no memory.", value=account.refused)


def _cached(vectors: EmbeddingCache) -> Iterator[Metric]:
    lookups = CounterMetricFamily(
        "pool_vector_cache_lookups", "Inputs looked up in the vector cache.", labels=["result"]
    )
    lookups.add_metric(["hit"], vectors.counts.hits)
    lookups.add_metric(["miss"], vectors.counts.misses)
    yield lookups
    dropped = CounterMetricFamily("pool_vector_cache_dropped", "Vectors that were not kept.", labels=["reason"])
    dropped.add_metric(["evicted"], vectors.counts.evicted)
    dropped.add_metric(["expired"], vectors.counts.expired)
    yield dropped
    yield GaugeMetricFamily("pool_vector_cache_bytes", "Memory held by cached vectors.", value=vectors.used_bytes)
    yield GaugeMetricFamily("pool_vector_cache_entries", "Cached vectors.", value=len(vectors))


def _access(gate: Gate, key_sync: KeySync, answers: Counter[tuple[str, str, int]]) -> Iterator[Metric]:
    http = CounterMetricFamily(
        "pool_http_responses", "Answers by route, method and status.", labels=["route", "method", "status"]
    )
    for (route, method, status), count in answers.items():
        http.add_metric([route, method, str(status)], count)
    yield http
    refused = CounterMetricFamily("pool_refusals", "Requests refused for their key or its limits.", labels=["code"])
    for code, count in gate.refused.items():
        refused.add_metric([code], count)
    yield refused
    failed = CounterMetricFamily("pool_failed_logins", "Requests with a key that opens nothing.", labels=["reason"])
    for reason, count in gate.guesses.counts.items():
        failed.add_metric([reason], count)
    yield failed
    yield GaugeMetricFamily("pool_keys", "API keys, revoked ones too.", value=len(gate.keyring))
    yield GaugeMetricFamily(
        "pool_key_database_up", "1 if the key database works.", value=float(key_sync.trouble is None)
    )
    shared = GaugeMetricFamily("pool_shared_limits_up", "1 if the store works that gateways share for limits.")
    if (is_up := gate.limiter.is_up()) is not None:
        shared.add_metric([], float(is_up))
    yield shared
    yield CounterMetricFamily("pool_key_database_failures", "Failed uses of the key database.", value=key_sync.failures)


REGISTRY: web.AppKey[CollectorRegistry] = web.AppKey("registry", CollectorRegistry)


class _Own(Collector):
    """What another collector has to say of some models, and nothing else."""

    def __init__(self, whole: Collector, names: frozenset[str]) -> None:
        self._whole = whole
        self._names = names

    def collect(self) -> Iterator[Metric]:
        for metric in self._whole.collect():
            metric.samples = [sample for sample in metric.samples if sample.labels.get("model") in self._names]
            if metric.samples:
                yield metric


async def metrics(request: web.Request) -> web.Response:
    """Write everything in Prometheus' text format; for a key that is limited to some models, what concerns those."""
    sources: tuple[Collector, ...] = (request.app[POOL].stats.registry, request.app[REGISTRY])
    if request[CALLER].models:
        every = (variant for model in request.app[POOL].models() for variant in model.variants)
        names = frozenset(model.name for model in every if may_use(request, model))
        sources = tuple(_Own(source, names) for source in sources)
    text = b"".join(generate_latest(source) for source in sources)
    return web.Response(body=text, headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4; charset=utf-8"})


OPERATIONS = (
    Operation(
        method=hdrs.METH_GET,
        path="/metrics",
        handler=metrics,
        summary="Prometheus metrics",
        tag="Operation",
        access=("models",),
        media_type="text/plain",
        quiet=True,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    app[REGISTRY] = CollectorRegistry()
    app[REGISTRY].register(_Counts(app))
    mount(app, OPERATIONS)
