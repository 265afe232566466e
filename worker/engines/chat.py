"""The chat engine: an mlx-lm model behind continuous batching. Jobs in, deltas out.

Composes what others own: the prompter (text to tokens), the batch (tokens to tokens), the channels (tokens to text).
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import msgspec

from protocol.errors import Code, JobError
from protocol.messages import (
    Accepted,
    ChatPrompt,
    Delta,
    DetokenizeJob,
    Done,
    EmbedJob,
    Failed,
    GenerateJob,
    Job,
    Progress,
    Prompt,
    Ready,
    Sampling,
    Text,
    TextPrompt,
    ToGateway,
    TokenizeJob,
    TokenLogprob,
    Tokens,
    Usage,
)
from worker.batch.batch import Batch
from worker.batch.batch import Prompt as BatchPrompt
from worker.batch.draws import row_key
from worker.batch.prefix import PrefixCache
from worker.batch.row import Emission, Logprobs, Row, RowSampling
from worker.config import WorkerConfig
from worker.engines.aboard import Choice, Prepared, Running
from worker.engines.base import Gauges
from worker.engines.loading import Loaded, family, load
from worker.engines.prompts import Prompter
from worker.engines.vocabulary import Vocabulary
from worker.text.calls import calls_from
from worker.text.channels import ChannelText
from worker.text.markers import Markers, initial_state, markers_of

log = logging.getLogger("worker")

LARGEST_CHUNK = 1024
"""Prompt tokens in one forward pass when nobody is decoding; also the limit of the adaptive chunk."""
BUFFER_CACHE_BYTES = 1 << 30
"""What MLX may keep of freed buffers. Its own default is nearly all memory, per process."""
WARMUP_TOKENS = (24, 3)
"""Lengths of the warmup prompts: a padded group prefill and a batch of more than one row."""


class ChatEngine:
    """See `worker.engines.base.Engine`."""

    def __init__(self, config: WorkerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._running: dict[int, Running] = {}
        self._prefix = PrefixCache(config.prefix_cache_bytes)
        self._loaded: Loaded
        self._batch: Batch | None = None

    # -- life ----------------------------------------------------------------

    def load(self) -> None:
        """Load the model; see `Engine.load`."""
        mx.set_cache_limit(BUFFER_CACHE_BYTES)
        self._loaded = loaded = load(self._config)
        self._vocab_size = _vocab_size(loaded)
        self._vocabulary = Vocabulary(loaded.tokenizer)
        self._markers = markers_of(loaded.tokenizer)
        self._eos = frozenset(loaded.tokenizer.eos_token_ids)
        self._prompter = Prompter(loaded.tokenizer, vocab_size=self._vocab_size, context_length=loaded.context_length)
        self._batch = Batch(
            model=loaded.model,
            vocab_size=self._vocab_size,
            weights_bytes=loaded.weights_bytes,
            max_rows=self._config.max_concurrency,
            prefix=self._prefix,
            largest_chunk=self._config.prefill_chunk or LARGEST_CHUNK,
        )
        self._batch.measure()

    def warm(self) -> None:
        """Run every path that a first request could take: group prefill, decode, each kind of draw."""
        batch = self._ready_batch
        kinds = [
            RowSampling(key=1, temperature=0.0),
            RowSampling(key=2, temperature=1.0, logprobs=1),
            RowSampling(key=3, temperature=1.0, top_k=20, top_p=0.9, min_p=0.01),
            RowSampling(key=4, temperature=1.0, repetition_penalty=1.1),
        ]
        for sampling in kinds:
            rows = [
                Row(owner=None, tenant="", prompt=[0] * length, delivered=[], limit=3, sampling=sampling)
                for length in WARMUP_TOKENS
            ]
            for row in rows:
                batch.add(BatchPrompt([row]))
            while batch.busy:
                for emission in batch.step():
                    if emission.row.position >= emission.row.limit:
                        batch.release(emission.row, keep=False)

    def describe(self) -> Ready:
        """See `Engine.describe`."""
        loaded = self._loaded
        name = family(str(loaded.config.get("model_type", "")))
        quantised = "quantization" in loaded.config
        capabilities = ["chat"] if loaded.tokenizer.has_chat_template else []
        capabilities += ["completions", "tokenize"]
        capabilities += ["tools"] if self._markers.tool_start else []
        capabilities += ["reasoning"] if self._markers.think_start else []
        return Ready(
            context_length=loaded.context_length,
            vocab_size=self._vocab_size,
            family=name,
            description=f"{name.capitalize()} language model running on MLX",
            tags=["local", "chat", *(["quantized"] if quantised else [])],
            capabilities=capabilities,
            weights_bytes=loaded.weights_bytes,
            load_s=0.0,
            warmup_enabled=False,
            warmup_s=0.0,
        )

    @property
    def _ready_batch(self) -> Batch:
        if self._batch is None:
            raise RuntimeError("the engine was used before it was loaded")
        return self._batch

    # -- before the device ---------------------------------------------------

    def prepare(self, job: Job) -> Any:
        """Render, tokenise and check; see `Engine.prepare`."""
        match job:
            case DetokenizeJob():
                self._check_ids(job.tokens, "tokens")
                text = self._loaded.tokenizer.decode(job.tokens, skip_special_tokens=False)
                return Text(job.job, job.attempt, text)
            case TokenizeJob():
                return Tokens(job.job, job.attempt, self._prompter.tokens(job.prompt))
            case GenerateJob():
                return self._prepare(job)
            case EmbedJob():
                raise JobError(Code.INVALID_REQUEST, "This model generates text; it embeds none.", "model")

    def _prepare(self, job: GenerateJob) -> Prepared:
        self._check_ids(job.sampling.logit_bias, "logit_bias")
        prompt = self._prompter.start(job.prompt)
        room = self._loaded.context_length - len(prompt)
        wanted = job.max_tokens or 1
        if room < wanted:
            raise JobError(
                Code.CONTEXT_LENGTH,
                f"This model's context holds {self._loaded.context_length} tokens: the prompt has {len(prompt)} "
                f"and {wanted} more were asked for.",
                "messages" if isinstance(job.prompt, ChatPrompt) else "prompt",
            )
        texts = [self._channels(job, choice, prompt) for choice in range(job.n)]
        if job.delivered:
            self._replay(job.delivered, texts)
        return Prepared(job, prompt, min(room, job.max_tokens or room), texts, self._echo(job.prompt, job.echo, prompt))

    def _replay(self, delivered: list[list[int]], texts: list[ChannelText]) -> None:
        """Bring each choice's text to where its client has it."""
        if len(delivered) != len(texts):
            raise JobError(Code.INVALID_REQUEST, "A resumed request needs the tokens of each of its choices.")
        for tokens, text in zip(delivered, texts, strict=True):
            self._check_ids(tokens, "delivered")
            for token in tokens:
                text.feed(token)
            text.take()

    def _echo(self, prompt: Prompt, wanted: bool, tokens: list[int]) -> str:
        if not wanted:
            return ""
        text: str = prompt.text if isinstance(prompt, TextPrompt) else self._loaded.tokenizer.decode(tokens)
        return text

    def _check_ids(self, ids: Sequence[int] | dict[int, float], param: str) -> None:
        """An id outside the vocabulary is an out-of-bounds access in MLX: it ends the process."""
        if any(not 0 <= token < self._vocab_size for token in ids):
            raise JobError(Code.INVALID_REQUEST, f"Token ids of this model are 0 to {self._vocab_size - 1}.", param)

    def _channels(self, job: GenerateJob, choice: int, prompt: list[int]) -> ChannelText:
        """The text pipeline of one choice; a plain completion is plain text, markers and all."""
        tokenizer = self._loaded.tokenizer
        chat = isinstance(job.prompt, ChatPrompt)
        offered = job.prompt.tools if isinstance(job.prompt, ChatPrompt) else None
        tools = msgspec.json.decode(offered) if offered else None
        markers = self._markers if chat else Markers()
        return ChannelText(
            detokenizer=self._vocabulary.detokenizer(answer=chat),
            markers=markers,
            initial=initial_state(markers, tokenizer, prompt) if chat else markers.initial,
            stop=job.stop,
            parse_calls=calls_from(tokenizer.tool_parser, tools) if tools and tokenizer.has_tool_calling else None,
            call_ids=lambda index: _call_id(job.request_id, choice, index),
            parallel_calls=job.parallel_tool_calls,
        )

    # -- aboard --------------------------------------------------------------

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        """See `Engine.admit`."""
        job: GenerateJob = prepared.job
        running = Running(job, self._clock())
        self._running[job.job] = running
        for index, text in enumerate(prepared.texts):
            choice = Choice(running, text)
            choice.row = Row(
                owner=choice,
                tenant=job.tenant,
                prompt=prepared.prompt,
                delivered=job.delivered[index] if job.delivered else [],
                limit=prepared.limit,
                sampling=self._sampling(job.sampling, index, job.logprobs),
            )
            running.choices.append(choice)
        running.open = len(running.choices)
        self._queue(running)
        messages: list[ToGateway] = [Accepted(job.job, job.attempt, len(prepared.prompt))]
        if prepared.echo and not job.delivered:
            messages += [Delta(job.job, job.attempt, index, [], prepared.echo) for index in range(job.n)]
        return messages

    def _queue(self, running: Running) -> None:
        rows = [choice.row for choice in running.choices]
        # Choices share a prompt, and so one prefill, unless they are resumed behind different tokens.
        shared = [rows] if not running.message.delivered else [[row] for row in rows]
        for group in shared:
            running.prompt = BatchPrompt(group)
            self._ready_batch.add(running.prompt)

    def _sampling(self, asked: Sampling, choice: int, logprobs: int | None) -> RowSampling:
        """Fill what the request left open from the model's generation_config.json, else as OpenAI does."""
        own = self._loaded.generation
        greedy = own.get("do_sample") is False

        def value(given: float | None, name: str, otherwise: float) -> float:
            return given if given is not None else own.get(name) if own.get(name) is not None else otherwise  # type: ignore[return-value]

        return RowSampling(
            key=row_key(asked.seed, choice),
            temperature=value(asked.temperature, "temperature", 0.0 if greedy else 1.0),
            top_p=value(asked.top_p, "top_p", 1.0),
            top_k=int(value(asked.top_k, "top_k", 0)),
            min_p=value(asked.min_p, "min_p", 0.0),
            repetition_penalty=value(asked.repetition_penalty, "repetition_penalty", 1.0),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=asked.logit_bias,
            logprobs=logprobs,
        )

    def cancel(self, job: int) -> bool:
        """See `Engine.cancel`."""
        running = self._running.pop(job, None)
        if running is None:
            return False
        for choice in running.choices:
            if not choice.finished:
                self._ready_batch.release(choice.row, keep=False)
        return True

    def step(self) -> Sequence[ToGateway]:
        """See `Engine.step`."""
        messages: list[ToGateway] = []
        for emission in self._ready_batch.step():
            choice: Choice = emission.row.owner
            if choice.finished:
                continue
            try:
                self._advance(choice, emission, messages)
            except Exception:
                # The text pipeline belongs to this row alone: its failure must not end the others.
                log.exception("the text of job %d failed", choice.job.message.job)
                job = choice.job.message
                self.cancel(job.job)
                for other in choice.job.choices:
                    other.finished = True
                messages.append(Failed(job.job, job.attempt, Code.ENGINE_ERROR, "The output could not be decoded."))
        if (prompt := self._ready_batch.progress) is not None:
            job = prompt.rows[0].owner.job.message
            messages.append(Progress(job.job, job.attempt, prompt.covered, prompt.covered + prompt.left))
        return messages

    def _advance(self, choice: Choice, emission: Emission, messages: list[ToGateway]) -> None:
        """One token further: to text, to a delta if there is something to say, to the end if it was the last."""
        row, token = emission.row, emission.token
        job = choice.job.message
        tokens, logprobs = choice.held
        tokens.append(token)
        finish = None
        if token in self._eos and not job.sampling.ignore_eos:
            finish = "stop"
        else:
            choice.text.feed(token)
            if emission.logprobs is not None:
                logprobs.append(self._logprob(token, emission.logprobs))
            finish = "stop" if choice.text.stopped else "length" if row.position >= row.limit else None
        if choice.job.first_at == 0.0:
            choice.job.first_at = self._clock()
        piece = choice.text.take() if finish is None else choice.text.finish(finish)
        if piece is None:
            return
        choice.held = ([], [])
        messages.append(
            Delta(
                job.job,
                job.attempt,
                row.owner.job.choices.index(choice) if job.n > 1 else 0,
                tokens,
                piece.text,
                piece.reasoning,
                piece.calls,
                logprobs,
                piece.finish,
            )
        )
        if finish is not None:
            self._finish(choice, messages)

    def _finish(self, choice: Choice, messages: list[ToGateway]) -> None:
        choice.finished = True
        self._ready_batch.release(choice.row, keep=True)
        running = choice.job
        running.open -= 1
        if running.open == 0:
            job = running.message
            del self._running[job.job]
            messages.append(Done(job.job, job.attempt, self._usage(running)))

    def _usage(self, running: Running) -> Usage:
        now = self._clock()
        started = running.prompt.started_at or running.admitted_at
        return Usage(
            prompt_tokens=running.choices[0].row.prompt_size,
            completion_tokens=sum(choice.row.position for choice in running.choices),
            cached_tokens=running.prompt.cached,
            reasoning_tokens=sum(choice.text.reasoning_tokens for choice in running.choices),
            wait_s=started - running.admitted_at,
            prefill_s=running.first_at - started,
            decode_s=now - running.first_at,
        )

    def _logprob(self, token: int, found: Logprobs) -> TokenLogprob:
        text, raw = self._vocabulary[token]
        top = [(*self._vocabulary[other], value) for other, value in zip(found.top_ids, found.top, strict=True)]
        return TokenLogprob(text, raw, found.own, top)

    @property
    def busy(self) -> bool:
        """See `Engine.busy`."""
        return self._ready_batch.busy

    def gauges(self) -> Gauges:
        """See `Engine.gauges`."""
        batch = self._batch
        return Gauges(
            running=batch.running if batch else 0,
            waiting=batch.waiting if batch else 0,
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            peak_bytes=mx.get_peak_memory(),
            prefix_bytes=self._prefix.held_bytes,
            prefix_hits=self._prefix.hits,
            prefix_lookups=self._prefix.lookups,
        )


def _vocab_size(loaded: Loaded) -> int:
    """Rows of the output head: what logits, and so every id from a request, index."""
    text = loaded.config.get("text_config") or {}
    size = loaded.config.get("vocab_size") or text.get("vocab_size") or len(loaded.tokenizer)
    return int(size)


def _call_id(request_id: str, choice: int, index: int) -> str:
    """The same again when the job is resumed; unguessable is not needed."""
    return "call_" + hashlib.sha256(f"{request_id}/{choice}/{index}".encode()).hexdigest()[:24]
