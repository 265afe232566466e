"""Everything that an engine needs to hold answers to grammars: what is compiled for whom, a constraint for each row.

Whatever works on a client's schema or expression does so in a process of its own, forked for it from one that knows
the tokenizer; this process only passes it on. A process that compiled its grammar goes on to compute its masks.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, GenerateJob, Sampling, TextPrompt
from worker.grammar.compiling import compilers
from worker.grammar.compiling.compiled import CompiledGrammar
from worker.grammar.compiling.compilers import GrammarCompiler, param_of
from worker.grammar.compiling.memory import GrammarMemory, Verdict
from worker.grammar.compiling.process import GrammarProcess, ProcessLostError
from worker.grammar.compiling.process_source import UNSUPPORTED, ProcessSource
from worker.grammar.compiling.queue import CompileQueue, Ended, GrammarKey, PendingGrammar
from worker.grammar.compiling.standing import Standing
from worker.grammar.compiling.wire import Compile
from worker.grammar.constraint import Constraint, OutputTokens, Phase
from worker.grammar.lark import TokenSpelling
from worker.grammar.marker_mask import MarkerMask
from worker.grammar.masks import Masks
from worker.grammar.specs import LARGEST_BYTES
from worker.text.harmony import begun_answer
from worker.text.markers import NORMAL, REASONING, TOOL, Markers
from worker.text.tool_calls.formats import parser_name

log = logging.getLogger("worker")

COMPILERS = ((False, 10), (True, 19))
"""How many compile at the same time: whether each takes grammars of anybody, and its niceness. Whoever waits for a
compiler has time; running streams have not."""
REPLACED_S = 0.5
"""What took longer to compile is not compiled again while streams wait."""
OUTPUT_FORMAT = "This model's output format can't be held to a grammar."


class Grammars:
    """For one model. `masks` and what they call are for the engine's thread, all else is for any."""

    def __init__(
        self,
        *,
        tokenizer: Any,
        raws: Sequence[bytes] | None,
        markers: Markers,
        size: int,
        slots: int,
        processes: ProcessSource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`raws` are the bytes of each token id, `size` the width of the logits, `slots` the most rows at once."""
        self._tokenizer = tokenizer
        self._raws = raws or ()
        self._markers = markers
        self._eos = frozenset(tokenizer.eos_token_ids)
        self._clock = clock
        self._size = max(size, len(tokenizer))
        self._think_start = _token_of(tokenizer, markers.think_start) if markers.think_start else None
        self._lock = threading.Lock()
        self._processes = processes or ProcessSource(tokenizer, size=self._size, slots=slots, raws=self._raws)
        self._output: OutputTokens | None = None
        self._standing = Standing()
        self._memory = GrammarMemory()
        self._queue = CompileQueue(self._standing, clock=clock)
        self._compiler = GrammarCompiler(self._processes, self._memory, self._lock, clock=clock)
        self._compilers: list[threading.Thread] = []
        self._granted: dict[tuple[int, int], tuple[CompiledGrammar | Verdict, float]] = {}
        self._waiting: dict[tuple[int, int], GrammarKey] = {}
        self.masks = Masks(self._replace_process, reject_grammar=self._reject_grammar, size=self._size, eos=self._eos)
        states = {NORMAL, REASONING, TOOL}
        self._own_refusal = UNSUPPORTED if raws is None else ""
        if markers.initial != NORMAL or not markers.transitions.keys() <= states:
            self._own_refusal = self._own_refusal or OUTPUT_FORMAT

    @property
    def _refusal(self) -> str:
        return self._processes.error or self._own_refusal

    @property
    def available(self) -> bool:
        """Whether answers of this model can be held to a grammar."""
        return not self._refusal

    def compile_job(self, job: GenerateJob, ended: Ended) -> bool:
        """Return whether a job has to wait for its grammar: `ended` then hears, on another thread, what came of it.

        Never blocks. `drop_job` takes the job back. Raises `JobError` where it is refused as it is.
        """
        if not job.constrained:
            return False
        if self._refusal:
            param = job.grammar.param if job.grammar is not None else "tool_choice"
            raise JobError(Code.UNSUPPORTED, self._refusal, param)
        request = self._request(job)
        key = (job.tenant, hashlib.sha256(msgspec.msgpack.encode(request)).digest())
        place = (job.job, job.attempt)
        with self._lock:
            now = self._clock()
            found = self._memory.find_grammar(key, now)
            if found is not None:
                self._granted[place] = (found, 0.0)
                return False
            wait_s = self._standing.wait_s(job.tenant, now)
            if wait_s:
                message = f"Grammars of this API key take too much time. Try again in {wait_s:.0f} s."
                raise JobError(Code.RATE_LIMITED, message, param_of(job))
            if not self._queue.add_job(key, request, place, ended):
                message = "Too many grammars of this API key wait to be compiled."
                raise JobError(Code.RATE_LIMITED, message, param_of(job))
            self._waiting[place] = key
            self._start_compilers()
        return True

    def drop_job(self, job: GenerateJob) -> None:
        """Take back a job that will not be prepared: its grammar is not compiled, unless others wait for it."""
        place = (job.job, job.attempt)
        with self._lock:
            self._granted.pop(place, None)
            if (key := self._waiting.pop(place, None)) is not None:
                self._queue.remove_job(place, key)

    def make_constraints(self, job: GenerateJob, prompt: Sequence[int], state: str) -> list[Constraint] | None:
        """Make one for each choice, brought behind what has been delivered. Raises `JobError`.

        `state` is the one of the text that the prompt leaves the answer in. Where nobody has called `compile_job` for
        the job, it does, and waits.
        """
        if not job.constrained:
            return None
        granted = self._granted.pop((job.job, job.attempt), None)
        found, spent_s = self._compile_now(job) if granted is None else granted
        if isinstance(found, Verdict):
            if found.error is not None:
                raise JobError(found.error.code, found.error.message, found.error.param, compile_s=spent_s)
            return None
        output = self._output
        if output is None:
            raise RuntimeError("a grammar was compiled without its format")
        spec = found.spec
        phase = Phase.WAITING if spec.trigger is not None else self._first_phase(job, prompt, state)
        begun = begun_answer(self._markers.controls, prompt) if isinstance(job.prompt, ChatPrompt) else ()
        made = []
        for choice in range(job.n):
            constraint = Constraint(spec, output, phase, ignore_eos=job.sampling.ignore_eos, source=found)
            for token in (*begun, *(job.delivered[choice] if job.delivered else ())):
                constraint.advance_tokens(token)
            made.append(constraint)
        made[0].compile_s = spent_s
        return made

    def _compile_now(self, job: GenerateJob) -> tuple[CompiledGrammar | Verdict, float]:
        over = threading.Event()
        failed: list[JobError] = []

        def ended(error: JobError | None) -> None:
            failed.extend([error] if error is not None else [])
            over.set()

        if self.compile_job(job, ended):
            over.wait()
        if failed:
            raise failed[0]
        return self._granted.pop((job.job, job.attempt))

    def _request(self, job: GenerateJob) -> Compile:
        """Return what the grammar of a job depends on, and nothing else. Raises `JobError`."""
        chat = isinstance(job.prompt, ChatPrompt)
        tools = job.prompt.tools if isinstance(job.prompt, ChatPrompt) else None
        if len(tools or b"") + len(job.grammar.text if job.grammar else "") > LARGEST_BYTES:
            message = f"The schemas of this request are larger than {LARGEST_BYTES} bytes together."
            raise JobError(Code.INVALID_REQUEST, message, param_of(job))
        bare = GenerateJob(
            job=0,
            attempt=0,
            request_id="",
            tenant="",
            prompt=ChatPrompt(b"", tools) if chat else TextPrompt(""),
            sampling=Sampling(0),
            grammar=job.grammar,
            tool_choice=job.tool_choice,
            tool_names=job.tool_names,
            parallel_tool_calls=job.parallel_tool_calls,
        )
        parser = parser_name(self._tokenizer) if chat and self._markers.tool_start else None
        return Compile(bare, parser, compilers.COMPILE_S, compilers.COMPILE_BYTES)

    def _first_phase(self, job: GenerateJob, prompt: Sequence[int], state: str) -> Phase:
        if state == REASONING:
            return Phase.THINKING
        if self._output is None or self._output.think_start is None or not isinstance(job.prompt, ChatPrompt):
            return Phase.FOLLOWING
        if job.prompt.template.get("enable_thinking") is False or self._thought(prompt):
            return Phase.FOLLOWING
        return Phase.OPENING

    def _thought(self, prompt: Sequence[int]) -> bool:
        """Return whether the template has opened and closed a think block: its way to turn thinking off."""
        start = self._tokenizer.rfind_think_start(prompt)
        end = self._tokenizer.rfind_think_end(prompt, start=start) if start >= 0 else -1
        return end >= 0 and not any(token in self._eos for token in prompt[end:])

    def close(self) -> None:
        """End all grammar processes."""
        self._processes.close()

    # -- compiling: on threads of its own

    def _start_compilers(self) -> None:
        if self._compilers:
            return
        for number, (anybody, nice) in enumerate(COMPILERS):
            work = threading.Thread(target=self._work, args=(anybody, nice), name=f"compile-{number}", daemon=True)
            self._compilers.append(work)
            work.start()

    def _work(self, anybody: bool, nice: int) -> None:
        while True:
            pending = self._queue.take_job(anybody=anybody)
            spent_s = 0.0
            error: JobError | None = None
            found: CompiledGrammar | Verdict | None = None
            try:
                found, spent_s = self._compiler.compile_grammar(pending, nice)
                if self._output is None and self._processes.server is not None:
                    self._output = self._read_output(self._processes.specials)
            except JobError as failure:
                error = failure
            except Exception:
                log.exception("a grammar could not be compiled")
                error = JobError(Code.ENGINE_ERROR, "The grammar could not be compiled.")
            self._finish_grammar(pending, found, error, spent_s)

    def _finish_grammar(
        self, pending: PendingGrammar, found: CompiledGrammar | Verdict | None, error: JobError | None, spent_s: float
    ) -> None:
        with self._lock:
            waited = self._queue.job_done(pending, spent_s)
            for number, (place, _) in enumerate(waited):
                del self._waiting[place]
                if found is not None:
                    # Whoever came first pays for it.
                    self._granted[place] = (found, 0.0 if number else spent_s)
        for _, ended in waited:
            ended(error)

    # -- following

    def _replace_process(self, grammar: CompiledGrammar) -> GrammarProcess:
        """Fork another process for a grammar whose own was lost, while streams wait. Raises `ProcessLostError`."""
        if grammar.spent_s > REPLACED_S:
            raise ProcessLostError
        try:
            process = self._processes.fork_process()
        except JobError as error:
            raise ProcessLostError from error
        process.send_request(grammar.request)
        answer = process.read_answer(REPLACED_S * 4)
        if answer is None or answer.spec is None:
            process.kill()
            raise ProcessLostError(stood_still=answer is None)
        return process

    def _reject_grammar(self, grammar: CompiledGrammar) -> None:
        """Refuse for a while a grammar that took too much while it was followed, and its tenant's next ones."""
        message = f"'{grammar.spec.param}' can't be enforced: it takes too much time to follow."
        error = JobError(Code.INVALID_REQUEST, message, grammar.spec.param)
        with self._lock:
            now = self._clock()
            self._memory.record_doubt(grammar.key, error, now)
            self._standing.bar_tenant(grammar.key[0], now)

    # -- the model's format

    def _read_output(self, specials: frozenset[int]) -> OutputTokens:
        markers = self._markers
        spell = TokenSpelling({text: token for text, token in self._processes.added.items() if token in specials})
        edges = [edge for state in (NORMAL, TOOL) for edge in markers.transitions.get(state, ())]
        calls = [text for text, target in markers.transitions.get(REASONING, ()) if target == TOOL]
        guarded = set()
        for text, target in edges:
            if (target == TOOL or text == markers.tool_end) and spell.ends_in_text(text):
                # A text that the grammar writes itself. Begun with mere text, as Llama's calls are, only what follows
                # tells a call from an answer; of a marker with a control token, only the token's name is kept away.
                guarded |= {spell.guarded_part(text)} - {""}
            else:
                guarded.add(text)
        # Looked through for every marker, and made one by one by some vocabularies.
        raws = [*self._raws]
        return OutputTokens(
            raws=self._raws,
            eos=self._eos,
            think_end=(markers.think_end or "").encode(),
            think_start=self._think_start,
            marker_mask=MarkerMask(guarded, raws, specials),
            thinking_mask=MarkerMask(calls, raws, ()),
        )


def _token_of(tokenizer: Any, name: str) -> int | None:
    """Return the id of a token; unlike `get_vocab`, which holds the interpreter, it makes no table of them all."""
    found = tokenizer.convert_tokens_to_ids(name)
    return int(found) if found is not None and tokenizer.convert_ids_to_tokens(int(found)) == name else None
