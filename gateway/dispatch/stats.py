"""What was done and how fast: counts per request, histograms per request, nothing per token."""

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry, Histogram

from gateway.dispatch.jobs.outcome import Outcome
from gateway.dispatch.state import JobState, ModelState
from protocol.messages import Beat, GenerateJob, Kind, Supervision

REQUEST_TYPES = ("vision", "vision_stream", "text", "text_stream", "embedding")
WIRE_COUNTS = ("bad_frame", "contradiction", "stranger", "lost_workers")
RECENT = 100
ERRORS: tuple[Outcome, ...] = ("failed", "client_error", "refused")
"""Outcomes that `error_count` counts."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
WINDOW_S = 60
Step = Literal["decode", "embed"]
"""`decode`: rows that got a token in one step of an engine, which is what comes in one frame. `embed`: inputs in the
largest forward pass of a job."""
STEP_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and their tokens since the start, cached ones included, and per second of the last minute."""

    inputs: int
    tokens: int
    inputs_per_s: float
    tokens_per_s: float


class Throughput:
    """Counts of one model, in buckets of a second."""

    def __init__(self) -> None:
        self.inputs = 0
        self.tokens = 0
        self._seconds: deque[tuple[int, int, int]] = deque(maxlen=WINDOW_S)

    def count_request(self, now: float, *, inputs: int, tokens: int) -> None:
        """Count a request that was answered at `now`, in seconds."""
        self.inputs += inputs
        self.tokens += tokens
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            _, before, tokens_before = self._seconds.pop()
            inputs, tokens = inputs + before, tokens + tokens_before
        self._seconds.append((second, inputs, tokens))

    def read_rates(self, now: float) -> Rates:
        """Return what was counted until `now`."""
        recent = [entry for entry in self._seconds if entry[0] > now - WINDOW_S]
        return Rates(
            inputs=self.inputs,
            tokens=self.tokens,
            inputs_per_s=sum(inputs for _, inputs, _ in recent) / WINDOW_S,
            tokens_per_s=sum(tokens for _, _, tokens in recent) / WINDOW_S,
        )


class StepCounts:
    """Counts per bucket, the last of which has no bound."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, Step], list[int]] = defaultdict(lambda: [0] * (len(STEP_BOUNDS) + 1))
        self._sums: defaultdict[tuple[str, Step], int] = defaultdict(int)

    def count_step(self, model: str, step: Step, rows: int) -> None:
        """One step. The hot path: once per frame of an engine."""
        self._counts[model, step][bisect_left(STEP_BOUNDS, rows)] += 1
        self._sums[model, step] += rows

    def histograms(self) -> Iterator[tuple[tuple[str, Step], list[tuple[str, float]], int]]:
        """Of each model and kind: its labels, (upper bound, steps up to it), the sum of rows: as Prometheus has it."""
        for labels, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip((*map(str, STEP_BOUNDS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            yield labels, buckets, self._sums[labels]


class ModelSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One model's queue: jobs that wait, jobs at workers, rows that workers step together."""

    name: str
    kind: Kind
    state: str
    running: bool
    expected: bool
    queue_size: int
    max_queue_size: int
    active_requests: int
    max_concurrency: int


class WorkerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: its room in rows, what it said last, and how long ago.

    `beat` is None before the first. `silent_s` is since it was heard of, `moved_s` since it was seen to get on;
    `revision` is the hub's that it serves. `adapters` are those that requests can ask for; `unserved_adapters` those
    that they can't, each with the reason.
    """

    uid: str
    model: str
    state: str
    pid: int
    rows: int
    slots: int
    silent_s: float
    moved_s: float
    revision: str
    beat: Beat | None
    adapters: list[str]
    unserved_adapters: dict[str, str]


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """Generated tokens per second of a request's time at its worker, over the last `recent_requests` (100 at most)."""

    avg_tps: float
    max_tps: float
    min_tps: float
    recent_requests: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything countable, at one moment. Totals are since the start; a request counts once it has ended.

    `total_tokens` is prompt plus completion; `total_time_s` sums what each request took, queue included;
    `error_count` leaves out requests whose client went away (`cancelled`). Tokenise jobs count nowhere. `wire` counts
    frames that could not be used: `bad_frame` (not of this protocol), `stranger` (sender or epoch unknown),
    `contradiction` (a peer that changes its mind about who it is), `stale` (for a job or attempt that is over); and
    `lost_workers`.
    """

    models: list[ModelSnapshot]
    workers: list[WorkerSnapshot]
    supervisors: list[Supervision]
    total_requests: int
    total_tokens: int
    prompt_tokens: int
    completion_tokens: int
    tokens: dict[tuple[str, str], int]
    """By model and direction."""
    total_time_s: float
    request_types: dict[str, int]
    requests: dict[tuple[str, str, str], int]
    """By model, request type and outcome."""
    error_count: int
    cancelled: int
    performance: Performance
    wire: dict[str, int]
    continued: int
    """Jobs that went on elsewhere after they had lost their worker."""
    refused: int
    """Jobs that were refused because engines died of them, or of their equals."""
    embedded: dict[str, Rates]
    """By embedding model that was asked."""
    times_s: dict[str, float]
    """What makes up `total_time_s`, by model."""
    speeds: dict[str, list[float]]
    """Tokens per second of recent requests, by model."""

    def of(self, names: Collection[str], queues: Collection[str]) -> "Snapshot":
        """Return the counts of some models (adapters by their own names), and the queues of the models `queues`."""
        requests = {labels: count for labels, count in self.requests.items() if labels[0] in names}
        tokens = {labels: count for labels, count in self.tokens.items() if labels[0] in names}
        return msgspec.structs.replace(
            self,
            models=[model for model in self.models if model.name in queues],
            requests=requests,
            tokens=tokens,
            request_types=_by_type(requests),
            total_requests=sum(requests.values()),
            total_tokens=sum(tokens.values()),
            total_time_s=sum(took_s for name, took_s in self.times_s.items() if name in names),
            error_count=sum(count for (_, _, ended), count in requests.items() if ended in ERRORS),
            performance=_performance([tps for name, recent in self.speeds.items() if name in names for tps in recent]),
        )


class PoolStats:
    """Counts that only grow, a ring of recent speeds, and histograms in a registry of their own."""

    def __init__(self, told: Callable[[JobState], None] | None = None) -> None:
        self._told = told
        self.registry = CollectorRegistry()
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.wire: Counter[str] = Counter(dict.fromkeys(WIRE_COUNTS, 0))
        self.tokens: Counter[tuple[str, str]] = Counter()
        """By model and direction (`prompt`, `completion`)."""
        self.throughput: defaultdict[str, Throughput] = defaultdict(Throughput)
        """Of embedding, by model."""
        self.steps = StepCounts()
        self.total_time_s = 0.0
        self.continued = 0
        self.times_s: defaultdict[str, float] = defaultdict(float)
        self.speeds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._tps: deque[float] = deque(maxlen=RECENT)
        self._queue_wait = self._histogram("queue_wait", "Time a job waited before it was sent to a worker.")
        self._first_token = self._histogram("time_to_first_token", "Time from a job's arrival to its first output.")
        self._inter_token = self._histogram(
            "inter_token", "Time between two tokens of a choice, averaged over each request.", _GAPS_S
        )
        self._duration = self._histogram("request_duration", "Time from a job's arrival to its end.")

    def count_sent(self, job: JobState, now: float) -> None:
        """Take in that a job went to a worker."""
        self._queue_wait.labels(job.name).observe(now - job.queued_at)

    def time_first_output(self, job: JobState, now: float) -> None:
        """Take in that a job's first delta came."""
        self._first_token.labels(job.name).observe(now - job.began_at)

    def count_ended(self, job: JobState) -> None:
        """Count a job that is over for its client, who has left."""
        if job.slotless or job.outcome is None:
            return
        took_s = job.over_at - job.began_at
        self.requests[job.name, request_type(job), job.outcome] += 1
        self._took(job.name, took_s)
        self._duration.labels(job.name).observe(took_s)
        if self._told is not None:
            self._told(job)
        usage = job.stream.usage
        if usage is None:
            return
        self._count(job.name, usage.prompt_tokens, usage.completion_tokens)
        gaps = usage.completion_tokens / job.choices - 1
        if job.output_at is not None and gaps > 0:
            self._inter_token.labels(job.name).observe((job.over_at - job.output_at) / gaps)
        if job.sent_at is not None and job.over_at > job.sent_at and usage.completion_tokens > 0:
            tps = usage.completion_tokens / (job.over_at - job.sent_at)
            self._tps.append(tps)
            self.speeds[job.name].append(tps)

    def count_answer(self, model: ModelState, kind: str, *, took_s: float, prompt_tokens: int) -> None:
        """Count a request that was answered without any job."""
        self.requests[model.name, kind, "done"] += 1
        self._took(model.name, took_s)
        self._count(model.name, prompt_tokens, 0)
        self._duration.labels(model.name).observe(took_s)

    def performance(self) -> Performance:
        """Speeds of recent requests; zeros before the first."""
        return _performance(self._tps)

    def count_outcome(self, outcome: Outcome) -> int:
        """How many requests ended so."""
        return sum(number for (_, _, ended), number in self.requests.items() if ended == outcome)

    def count_types(self) -> dict[str, int]:
        """How many requests of each type have ended."""
        return _by_type(self.requests)

    def sum_tokens(self, direction: str) -> int:
        """Tokens of all models, of that direction."""
        return sum(number for (_, found), number in self.tokens.items() if found == direction)

    def _took(self, model: str, took_s: float) -> None:
        self.total_time_s += took_s
        self.times_s[model] += took_s

    def _count(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        self.tokens[model, "prompt"] += prompt_tokens
        self.tokens[model, "completion"] += completion_tokens

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"pool_{name}_seconds", text, ["model"], buckets=buckets, registry=self.registry)


def _performance(recent: Collection[float]) -> Performance:
    found = recent or [0.0]
    return Performance(
        avg_tps=sum(found) / len(found), max_tps=max(found), min_tps=min(found), recent_requests=len(recent)
    )


def _by_type(requests: Mapping[tuple[str, str, str], int]) -> dict[str, int]:
    counts = dict.fromkeys(REQUEST_TYPES, 0)
    for (_, kind, _), number in requests.items():
        counts[kind] += number
    return counts


def request_type(job: JobState) -> str:
    """How `request_types` calls it."""
    if not isinstance(job.message, GenerateJob):
        return "embedding"
    return type_of(images=bool(job.message.images), streamed=job.stream.streamed)


def type_of(*, images: bool, streamed: bool) -> str:
    """Return what `request_types` calls a generation: it is what is in it that counts, not which model answers."""
    name = "vision" if images else "text"
    return f"{name}_stream" if streamed else name


def model_snapshot(model: ModelState) -> ModelSnapshot:
    """One model's queue, now."""
    return ModelSnapshot(
        name=model.name,
        kind=model.kind,
        state=model.state,
        running=bool(model.up),
        expected=model.expected,
        queue_size=len(model.queue) + len(model.suspects) - sum(job.slotless for job in model.suspects),
        max_queue_size=model.queue.capacity,
        active_requests=sum(len(worker.in_flight) - worker.slotless for worker in model.workers.values()),
        max_concurrency=model.slots,
    )
