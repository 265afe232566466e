"""An engine without a model: deterministic text, scriptable faults. For load, for chaos, for a gateway on its own.

Its answer to a prompt is a sequence of tokens that depends on the prompt alone, one per row and step. Faults are
scripted in the prompt itself (`fake: die@5`), so that each request of a test brings its own; `PROGRAM` lists them.
"""

import hashlib
import math
import os
import re
import signal
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from protocol.errors import Code, JobError, context_message
from protocol.messages import (
    Accepted,
    ChatPrompt,
    Delta,
    DetokenizeJob,
    Done,
    EmbedJob,
    Failed,
    GenerateJob,
    Image,
    Kind,
    ModelJob,
    Prompt,
    Ready,
    Text,
    TextPrompt,
    ToGateway,
    TokenizeJob,
    TokenPrompt,
    Tokens,
    Usage,
    Vectors,
)
from worker.config import WorkerConfig
from worker.engines.base import Gauges

PROGRAM = re.compile(r"fake:((?:\s*[a-z]+@[0-9.]+)+)")
"""Instructions inside a prompt: `die@K` SIGKILL before token K, `abort@K` SIGABRT, `raise@K` an exception in `step`,
`exhaust@K` the same for want of memory, `stall@K` an endless loop, `oom@0` refusal for memory, `slow@S` S seconds a
step, `tokens@N` stop after N tokens, `prefill@S` S seconds before the first token, in chunks between others' steps.
In the model path: `load@S` and `warm@S` work for S seconds before it is ready, `idle@S` does nothing for as long while
it loads, `exhaust@0` runs out of memory in loading."""

CONTEXT_TOKENS = 131_072
IMAGE_TOKENS = 16
"""What each image adds to its prompt."""
VOCAB_SIZE = 50_000
DIMENSIONS = 8
PREFILL_CHUNK_S = 0.05
WORK_S = 0.01
WORDS = ("alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel", "india", "julia", "kilo", "lima")


class _Row(msgspec.Struct):
    job: GenerateJob
    choice: int
    seed: int
    left: int
    position: int
    prefill_s: float


class _Prepared(msgspec.Struct, frozen=True):
    job: GenerateJob
    prompt_tokens: int
    seed: int
    program: dict[str, float]


