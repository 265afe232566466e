"""Everything that an engine needs to hold answers to grammars: checks, compiles, and a constraint for each row.

Two processes, started when the first grammar comes: one proves that a grammar compiles within bounds, and is killed if
it does not; the other one serves the rows and sees proved grammars only.
"""

import copy
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, GenerateJob
from worker.grammar import plans
from worker.grammar.constraint import Constraint, Format, Phase, Plan
from worker.grammar.formats import format_of
from worker.grammar.guard import Guard
from worker.grammar.masks import Masks
from worker.grammar.plans import Dialect
from worker.grammar.process import GrammarProcess, ProcessLostError
from worker.grammar.sheet import Spelling
from worker.grammar.tools import ToolCase, callable_tools
from worker.grammar.wire import Vocabulary
from worker.text.calls import parser_name
from worker.text.markers import NORMAL, REASONING, TOOL, Markers

log = logging.getLogger("worker")

COMPILE_S = 5.0
PROVER_NICE = 10
"""Whoever waits for a compiler has time; running streams have not."""
REMEMBERED = 64
"""Jobs whose plan is kept, so that the same question is answered without compiling again; bad ones as well."""
UNSUPPORTED = "This model's tokenizer can't be held to a grammar."
OUTPUT_FORMAT = "This model's output format can't be held to a grammar."


