"""The chat engine: an mlx-lm model behind continuous batching. Jobs in, deltas out.

Composes what others own: the prompter (text to tokens), the batch (tokens to tokens), the channels (tokens to text).
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from protocol.errors import Code, JobError
from protocol.messages import (
    Accepted,
    Delta,
    Done,
    Failed,
    GenerateJob,
    ModelJob,
    Progress,
    Ready,
    ToGateway,
    TokenLogprob,
    Usage,
)
from worker.batch.batch import Batch
from worker.batch.images import Placeholder
from worker.batch.prefix import PrefixCache
from worker.batch.prefix_store import PrefixStore
from worker.batch.prompt import Prompt as BatchPrompt
from worker.batch.row import Emission, Logprobs, Row
from worker.batch.sampling.prompt_logprobs import PromptLogprobs
from worker.batch.speculation.policy import SpeculationPolicy
from worker.batch.warmup import warm
from worker.config import WorkerConfig
from worker.engines.base import Gauges
from worker.engines.chat.disk_cache import open_disk_cache
from worker.engines.chat.draft_model import load_draft
from worker.engines.chat.generic_tools import adopt_generic_tools
from worker.engines.chat.preprocessing import ChatPreprocessor
from worker.engines.chat.running import Running, RunningChoice
from worker.engines.loading import LoadedModel, family, load
from worker.engines.output_formats import read_markers
from worker.engines.tokenizer_info import describe_tokenizer
from worker.engines.vocabulary import Vocabulary
from worker.grammar.grammars import Grammars

log = logging.getLogger("worker")

LARGEST_CHUNK = 1024
"""Prompt tokens in one forward pass when nobody is decoding; also the limit of the adaptive chunk."""
BUFFER_CACHE_BYTES = 1 << 30
"""What MLX may keep of freed buffers. Its own default is nearly all memory, per process."""
DRAFT_SHARE = 8
"""A draft model's prefixes may take so much less than the model's own."""
BROKEN = "The model's output is not a finite number: its weights can't go on from here."
LARGEST_GROUP = 8
"""Choices of one job: it may enter an idle batch even where they are more than its rows."""


class ChatEngine:
    """See `worker.engines.base.Engine`."""

    def __init__(self, config: WorkerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self.running: dict[int, Running] = {}
        self.prefix_store: PrefixStore | None = None
        self.loaded: LoadedModel
        self._batch: Batch | None = None
        self.speculation: SpeculationPolicy | None = None
        self._draft_bytes = 0

    # -- life ----------------------------------------------------------------

    def load(self) -> None:
        """Load the model; see `Engine.load`."""
        mx.set_cache_limit(BUFFER_CACHE_BYTES)
        self.loaded = loaded = self._load()
        adopt_generic_tools(loaded.tokenizer)
        self.vocabulary = Vocabulary(loaded.tokenizer)
        self.markers = read_markers(loaded.tokenizer)
        self.grammars = Grammars(
            tokenizer=loaded.tokenizer,
            raws=self.vocabulary.raws,
            markers=self.markers,
            size=loaded.vocab_size,
            slots=self._config.max_concurrency + LARGEST_GROUP,
        )
        self.preprocessor = self._make_preprocessor()
        self.speculation = self._load_draft()
        prefix = PrefixCache(self._config.prefix_cache_bytes)
        bits = self._config.prefix_kv_bits
        self.prefix_store = PrefixStore(loaded.model, prefix, open_disk_cache(self._config, loaded), bits=bits)
        self._batch = Batch(
            model=loaded.model,
            vocab_size=loaded.vocab_size,
            weights_bytes=loaded.weights_bytes,
            max_rows=self._config.max_concurrency,
            prefix_store=self.prefix_store,
            masks=self.grammars.masks,
            largest_chunk=self._config.prefill_chunk or LARGEST_CHUNK,
            encode_image=self._image_encoder(),
            adapted={name: one.model for name, one in loaded.adapted.items()},
            speculation=self.speculation,
        )
        self._batch.measure_cache()

    def _load(self) -> LoadedModel:
        return load(self._config)

    def _load_draft(self) -> SpeculationPolicy | None:
        config = self._config
        if config.draft_model is None:
            return None
        draft = load_draft(config.draft_model, config, self.loaded)
        self._draft_bytes = draft.weights_bytes
        return SpeculationPolicy(
            model=draft.model,
            own_vocab_size=draft.vocab_size,
            vocab_size=self.loaded.vocab_size,
            count=config.draft_tokens,
            prefix=PrefixCache(config.prefix_cache_bytes // DRAFT_SHARE),
        )

    def _make_preprocessor(self) -> ChatPreprocessor:
        return ChatPreprocessor(self.loaded, self.vocabulary, self.markers, self.grammars)

    def _image_encoder(self) -> Callable[[Placeholder], None] | None:
        """Return what encodes an image, where the model sees any."""
        return None

    def warm(self) -> None:
        """See `Engine.warm`."""
        warm(self.batch, self.loaded.adapted)

    def describe(self) -> Ready:
        """See `Engine.describe`."""
        loaded = self.loaded
        name = family(str(loaded.config.get("model_type", "")))
        quantised = loaded.quantization != "none"
        capabilities = ["chat"] if loaded.tokenizer.has_chat_template else []
        capabilities += ["completions", "tokenize"]
        capabilities += ["structured_outputs"] if self.grammars.available else []
        prompter = self.preprocessor.prompter
        capabilities += ["tools"] if self.markers.tool_start and prompter.calls_tools else []
        capabilities += ["reasoning"] if self.markers.think_start else []
        capabilities += prompter.list_capabilities()
        return Ready(
            context_length=loaded.context_length,
            vocab_size=loaded.vocab_size,
            family=name,
            description=f"{name.capitalize()} language model running on MLX",
            tags=["local", "chat", *(["quantized"] if quantised else [])],
            capabilities=capabilities,
            weights_bytes=loaded.weights_bytes + self._draft_bytes,
            load_s=0.0,
            warmup_enabled=False,
            warmup_s=0.0,
            device="cpu" if mx.default_device() == mx.Device(mx.cpu) else "gpu",
            quantization=loaded.quantization,
            template_names=sorted(prompter.traits.variables),
            tokenizer_info=describe_tokenizer(loaded.tokenizer, context_length=loaded.context_length),
        )

    @property
    def batch(self) -> Batch:
        """The rows. Raises `RuntimeError` before the model is loaded."""
        if self._batch is None:
            raise RuntimeError("the engine was used before it was loaded")
        return self._batch

    def prepare(self, job: ModelJob, buffers: Sequence[bytes] = ()) -> Any:
        """See `Engine.prepare`."""
        return self.preprocessor.prepare_job(job, buffers)

    def compile_job(self, job: GenerateJob, ended: Callable[[JobError | None], None]) -> bool:
        """Return whether the job has to wait until what its answers are held to is compiled; see `Compiler`."""
        return self.grammars.compile_job(job, ended)

    def drop_job(self, job: GenerateJob) -> None:
        """See `Compiler`."""
        self.grammars.drop_job(job)

    # -- jobs ----------------------------------------------------------------

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        """See `Engine.admit`."""
        job: GenerateJob = prepared.job
        # What was sent before came with the prompt's text.
        echo = "" if job.delivered else prepared.echo
        running = Running(job, self._clock(), ends=prepared.ends, echo=echo, compile_s=prepared.compile_s)
        self.running[job.job] = running
        for index, text in enumerate(prepared.texts):
            choice = RunningChoice(running, text, index)
            choice.row = Row(
                owner=choice,
                tenant=self._prefix_owner(job),
                prompt=prepared.prompt,
                delivered=job.delivered[index] if job.delivered else [],
                limit=prepared.limit,
                sampling=prepared.samplings[index],
                images=prepared.images,
                constraint=prepared.constraints[index] if prepared.constraints else None,
                adapter=job.adapter,
            )
            # Its client has all of it: only its tokens still count.
            choice.finished = bool(choice.row.position) and self._finish_of(choice, choice.row.tokens[-1]) is not None
            choice.finished = choice.finished or (prepared.limit == 0 and bool(job.delivered))
            running.choices.append(choice)
        running.open = sum(not choice.finished for choice in running.choices)
        told = prepared.prompt if job.tell_prompt else []
        messages: list[ToGateway] = [Accepted(job.job, job.attempt, len(prepared.prompt), told)]
        if running.open == 0:
            return [*messages, self._done(running)]
        if not running.echo or job.logprobs is None:
            self._tell_prompt(running, [], messages)
        if running.open:
            self._queue(running)
        return messages

    def _tell_prompt(self, running: Running, scores: list[Logprobs], messages: list[ToGateway]) -> None:
        """Tell what comes before anything generated, which may be all that was asked for."""
        job = running.message
        logprobs = [self._logprob(job, *pair) for pair in zip(running.choices[0].row.tokens, scores, strict=False)]
        for choice in running.choices:
            finish = "length" if choice.row.limit == 0 else None
            if running.echo or finish:
                messages.append(
                    Delta(job.job, job.attempt, choice.index, [], running.echo, logprobs=logprobs, finish=finish)
                )
            if finish:
                self._finish(choice, messages)

    def _prefix_owner(self, job: GenerateJob) -> str:
        """Whose prefixes a job may use: its tenant's, of the very adapter, whatever that was called."""
        return f"{job.tenant}\0{self.loaded.adapted[job.adapter].digest}" if job.adapter else job.tenant

    def _queue(self, running: Running) -> None:
        rows = [choice.row for choice in running.choices if not choice.finished]
        # Choices share a prompt, and so one prefill, unless they are resumed behind different tokens.
        shared = [rows] if not running.message.delivered else [[row] for row in rows]
        asked = running.message.logprobs
        for group in shared:
            scores = PromptLogprobs(asked, self.loaded.vocab_size) if running.echo and asked is not None else None
            running.prompt = BatchPrompt(group, scores, owner=running)
            self.batch.add_prompt(running.prompt)

    def cancel(self, job: int) -> bool:
        """See `Engine.cancel`."""
        running = self.running.pop(job, None)
        if running is None:
            return False
        for choice in running.choices:
            if not choice.finished:
                self.batch.release_row(choice.row, keep=False)
        return True

    def step(self) -> Sequence[ToGateway]:
        """See `Engine.step`."""
        messages: list[ToGateway] = []
        emissions = self.batch.step()
        for scored in self.batch.take_scored():
            if scored.scores is not None:
                self._tell_prompt(scored.owner, scored.scores.found, messages)
        for emission in emissions:
            choice: RunningChoice = emission.row.owner
            if choice.finished:
                continue
            try:
                self._advance(choice, emission, messages)
            except JobError as error:
                messages.append(self._fail(choice.job, error))
            except Exception:
                # The text pipeline belongs to this row alone: its failure must not end the others.
                log.exception("the text of job %d failed", choice.job.message.job)
                undecoded = JobError(Code.ENGINE_ERROR, "The output could not be decoded.")
                messages.append(self._fail(choice.job, undecoded))
        if (prompt := self.batch.progress) is not None:
            job = prompt.owner.message
            messages.append(Progress(job.job, job.attempt, prompt.covered, prompt.covered + prompt.left))
        return messages

    def spent(self, job: int) -> Usage | None:
        """See `Counting.spent`."""
        running = self.running.get(job)
        return None if running is None else running.usage(self._clock())

    def _fail(self, running: Running, error: JobError) -> Failed:
        job, usage = running.message, running.usage(self._clock())
        self.cancel(job.job)
        for choice in running.choices:
            choice.finished = True
        return Failed(job.job, job.attempt, error.code, error.message, error.param, usage=usage)

    def _advance(self, choice: RunningChoice, emission: Emission, messages: list[ToGateway]) -> None:
        """One token further: to text, to a delta if there is something to say, to the end if it was the last."""
        row, token = emission.row, emission.token
        job = choice.job.message
        rule = row.constraint
        if rule is not None and rule.failed is not None:
            raise JobError(Code.INVALID_REQUEST, rule.failed, rule.spec.param)
        if emission.broken:
            raise JobError(Code.NOT_FINITE, BROKEN)
        tokens, logprobs = choice.held
        tokens.append(token)
        if token not in choice.job.ends:
            choice.text.feed_token(token)
            if emission.logprobs is not None:
                logprobs.append(self._logprob(job, token, emission.logprobs))
        finish = self._finish_of(choice, token)
        if choice.job.first_at == 0.0:
            choice.job.first_at = self._clock()
        piece = choice.text.take_pieces() if finish is None else choice.text.finish_text(finish)
        if piece is None:
            return
        choice.held = ([], [])
        messages.append(
            Delta(
                job.job,
                job.attempt,
                choice.index,
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

    def _finish_of(self, choice: RunningChoice, last: int) -> str | None:
        """Return how a choice ends behind its last token; None if it goes on."""
        rule = choice.row.constraint
        if choice.text.stopped or last in choice.job.ends or (rule and rule.finished):
            return "stop"
        return "length" if choice.row.position >= choice.row.limit else None

    def _finish(self, choice: RunningChoice, messages: list[ToGateway]) -> None:
        choice.finished = True
        self.batch.release_row(choice.row, keep=choice.row.position > 0)
        running = choice.job
        running.open -= 1
        if running.open == 0:
            messages.append(self._done(running))

    def _done(self, running: Running) -> Done:
        job = running.message
        del self.running[job.job]
        return Done(job.job, job.attempt, running.usage(self._clock()))

    def _logprob(self, job: GenerateJob, token: int, found: Logprobs) -> TokenLogprob:
        text, raw = self.vocabulary[token]
        top = [(*self.vocabulary[other], value) for other, value in zip(found.top_ids, found.top, strict=True)]
        if job.number_tokens:
            # As vLLM does it: several tokens may have the same text.
            text = f"token_id:{token}"
            numbers = (f"token_id:{other}" for other in found.top_ids)
            top = [(number, raw, value) for number, (_, raw, value) in zip(numbers, top, strict=True)]
        return TokenLogprob(text, raw, found.own, top)

    @property
    def busy(self) -> bool:
        """See `Engine.busy`."""
        return self.batch.busy

    def forget(self) -> None:
        """Drop every prefix that is kept, in memory and on disk."""
        if self.prefix_store is not None:
            self.prefix_store.forget_all()
        if self.speculation is not None:
            self.speculation.clear_caches()

    def close(self, timeout_s: float) -> None:
        """Finish what is being written to disk, if that takes no longer, and end the processes of grammars."""
        if self.prefix_store is not None:
            self.prefix_store.close(timeout_s)
        self.grammars.close()

    def gauges(self) -> Gauges:
        """See `Engine.gauges`."""
        batch, prefix_store = self._batch, self.prefix_store
        return Gauges(
            running=batch.running if batch else 0,
            waiting=batch.waiting if batch else 0,
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            peak_bytes=mx.get_peak_memory(),
            prefix_bytes=prefix_store.held_bytes if prefix_store else 0,
            draft_proposed=self.speculation.proposed if self.speculation else 0,
            draft_accepted=self.speculation.accepted if self.speculation else 0,
            prefix_hits=prefix_store.hits if prefix_store else 0,
            prefix_lookups=prefix_store.lookups if prefix_store else 0,
            prefix_disk_bytes=prefix_store.disk_bytes if prefix_store else 0,
            prefix_disk_hits=prefix_store.disk_hits if prefix_store else 0,
        )