class FakeEngine:
    """Generates `WORDS` in an order given by the prompt, at whatever speed the host manages."""

    def __init__(self, config: WorkerConfig) -> None:
        self._context = config.context_length or CONTEXT_TOKENS
        self._start = program_of(TextPrompt(config.model_path))
        self._kind = config.kind
        self._rows: list[_Row] = []
        self._programs: dict[int, dict[str, float]] = {}
        self._usage: dict[int, list[int]] = {}

    def load(self) -> None:
        """Nothing to load, unless the model path says how long that takes."""
        _work(self._start.get("load", 0.0))
        self._misbehave(self._start, 0)
        time.sleep(self._start.get("idle", 0.0))

    def warm(self) -> None:
        """Nothing to warm, unless the model path says how long that takes."""
        _work(self._start.get("warm", 0.0))

    def describe(self) -> Ready:
        """Describe a model of no family."""
        return Ready(
            context_length=self._context,
            vocab_size=VOCAB_SIZE,
            family="fake",
            description="Deterministic words without a model",
            tags=["local", self._kind.value, "fake"],
            capabilities=["chat", "completions", "tokenize", "embeddings", "embed_image"],
            weights_bytes=0,
            load_s=0.0,
            warmup_enabled=False,
            warmup_s=0.0,
            dimensions=DIMENSIONS,
            revision="fake",
            device="cpu",
        )

    def prepare(self, job: ModelJob, buffers: Sequence[bytes] = ()) -> Any:
        """One token a word, and `IMAGE_TOKENS` an image; faults are read from the text."""
        match job:
            case DetokenizeJob():
                return Text(job.job, job.attempt, " ".join(WORDS[token % len(WORDS)] for token in job.tokens))
            case TokenizeJob():
                return Tokens(job.job, job.attempt, tokens_of(job.prompt) + self._see(job, buffers))
            case GenerateJob():
                return self._prepare(job, self._see(job, buffers))
            case EmbedJob():
                return _vectors(job, buffers)

    def _see(self, job: GenerateJob | TokenizeJob, buffers: Sequence[bytes]) -> list[int]:
        """Return the tokens of a job's images, the same for the same files.

        Raises `ValueError` for the gateway's mistakes.
        """
        if job.images and self._kind is not Kind.VISION:
            raise JobError(Code.INVALID_REQUEST, "This model takes no images.", "images[0]")
        if isinstance(job.prompt, ChatPrompt) and _places(job.prompt) != len(job.images):
            raise ValueError("a prompt has another number of places for images than its job has images")
        return [token for image in job.images for token in _look(image, buffers[image.buffer])]

    def _prepare(self, job: GenerateJob, seen: list[int]) -> _Prepared:
        # What words in a fixed order can't honour is refused, as a real engine would refuse it.
        for param, asked in (
            ("logprobs", job.logprobs is not None),
            ("echo", job.echo),
            ("stop", job.stop),
            ("response_format", job.grammar is not None),
            ("tool_choice", job.tool_choice == "required" or job.tool_names),
        ):
            if asked:
                raise JobError(Code.UNSUPPORTED, f"The fake engine has no {param!r}.", param)
        tokens = tokens_of(job.prompt) + seen
        if len(tokens) >= self._context:
            excess = f"the prompt has {len(tokens)} tokens, which leave no room for an answer"
            raise JobError(Code.CONTEXT_LENGTH, context_message(self._context, excess), "messages")
        return _Prepared(job, len(tokens), sum(tokens), program_of(job.prompt))

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        """Every choice is a row, at once."""
        job: GenerateJob = prepared.job
        if "oom" in prepared.program:
            return [Failed(job.job, job.attempt, Code.OUT_OF_MEMORY, "The request does not fit this model's memory.")]
        limit = min(job.max_tokens or 256, self._context - prepared.prompt_tokens)
        limit = min(limit, int(prepared.program.get("tokens", limit)))
        lengths = [len(tokens) for tokens in job.delivered] or [0] * job.n
        rows = [
            _Row(job, choice, prepared.seed + choice, limit - length, length, prepared.program.get("prefill", 0.0))
            for choice, length in enumerate(lengths)
            if length < limit
        ]
        accepted = Accepted(job.job, job.attempt, prepared.prompt_tokens)
        if not rows:
            return [accepted, Done(job.job, job.attempt, _usage(prepared.prompt_tokens, sum(lengths)))]
        for row in rows[1:]:
            row.prefill_s = 0.0
        self._rows += rows
        self._programs[job.job] = prepared.program
        self._usage[job.job] = [prepared.prompt_tokens, sum(lengths), len(rows)]
        return [accepted]

    def cancel(self, job: int) -> bool:
        """Rows leave at once."""
        self._rows = [row for row in self._rows if row.job.job != job]
        self._programs.pop(job, None)
        return self._usage.pop(job, None) is not None

    def spent(self, job: int) -> Usage | None:
        """All of a prompt counts as soon as it is taken."""
        usage = self._usage.get(job)
        return None if usage is None else _usage(*usage[:2])

    def step(self) -> Sequence[ToGateway]:
        """One word for every row whose prompt is done, and one chunk of the first prompt that is not."""
        messages: list[ToGateway] = []
        slow_s = 0.0
        unread = {row.job.job: row for row in reversed(self._rows) if row.prefill_s > 0}
        for row in self._rows:
            if row.job.job in unread:
                continue
            program = self._programs[row.job.job]
            if program:
                self._misbehave(program, row.position)
                slow_s = max(slow_s, program.get("slow", 0.0))
            messages.append(self._advance(row))
        for row in [*unread.values()][-1:]:
            chunk_s = min(PREFILL_CHUNK_S, row.prefill_s)
            row.prefill_s -= chunk_s
            slow_s += chunk_s
        if slow_s:
            time.sleep(slow_s)
        if any(row.left <= 0 for row in self._rows):
            messages.extend(self._retire())
        return messages

    def _advance(self, row: _Row) -> Delta:
        token = (row.seed + row.position * 7) % VOCAB_SIZE
        row.position += 1
        row.left -= 1
        self._usage[row.job.job][1] += 1
        text = WORDS[token % len(WORDS)] + " "
        finish = None
        if row.left <= 0:
            finish = "stop" if "tokens" in self._programs[row.job.job] else "length"
        return Delta(row.job.job, row.job.attempt, row.choice, [token], text, finish=finish)

    def _retire(self) -> list[ToGateway]:
        done: list[ToGateway] = []
        for row in self._rows:
            if row.left > 0:
                continue
            usage = self._usage[row.job.job]
            usage[2] -= 1
            if usage[2] == 0:
                del self._usage[row.job.job], self._programs[row.job.job]
                done.append(Done(row.job.job, row.job.attempt, _usage(*usage[:2])))
        self._rows = [row for row in self._rows if row.left > 0]
        return done

    @staticmethod
    def _misbehave(program: dict[str, float], position: int) -> None:
        if program.get("die") == position:
            os.kill(os.getpid(), signal.SIGKILL)
        if program.get("abort") == position:
            os.abort()
        if program.get("raise") == position:
            raise RuntimeError("[METAL] Command buffer execution failed: scripted fault")
        if program.get("exhaust") == position:
            raise RuntimeError("[metal::malloc] scripted fault")
        while program.get("stall") == position:
            time.sleep(3600)

    @property
    def busy(self) -> bool:
        """Whether any row is left."""
        return bool(self._rows)

    def gauges(self) -> Gauges:
        """Rows."""
        return Gauges(running=len(self._rows))