class Grammars:
    """For one model. `compile` is for one thread (it may take seconds), `masks` for the engine's."""

    def __init__(
        self, *, tokenizer: Any, raws: Sequence[bytes] | None, markers: Markers, size: int, slots: int
    ) -> None:
        """`raws` are the bytes of each token id, `size` the width of the logits, `slots` the most rows at once."""
        self._tokenizer = tokenizer
        self._raws = raws or ()
        self._markers = markers
        self._eos = frozenset(tokenizer.eos_token_ids)
        self._slots = slots
        self._size = max(size, len(tokenizer.get_vocab()))
        self._lock = threading.Lock()
        self._prover: GrammarProcess | None = None
        self._server: GrammarProcess | None = None
        self._format: Format | None = None
        self._spelling: Spelling | None = None
        self._plans: OrderedDict[bytes, Plan | JobError | None] = OrderedDict()
        self.masks = Masks(self._serving, condemn=self._condemn, slots=slots, size=self._size, eos=self._eos)
        states = {NORMAL, REASONING, TOOL}
        self._refusal = UNSUPPORTED if raws is None or not getattr(tokenizer, "is_fast", False) else ""
        if markers.initial != NORMAL or not markers.transitions.keys() <= states:
            self._refusal = self._refusal or OUTPUT_FORMAT

    @property
    def available(self) -> bool:
        """Whether answers of this model can be held to a grammar."""
        return not self._refusal

    def pending(self, job: GenerateJob) -> bool:
        """Whether `compile` has work to do for a job. Cheap, and for any thread."""
        return plans.wanted(job) and _key(job) not in self._plans

    def compile(self, job: GenerateJob) -> Plan | None:
        """What the job's answers are held to. Raises `JobError`."""
        if not plans.wanted(job):
            return None
        key = _key(job)
        found = self._plans.get(key)
        if found is None:
            try:
                found = self._work_out(job)
            except JobError as error:
                if error.code is Code.ENGINE_ERROR:
                    raise
                found = error
            with self._lock:
                self._plans[key] = found
                if len(self._plans) > REMEMBERED:
                    self._plans.popitem(last=False)
        if isinstance(found, JobError):
            raise JobError(found.code, found.message, found.param)
        return found

    def constraints(self, job: GenerateJob, prompt: Sequence[int], state: str) -> list[Constraint] | None:
        """One for each choice, brought behind what has been delivered. Raises `JobError`.

        `state` is the one of the text that the prompt leaves the answer in.
        """
        plan = self.compile(job)
        if plan is None or self._format is None:
            return None
        phase = Phase.WAITING if plan.trigger is not None else self._first_phase(job, prompt, state)
        made = []
        for choice in range(job.n):
            constraint = Constraint(plan, self._format, phase, ignore_eos=job.sampling.ignore_eos)
            for token in job.delivered[choice] if job.delivered else ():
                constraint.advance(token)
            made.append(constraint)
        return made

    def _first_phase(self, job: GenerateJob, prompt: Sequence[int], state: str) -> Phase:
        if state == REASONING:
            return Phase.THINKING
        if self._format is None or self._format.think_start is None or not isinstance(job.prompt, ChatPrompt):
            return Phase.FOLLOWING
        if job.prompt.template.get("enable_thinking") is False or self._thought(prompt):
            return Phase.FOLLOWING
        return Phase.OPENING

    def _thought(self, prompt: Sequence[int]) -> bool:
        """Whether the template has opened and closed a think block for this answer: its way to turn thinking off."""
        start = self._tokenizer.rfind_think_start(prompt)
        end = self._tokenizer.rfind_think_end(prompt, start=start) if start >= 0 else -1
        return end >= 0 and not any(token in self._eos for token in prompt[end:])

    def _condemn(self, plan: Plan) -> None:
        """Refuse from now on what hung, or took too long, while it was followed."""
        with self._lock:
            for key, found in self._plans.items():
                if found is plan:
                    message = f"'{plan.param}' can't be enforced: it takes too much time to follow."
                    self._plans[key] = JobError(Code.INVALID_REQUEST, message, plan.param)

    # -- compiling

    def _work_out(self, job: GenerateJob) -> Plan | None:
        if self._refusal:
            param = job.grammar.param if job.grammar is not None else "tool_choice"
            raise JobError(Code.UNSUPPORTED, self._refusal, param)
        dialect = self._dialect(chat=isinstance(job.prompt, ChatPrompt))
        tools = callable_tools(job)
        plan = plans.plan(job, tools, dialect)
        if plan is None:
            return None
        error = self._prove(plan.grammar)
        if error and tools:
            tools = [self._usable(tool) for tool in tools]
            plan = plans.plan(job, tools, dialect) or plan
            error = self._prove(plan.grammar)
        if error:
            raise JobError(Code.INVALID_REQUEST, f"'{plan.param}' can't be enforced: {error}", plan.param)
        try:
            self._serving().compile(plan.grammar, COMPILE_S)
        except ProcessLostError:
            log.warning("a proved grammar was too much for the process that follows it")
        return plan

    def _usable(self, tool: ToolCase) -> ToolCase:
        """The tool, with a schema that can be enforced: any object, where it was not promised to be strict."""
        error = self._prove(plans.alone(tool.schema))
        if error and tool.strict:
            raise JobError(Code.INVALID_REQUEST, f"'{tool.param}' can't be enforced: {error}", tool.param)
        return tool.loosened() if error else tool

    def _prove(self, grammar: str) -> str:
        """What is wrong with a grammar, or nothing."""
        try:
            if self._prover is None:
                self._prover = self._start(nice=PROVER_NICE)
            return " ".join(self._prover.compile(grammar, COMPILE_S).split())
        except ProcessLostError:
            self._prover = None
            return f"compiling it takes more than {COMPILE_S:g} seconds, or too much memory."

    def _serving(self, fresh: bool = False) -> GrammarProcess:
        """The process that computes masks; with `fresh`, another one."""
        with self._lock:
            if self._server is not None and fresh:
                self._server.kill()
                self._server = None
            if self._server is None:
                self._server = self._start()
            return self._server

    def _start(self, *, nice: int = 0) -> GrammarProcess:
        added = list(self._tokenizer.added_tokens_decoder)
        vocabulary = Vocabulary(_tokenizer_file(self._tokenizer), self._size, sorted(self._eos), added)
        try:
            process = GrammarProcess(vocabulary, slots=self._slots, nice=nice)
        except (OSError, ProcessLostError) as error:
            raise JobError(Code.ENGINE_ERROR, f"no grammar process could be started: {error!r}") from error
        if process.error:
            self._refusal = UNSUPPORTED
            log.warning("no grammars with this tokenizer: %s", process.error)
            raise JobError(Code.UNSUPPORTED, UNSUPPORTED)
        return process

    # -- the model's format

    def _dialect(self, *, chat: bool) -> Dialect:
        spell = self._spell()
        markers = self._markers if chat else Markers()
        form = format_of(parser_name(self._tokenizer), spell) if markers.tool_start else None
        return Dialect(tools=form, spell=spell)

    def _spell(self) -> Spelling:
        if self._spelling is None:
            if self._prover is None:
                self._prover = self._start(nice=PROVER_NICE)
            specials = self._prover.specials
            vocabulary = self._tokenizer.get_vocab()
            self._spelling = Spelling({text: token for text, token in vocabulary.items() if token in specials})
            self._format = self._read_format(specials, self._spelling)
        return self._spelling

    def _read_format(self, specials: frozenset[int], spell: Spelling) -> Format:
        markers = self._markers
        edges = [edge for state in (NORMAL, TOOL) for edge in markers.transitions.get(state, ())]
        calls = [text for text, target in markers.transitions.get(REASONING, ()) if target == TOOL]
        start = self._tokenizer.get_vocab().get(markers.think_start) if markers.think_start else None
        guarded = {text for text, _ in edges}
        if markers.tool_start and spell.ends_in_text(markers.tool_start):
            # Begun with mere text, as Llama's calls are: only what follows tells a call from an answer.
            guarded.discard(markers.tool_start)
        return Format(
            raws=self._raws,
            eos=self._eos,
            think_end=(markers.think_end or "").encode(),
            think_start=start,
            guard=Guard(guarded, self._raws, specials),
            thinking_guard=Guard(calls, self._raws, ()),
        )


def _tokenizer_file(tokenizer: Any) -> str:
    """The text of a `tokenizer.json`, with what `tokenizer_config.json` has added."""
    backend = copy.copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    text: str = backend.to_str()
    return text


def _key(job: GenerateJob) -> bytes:
    """What the plan of a job depends on."""
    chat = job.prompt.tools if isinstance(job.prompt, ChatPrompt) else False
    asked = (job.grammar, chat, job.tool_choice, job.tool_names, job.parallel_tool_calls)
    return hashlib.sha256(msgspec.msgpack.encode(asked)).digest()
