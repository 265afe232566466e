"""The embedding engine: texts and images of all clients in, one vector each out, one batch of bounded size per step.

Composes what others own: the inputs (to tokens and pixels), the queue (whose turn it is), the model (vectors).
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from protocol.errors import Code, JobError
from protocol.messages import (
    Accepted,
    DetokenizeJob,
    EmbedJob,
    Failed,
    GenerateJob,
    ModelJob,
    Ready,
    ToGateway,
    TokenizeJob,
    Vectors,
)
from worker.config import WorkerConfig
from worker.device_errors import is_device_error
from worker.engines.base import Answer, EngineLoadError, Gauges
from worker.engines.embedding.backends import Backend, Backends
from worker.engines.embedding.embedder import Embedder, Opened, device_name, open_model
from worker.engines.embedding.encoder import Encoder
from worker.engines.embedding.inputs import EmbeddingInputs
from worker.engines.embedding.queue import QueuedText, TextQueue, groups

log = logging.getLogger("worker")

BUFFER_CACHE_BYTES = 1 << 30
"""What MLX may keep of freed buffers. Its own default is nearly all memory, per process."""
LARGEST_BATCH = 16_384
"""Tokens in one step at most, whatever the machine: bounds the activations in memory."""
SMALLEST_BATCH = 256
BATCH_S = 0.25
"""How long a step should take: nobody waits for more than two of them, and a cancel for one."""
SMOOTHING = 0.5
LARGEST_ANSWER = 56 << 20
"""Bytes of one job's vectors: they have to fit one frame."""
WARMUP_TOKENS = (16, 100, 16, 400)
PROBES = (8, 72)
"""Lengths whose passes tell what a pass costs besides its tokens."""
SPARE = MappingProxyType({"cpu": 12.0, "gpu": 256.0})
"""That cost, in tokens, before it is measured. A GPU likes fewer passes, a CPU less padding."""
MOST_SPARE = 1024.0


class PreparedTexts(msgspec.Struct, frozen=True):
    """A job that has passed every check: its inputs as tokens and pixels, and where they are to be computed."""

    job: EmbedJob
    texts: list[QueuedText]
    backend: Backend


class _Running:
    """One job in flight: what it has so far."""

    __slots__ = ("admitted_at", "backend", "batch_size", "batches", "began_at", "job", "left", "texts", "vectors")

    def __init__(self, prepared: PreparedTexts, dimensions: int, now: float) -> None:
        self.job = prepared.job
        self.texts = prepared.texts
        self.backend = prepared.backend
        self.left = len(prepared.texts)
        self.vectors = np.zeros((len(prepared.texts), dimensions), dtype="<f4")
        self.admitted_at = now
        self.began_at: float | None = None
        self.batches = 0
        self.batch_size = 0