def _work(seconds: float) -> None:
    """Take so long, and a tenth of the processor."""
    began = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        while time.monotonic() - now < WORK_S:
            pass
        time.sleep(9 * WORK_S)


def _usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens, completion_tokens, stepped_tokens=prompt_tokens + completion_tokens)


def _vectors(job: EmbedJob, buffers: Sequence[bytes]) -> Vectors:
    """Return vectors that depend on each input alone: the sines of its sum of bytes (or ids), times 1, 2 and so on."""
    for param, value, own in (("backend_preference", job.backend, "mlx"), ("device_preference", job.device, "cpu")):
        if value not in (None, own):
            raise JobError(Code.UNSUPPORTED, f"The fake engine computes on no {value!r}.", param)
    for param, asked in (("input_type", job.input_type), ("prompt_name", job.prompt_name)):
        if asked is not None:
            raise JobError(Code.UNSUPPORTED, f"The fake engine has no {param!r}.", param)
    inputs = [tokens_of(TextPrompt(text)) for text in job.texts] + job.tokens
    if job.images:
        seen = [_look(image, buffers[image.buffer]) for image in job.images]
        inputs = [[*tokens, *more] for tokens, more in zip(inputs or [[]] * len(seen), seen, strict=True)]
    inputs = [tokens[: job.max_tokens_per_text] for tokens in inputs]
    length = job.dimensions or DIMENSIONS
    rows = [[math.sin(sum(tokens) * at) for at in range(1, length + 1)] for tokens in inputs]
    if job.normalize:
        rows = [[value / (math.hypot(*row) or 1.0) for value in row] for row in rows]
    data = array("f", (value for row in rows for value in row))
    if sys.byteorder == "big":
        data.byteswap()
    return Vectors(
        job.job, job.attempt, length, [len(tokens) for tokens in inputs], data.tobytes(), batches=1, device="cpu"
    )


def _places(prompt: ChatPrompt) -> int:
    """Return how many images the messages have a place for."""
    contents = [message["content"] for message in msgspec.json.decode(prompt.messages)]
    return sum(part["type"] == "image" for parts in contents if isinstance(parts, list) for part in parts)


def _look(image: Image, data: bytes) -> bytes:
    digest = hashlib.sha256(data).digest()
    if digest != image.digest:
        raise ValueError("an image is not the one that its job says")
    return digest[:IMAGE_TOKENS]


def program_of(prompt: Prompt) -> dict[str, float]:
    """Return the instructions in a prompt, by verb."""
    text = prompt.messages.decode() if isinstance(prompt, ChatPrompt) else ""
    if isinstance(prompt, TextPrompt):
        text = prompt.text
    found = PROGRAM.search(text)
    program = {}
    for step in found.group(1).split() if found else ():
        verb, _, value = step.partition("@")
        program[verb] = float(value)
    return program


def tokens_of(prompt: Prompt) -> list[int]:
    """One a word."""
    match prompt:
        case TokenPrompt():
            return prompt.tokens
        case TextPrompt():
            text = prompt.text
        case ChatPrompt():
            text = prompt.messages.decode()
    return [sum(word.encode()) for word in text.split()]
