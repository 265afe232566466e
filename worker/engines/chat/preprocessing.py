"""What a job needs before the device sees it: tokens, checks, sampling with its defaults, a text pipeline per choice.

Touches no MLX: it runs on the preprocessor's thread, while the engine's own thread computes.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import msgspec

from protocol.errors import Code, JobError, context_message
from protocol.messages import (
    ChatPrompt,
    DetokenizeJob,
    EmbedJob,
    GenerateJob,
    ModelJob,
    Prompt,
    Sampling,
    Text,
    TextPrompt,
    TokenizeJob,
    Tokens,
)
from worker.batch.images import PromptImages
from worker.batch.row import RowSampling
from worker.batch.sampling.random import row_key
from worker.engines.aside import Aside
from worker.engines.chat.harmony_prompts import HarmonyPrompter
from worker.engines.chat.prompts import Prompter
from worker.engines.chat.running import PreparedChat
from worker.engines.chat.thinking import ThoughtLimiter
from worker.engines.loading import LoadedModel
from worker.engines.vocabulary import Vocabulary
from worker.grammar.constraint import Constraint
from worker.grammar.grammars import Grammars
from worker.text.channels import ChannelText
from worker.text.harmony import ChoiceText, HarmonyText, open_message
from worker.text.late_stops import LateHarmonyText, LateStopText
from worker.text.markers import NORMAL, Markers, initial_state
from worker.text.tool_calls.calls import calls_from
from worker.text.tool_calls.formats import parser_name
from worker.text.tool_calls.streaming import block_readers

Result = TypeVar("Result")

SHORT_BYTES = 32_768
"""A prompt up to this size is tokenised in milliseconds; a longer one on a thread beside, so that others pass."""
REPLAYED_TOKENS = 4096
"""Delivered tokens that are brought back to text in one piece: some milliseconds."""


class ChatPreprocessor:
    """Prepares jobs for one loaded model."""

    def __init__(self, loaded: LoadedModel, vocabulary: Vocabulary, markers: Markers, grammars: Grammars) -> None:
        self.loaded = loaded
        self.vocabulary = vocabulary
        self.markers = markers
        self.eos = frozenset(loaded.tokenizer.eos_token_ids)
        self.grammars = grammars
        self._thoughts = ThoughtLimiter(loaded.tokenizer, markers, vocabulary.raws)
        self.prompter = self._make_prompter()
        self._aside = Aside()

    def _make_prompter(self) -> Prompter:
        loaded = self.loaded
        make = HarmonyPrompter if self.markers.controls else Prompter
        return make(loaded.tokenizer, vocab_size=loaded.vocab_size, context_length=loaded.context_length)

    def prepare_job(self, job: ModelJob, shown: Sequence[Any] = ()) -> Any:
        """Return the whole answer, or what the engine admits; in pieces if it takes long.

        `shown` is what `_read_prompt` takes. Raises `JobError`.
        """
        pieces = self._pieces(job, shown)
        return pieces if _is_long(job) else next(pieces)

    def _pieces(self, job: ModelJob, shown: Sequence[Any]) -> Iterator[Any]:
        """See `Engine.prepare`; the first piece is the result where the job is not long."""
        match job:
            case DetokenizeJob():
                text = yield from self._run_work(job, lambda: self.prompter.decode_tokens(job.tokens))
                yield Text(job.job, job.attempt, text)
            case TokenizeJob():
                tokens, _ = yield from self._run_work(job, lambda: self._read_prompt(job, shown))
                yield Tokens(job.job, job.attempt, tokens)
            case GenerateJob():
                yield from self._prepare(job, shown)
            case EmbedJob():
                raise JobError(Code.INVALID_REQUEST, "This model generates text; it embeds none.", "model")

    def _run_work(self, job: ModelJob, work: Callable[[], Result]) -> Generator[Future[Any], None, Result]:
        """Return what `work` returns, of a long job beside."""
        return (yield from self._aside.run_aside(job.tenant, work)) if _is_long(job) else work()

    def _read_prompt(
        self, job: GenerateJob | TokenizeJob, _shown: Sequence[Any]
    ) -> tuple[list[int], PromptImages | None]:
        """Return a job's prompt as tokens, with what it shows."""
        if job.images:
            raise JobError(Code.INVALID_REQUEST, "This model reads text; it sees no images.", "images[0]")
        return self.prompter.tokenize_prompt(job.prompt, counted=isinstance(job, TokenizeJob)), None

    def _prepare(self, job: GenerateJob, shown: Sequence[Any]) -> Iterator[Any]:
        if job.adapter and job.adapter not in self.loaded.adapted:
            raise JobError(Code.INVALID_REQUEST, "This worker has no such adapter.", "model")
        self._check_named_ids(job.sampling)
        tokens, images = yield from self._run_work(job, lambda: self._read_prompt(job, shown))
        prompt = tokens or self.prompter.start_tokens()
        room = self.loaded.context_length - len(prompt)
        # What was asked for is a ceiling: an answer ends where the context does.
        if room < (0 if job.max_tokens == 0 else 1):
            raise JobError(
                Code.CONTEXT_LENGTH,
                context_message(
                    self.loaded.context_length,
                    f"the prompt has {len(prompt)} tokens, which leave no room for an answer",
                ),
                "messages" if isinstance(job.prompt, ChatPrompt) else "prompt",
            )
        limit = room if job.max_tokens is None else min(room, job.max_tokens)
        ends = self._ends(job.sampling)
        texts: list[ChoiceText] = []
        for choice in range(job.n):
            texts.append(self._channels(job, choice, prompt))
            if _is_long(job):
                yield None
        if job.delivered:
            for tokens, text in self._delivered(job, texts):
                self._replay(ends, tokens, text)
                if _is_long(job):
                    yield None
        constraints = self._constraints(job, prompt, limit)
        yield PreparedChat(
            job=job,
            prompt=prompt,
            limit=limit,
            texts=texts,
            ends=ends,
            constraints=constraints,
            samplings=[self._sampling(job.sampling, choice, job.logprobs) for choice in range(job.n)],
            echo=self._echo(job.prompt, job.echo, prompt),
            images=images,
            compile_s=constraints[0].compile_s if constraints else 0.0,
        )

    def _check_named_ids(self, sampling: Sampling) -> None:
        """Refuse ids that are named one by one and are none of the model's. Raises `JobError`."""
        for token in sampling.logit_bias:
            self.prompter.check_ids([token], f"logit_bias.{token}")
        for at, token in enumerate(sampling.stop_token_ids):
            self.prompter.check_ids([token], f"stop_token_ids[{at}]")

    def _ends(self, sampling: Sampling) -> frozenset[int]:
        """Return the tokens that end a choice: they have no text."""
        return frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self.eos)

    def _constraints(self, job: GenerateJob, prompt: list[int], limit: int) -> list[Constraint] | None:
        """Return what each choice is held to, brought behind what has been delivered. Raises `JobError`."""
        state = self._initial(job, prompt)
        constraints = self.grammars.make_constraints(job, prompt, state)
        for choice, one in enumerate(constraints or ()):
            one.min_tokens, one.stop_ids = job.sampling.min_tokens, job.sampling.stop_token_ids
            one.said = len(job.delivered[choice]) if job.delivered else 0
        return self._thoughts.limit_rows(job, prompt, state=state, limit=limit, constraints=constraints)

    def _delivered(self, job: GenerateJob, texts: list[ChoiceText]) -> Iterator[tuple[list[int], ChoiceText]]:
        """Return what each choice's client has, piece by piece, with the text that it belongs to."""
        if len(job.delivered) != len(texts):
            raise JobError(Code.INVALID_REQUEST, "A resumed request needs the tokens of each of its choices.")
        for tokens, text in zip(job.delivered, texts, strict=True):
            self.prompter.check_ids(tokens, "delivered")
            for start in range(0, len(tokens), REPLAYED_TOKENS):
                yield tokens[start : start + REPLAYED_TOKENS], text

    def _replay(self, ends: frozenset[int], tokens: list[int], text: ChoiceText) -> None:
        """Bring a choice's text on to where its client has it."""
        for token in tokens:
            if token not in ends:
                text.feed_token(token)
        text.take_pieces()

    def _echo(self, prompt: Prompt, wanted: bool, tokens: list[int]) -> str:
        if not wanted:
            return ""
        return prompt.text if isinstance(prompt, TextPrompt) else self.prompter.decode_tokens(tokens)

    def _channels(self, job: GenerateJob, choice: int, prompt: list[int]) -> ChoiceText:
        """Return the text pipeline of one choice; a plain completion is plain text, markers and all."""
        tokenizer = self.loaded.tokenizer
        chat = isinstance(job.prompt, ChatPrompt)
        offered = job.prompt.tools if isinstance(job.prompt, ChatPrompt) else None
        tools = msgspec.json.decode(offered) if offered else None
        parse = calls_from(tokenizer.tool_parser, tools) if tools and tokenizer.has_tool_calling else None
        make_reader = None
        if tools and parse is not None:
            make_reader = block_readers(tools, parser_name(tokenizer), parallel=job.parallel_tool_calls)
        messages: Callable[..., ChoiceText] = HarmonyText
        states: Callable[..., ChoiceText] = ChannelText
        if job.stop and (least := job.sampling.min_tokens):
            messages, states = partial(LateHarmonyText, min_tokens=least), partial(LateStopText, min_tokens=least)
        if chat and self.markers.controls:
            opened = open_message(self.markers.controls, prompt)
            make = partial(messages, controls=self.markers.controls, opened=opened)
        else:
            markers = self.markers if chat else Markers()
            make = partial(states, markers=markers, initial=self._initial(job, prompt))
        return make(
            detokenizer=self.vocabulary.make_detokenizer(answer=chat and job.grammar is None),
            stop=job.stop,
            parse_calls=parse,
            make_reader=make_reader,
            call_ids=lambda index: _call_id(job.request_id, choice, index),
            parallel_calls=job.parallel_tool_calls,
        )

    def _initial(self, job: GenerateJob, prompt: list[int]) -> str:
        """Return the state of the text that an answer begins in."""
        if not isinstance(job.prompt, ChatPrompt):
            return NORMAL
        return initial_state(self.markers, self.loaded.tokenizer, prompt)

    def _sampling(self, asked: Sampling, choice: int, logprobs: int | None) -> RowSampling:
        """Fill what the request left open from the model's generation_config.json, else as OpenAI does."""
        own = self.loaded.generation
        if own.get("do_sample") is False:
            own = {**own, "temperature": 0.0}

        def value(given: float | None, name: str, otherwise: float) -> float:
            found = own.get(name) if given is None else given
            return otherwise if found is None else float(found)

        return RowSampling(
            key=row_key(asked.seed, choice),
            temperature=value(asked.temperature, "temperature", 1.0),
            top_p=value(asked.top_p, "top_p", 1.0),
            top_k=int(value(asked.top_k, "top_k", 0)),
            min_p=value(asked.min_p, "min_p", 0.0),
            repetition_penalty=value(asked.repetition_penalty, "repetition_penalty", 1.0),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=asked.logit_bias,
            logprobs=logprobs,
            min_tokens=asked.min_tokens,
            ends=self._ends(asked) if asked.min_tokens else frozenset(),
        )


def _is_long(job: ModelJob) -> bool:
    """Return whether its preparation takes more than some milliseconds."""
    match job:
        case DetokenizeJob():
            return len(job.tokens) > SHORT_BYTES
        case GenerateJob() if sum(map(len, job.delivered)) > REPLAYED_TOKENS:
            return True
        case GenerateJob() | TokenizeJob():
            match job.prompt:
                case ChatPrompt(messages=messages, tools=tools):
                    return len(messages) + len(tools or b"") > SHORT_BYTES
                case TextPrompt(text=text):
                    return len(text) > SHORT_BYTES
    return False


def _call_id(request_id: str, choice: int, index: int) -> str:
    """Return an id that is the same again when the job is resumed; it need not be unguessable."""
    return "call_" + hashlib.sha256(f"{request_id}/{choice}/{index}".encode()).hexdigest()[:24]
