"""Compiling one grammar after the other, each in a process of its own; what comes of it is remembered."""

import threading
from collections.abc import Callable

import msgspec

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, GenerateJob
from worker.grammar.compiling.compiled import CompiledGrammar
from worker.grammar.compiling.memory import GrammarMemory, Verdict
from worker.grammar.compiling.process import GrammarProcess, ProcessLostError
from worker.grammar.compiling.process_source import ProcessSource
from worker.grammar.compiling.queue import PendingGrammar
from worker.grammar.compiling.wire import Compile, Compiled

PATIENCE_S = 60.0
"""By the clock on the wall: one that has not used up its processor time by then stands still. It is tried again."""
LOOK_S = 0.05
"""How often is looked whether anybody still waits."""
TRIES = 2
COMPILE_S, COMPILE_BYTES = 5.0, 1 << 30
"""Processor time and memory for planning, compiling and the first mask."""


class GrammarCompiler:
    """For several threads, as long as each has a grammar of its own. `lock` is the memory's."""

    def __init__(
        self, processes: ProcessSource, memory: GrammarMemory, lock: threading.Lock, *, clock: Callable[[], float]
    ) -> None:
        self._processes = processes
        self._memory = memory
        self._lock = lock
        self._clock = clock

    def compile_grammar(self, pending: PendingGrammar, nice: int) -> tuple[CompiledGrammar | Verdict | None, float]:
        """Return what came of a grammar (None: nobody wants it any more), and the processor time that it took.

        Raises `JobError` where that says nothing about the grammar.
        """
        spent_s = 0.0
        loose = pending.request.job.prompt
        attempts = [pending.request]
        if isinstance(loose, ChatPrompt) and loose.tools:
            attempts.append(msgspec.structs.replace(pending.request, loosened=True))
        for request in attempts:
            process, answer = self._compile_one(pending, request, nice)
            if process is None:
                # Of what was given up nobody knows how much it took.
                given_up_s = self._clock() - (pending.began_at or 0.0)
                return None, min(COMPILE_S, spent_s + given_up_s)
            if answer is not None:
                return self._record_outcome(pending, request, process, answer), spent_s + answer.spent_s
            spent_s += COMPILE_S
        error = JobError(
            Code.INVALID_REQUEST,
            f"'{param_of(pending.request.job)}' can't be enforced: compiling it takes more than {COMPILE_S:g} seconds, "
            "or too much memory.",
            param_of(pending.request.job),
        )
        with self._lock:
            self._memory.record_doubt(pending.key, error, self._clock())
        return Verdict(error), spent_s

    def _compile_one(
        self, pending: PendingGrammar, request: Compile, nice: int
    ) -> tuple[GrammarProcess | None, Compiled | None]:
        """Return a process and its answer.

        The answer is None where it took too much, both are where nobody waits any more.
        """
        for _ in range(TRIES):
            process = self._processes.fork_process(nice=nice)
            deadline = self._clock() + PATIENCE_S
            try:
                process.send_request(request)
                while (answer := process.read_answer(LOOK_S)) is None and self._clock() < deadline:
                    if not pending.wanted:
                        process.kill()
                        return None, None
            except ProcessLostError as lost:
                if not lost.stood_still:
                    return process, None
                continue
            if answer is not None:
                return process, answer
            process.kill()
        message = "The machine is too busy to compile this grammar. Try again."
        raise JobError(Code.RATE_LIMITED, message, param_of(pending.request.job))

    def _record_outcome(
        self, pending: PendingGrammar, request: Compile, process: GrammarProcess, answer: Compiled
    ) -> CompiledGrammar | Verdict:
        if answer.spec is not None:
            spent_s, grown_bytes = answer.spent_s, answer.grown_bytes
            made = CompiledGrammar(pending.key, answer.spec, request, process, spent_s=spent_s, grown_bytes=grown_bytes)
            with self._lock:
                self._memory.keep_grammar(made)
            return made
        process.kill()
        error = JobError(Code(answer.code), answer.message, answer.param) if answer.code else None
        with self._lock:
            self._memory.record_refusal(pending.key, error)
        return Verdict(error)


def param_of(job: GenerateJob) -> str:
    """Return the request's field that asks for a grammar."""
    if job.grammar is not None:
        return job.grammar.param
    return "tool_choice" if job.tool_choice == "required" else "tools"