class EmbeddingEngine:
    """See `worker.engines.base.Engine`."""

    def __init__(self, config: WorkerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._running: dict[int, _Running] = {}
        self._queue = TextQueue()
        self._tokens_per_s: float | None = None
        self._opened: Opened
        self.model: Embedder
        self.inputs: EmbeddingInputs

    # -- life ----------------------------------------------------------------

    def load(self) -> None:
        """Load the model; see `Engine.load`."""
        mx.set_cache_limit(BUFFER_CACHE_BYTES)
        if self._config.device == "cpu":
            mx.set_default_device(mx.cpu)
        if self._config.adapter_path or self._config.adapters:
            raise EngineLoadError("--adapter-path and --adapter: embedding models take no adapters")
        if self._config.draft_model:
            raise EngineLoadError("--draft-model: embedding models generate nothing to draft")
        self._opened = opened = open_model(self._config)
        self.model, self.inputs = opened.model, opened.inputs
        self._family = str(opened.files.config["model_type"])
        self._assumed = ""
        if opened.files.assumed_pooling and isinstance(opened.model, Encoder):
            self._assumed = opened.files.poolings[0]
            log.warning("the model's folder names no pooling; %s is taken", self._assumed)
        self._dimensions = min(self.model.dimensions, opened.files.dimensions or self.model.dimensions)
        self._spare = SPARE[device_name()] if self.model.padding_is_harmless() else 0.0
        self._backends = Backends(opened.model, opened.folder, device=device_name())

    def warm(self) -> None:
        """Short and long texts, so that what is compiled at first use is, and the speed of the machine is known."""
        for length in WARMUP_TOKENS:
            tokens, seconds = self._timed(4, length)
            self._learn(4 * tokens, seconds)
        if self._spare:
            # The least of several: what else the machine did has no place in it.
            (short, first_s), (long, second_s) = (
                min((self._timed(1, length) for _ in range(5)), key=itemgetter(1)) for length in PROBES
            )
            a_token_s = max(1e-9, (second_s - first_s) / max(1, long - short))
            self._spare = min(MOST_SPARE, max(1.0, first_s / a_token_s - short))

    def _timed(self, texts: int, length: int) -> tuple[int, float]:
        """Tokens of a text as long as it may be, and the seconds that a pass of such texts takes."""
        tokens = [0] * min(length, self.inputs.limit)
        began = self._clock()
        self.model.encode([QueuedText(0, 0, tokens)] * texts, normalize=True)
        return len(tokens), self._clock() - began

    def describe(self) -> Ready:
        """See `Engine.describe`."""
        subject = "text and image" if "embed_image" in self.model.capabilities else "text"
        description = f"{self._family.capitalize()} {subject} embedding model running on MLX"
        if self._assumed:
            description += f"; its folder names no pooling, so {self._assumed} is taken"
        return Ready(
            context_length=self.inputs.limit,
            vocab_size=self.model.vocab_size,
            family=self._family,
            description=description,
            tags=["local", "embedding", *(["quantized"] if self.model.quantization != "none" else [])],
            capabilities=[
                *self.model.capabilities,
                "tokenize",
                *(["truncate"] if self._config.truncate_embeddings else []),
            ],
            weights_bytes=self.model.weights_bytes,
            load_s=0.0,
            warmup_enabled=False,
            warmup_s=0.0,
            dimensions=self._dimensions,
            revision=self._opened.revision,
            backend="mlx",
            device=device_name(),
            quantization=self.model.quantization,
        )

    # -- jobs ----------------------------------------------------------------

    def prepare(
        self, job: ModelJob, buffers: Sequence[bytes] = ()
    ) -> Iterator[PreparedTexts | Answer | Future[Any] | None]:
        """Read images, tokenise and check, piece by piece; see `Engine.prepare`."""
        match job:
            case EmbedJob():
                yield from self._prepare(job, buffers)
            case TokenizeJob() | DetokenizeJob():
                yield from self.inputs.answer_job(job, vocab_size=self.model.vocab_size)
            case GenerateJob():
                raise JobError(Code.INVALID_REQUEST, "This model embeds texts; it generates none.", "model")

    def _prepare(self, job: EmbedJob, buffers: Sequence[bytes]) -> Iterator[PreparedTexts | Future[Any] | None]:
        if job.dimensions is not None and not 1 <= job.dimensions <= self._dimensions:
            raise JobError(
                Code.INVALID_REQUEST, f"The vectors of this model have {self._dimensions} dimensions.", "dimensions"
            )
        count = max(len(job.texts) + len(job.tokens), len(job.images))
        if 4 * self._dimensions * count > LARGEST_ANSWER:
            most = LARGEST_ANSWER // (4 * self._dimensions)
            raise JobError(Code.INVALID_REQUEST, f"This model takes at most {most} inputs at a time.", "input")
        backend = yield from self._backends.select_backend(job)
        texts: list[QueuedText] = []
        for piece in self.inputs.prepare_texts(job, buffers, vocab_size=self.model.vocab_size):
            if isinstance(piece, Future):
                yield piece
            else:
                texts += piece
                yield None
        yield PreparedTexts(job, texts, backend)

    def admit(self, prepared: PreparedTexts) -> Sequence[ToGateway]:
        """Queue its texts; see `Engine.admit`."""
        job = prepared.job
        self._running[job.job] = _Running(prepared, self._dimensions, self._clock())
        self._queue.add_job(job.job, prepared.texts, limit=job.batch_size)
        return [Accepted(job.job, job.attempt, sum(len(text.tokens) for text in prepared.texts))]

    def cancel(self, job: int) -> bool:
        """Its texts leave the queue; see `Engine.cancel`."""
        self._queue.remove_job(job)
        return self._running.pop(job, None) is not None

    def step(self) -> Sequence[ToGateway]:
        """Compute one batch. What fails in it fails the jobs that it served, and no others."""
        began = self._clock()
        batch = self._queue.take_batch(self.budget)
        limits = {job: running.job.batch_size for job, running in self._running.items() if running.job.batch_size}
        touched = {text.job for text in batch}
        for job in touched:
            running = self._running[job]
            running.began_at = began if running.began_at is None else running.began_at
        failed: dict[int, Failed] = {}
        most = max(self.budget, self.inputs.limit)
        backends = {backend.key: backend for backend in (self._running[job].backend for job in touched)}
        for key, backend in backends.items():
            texts = [text for text in batch if self._running[text.job].backend.key == key]
            for group in groups(texts, limits=limits, spare=self._spare, budget=most):
                failed |= self._compute(backend, [text for text in group if text.job not in failed])
        self._learn(sum(text.size for text in batch), self._clock() - began)
        for job in failed:
            self.cancel(job)
        done = [self._finish(self._running[job]) for job in touched - failed.keys() if not self._running[job].left]
        return [*failed.values(), *done]

    @property
    def budget(self) -> int:
        """Tokens that one step may take, by what this machine does in a fraction of a second."""
        if self._tokens_per_s is None:
            return SMALLEST_BATCH
        return int(min(LARGEST_BATCH, max(SMALLEST_BATCH, self._tokens_per_s * BATCH_S)))

    @property
    def busy(self) -> bool:
        """Whether a text waits."""
        return bool(self._running)

    def gauges(self) -> Gauges:
        """Jobs in flight, texts that wait, MLX's memory."""
        return Gauges(
            running=len(self._running),
            waiting=len(self._queue),
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            peak_bytes=mx.get_peak_memory(),
        )

    # -- inside --------------------------------------------------------------

    def _compute(self, backend: Backend, group: list[QueuedText]) -> dict[int, Failed]:
        """One forward pass; returns the jobs that it was the end of."""
        if not group:
            return {}
        jobs = {text.job for text in group}
        try:
            vectors = backend.encode_texts(group)
        except Exception as error:
            if is_device_error(error):
                raise
            # Its shapes, likely: the weights are untouched, and a batch of other texts may well be computed.
            log.exception("a batch of %d inputs of %d tokens failed", len(group), group[0].size)
            return {job: self._failure(job, Code.ENGINE_ERROR, "A batch could not be computed.") for job in jobs}
        failed: dict[int, Failed] = {}
        finite = [bool(np.isfinite(vector).all()) for vector in vectors]
        for text, vector, good in zip(group, vectors, finite, strict=True):
            running = self._running[text.job]
            running.vectors[text.index] = vector[: self._dimensions]
            running.left -= 1
            if not good:
                message = f"The model's output for input {text.index} is not a finite number."
                failed[text.job] = self._failure(text.job, Code.NOT_FINITE, message)
        for job in jobs:
            self._running[job].batches += 1
            self._running[job].batch_size = max(self._running[job].batch_size, len(group))
        return failed

    def _failure(self, job: int, code: Code, message: str) -> Failed:
        return Failed(job, self._running[job].job.attempt, code, message, "input")

    def _finish(self, running: _Running) -> Vectors:
        job = running.job
        del self._running[job.job]
        vectors = running.vectors
        if job.dimensions is not None:
            vectors = vectors[:, : job.dimensions]
        if job.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        began_at = running.admitted_at if running.began_at is None else running.began_at
        return Vectors(
            job=job.job,
            attempt=job.attempt,
            dimensions=vectors.shape[1],
            token_counts=[len(text.tokens) for text in running.texts],
            data=np.ascontiguousarray(vectors, dtype="<f4").tobytes(),
            wait_s=began_at - running.admitted_at,
            compute_s=self._clock() - began_at,
            batches=running.batches,
            batch_size=running.batch_size,
            backend=running.backend.backend,
            device=running.backend.device,
        )

    def _learn(self, tokens: int, seconds: float) -> None:
        tokens_per_s = tokens / max(seconds, 1e-6)
        if self._tokens_per_s is None:
            self._tokens_per_s = tokens_per_s
        self._tokens_per_s += SMOOTHING * (tokens_per_s - self._tokens_per_s)
