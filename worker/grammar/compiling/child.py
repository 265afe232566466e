"""A grammar process: compiles one grammar, then computes masks for the rows that follow it.

It is expendable. Grammars come from clients, and some take seconds, or gigabytes, or for ever: the system ends this
process at the bounds that it sets itself here, in processor time and memory, and nothing is lost but time. A machine
that stands still spends no processor time.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from protocol.errors import Code, JobError
from worker.grammar.call_rules import format_of
from worker.grammar.compiling.wire import Compile, Compiled, Follow, Status, Step
from worker.grammar.constraint import GrammarSpec
from worker.grammar.lark import TokenSpelling
from worker.grammar.refusals import name_refusal
from worker.grammar.specs import OutputFormat, make_spec, schema_grammar
from worker.grammar.tools import ToolCase, callable_tools

LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
FIRST_MASK_S = 0.25
"""Processor time that the first mask may take. Later ones take about as long wherever a grammar is as rich."""
MASK_S = 0.25
"""Processor time of any one mask: a row that takes longer ends its process. Streams wait for it."""
GRACE_S, GRACE_PER_TOKEN_S = 0.5, 0.003
"""Processor time that following one grammar may take in all. Usual are a few microseconds a token."""
FOLLOW_BYTES = 256 << 20
"""Address space that following may add to what compiling has taken."""
ERROR_CHARS = 300


class SpecCompiler:
    """The spec of a job, and a proof that its grammar compiles."""

    def __init__(self, tokenizer: LLTokenizer, control: Mapping[str, int]) -> None:
        """`control` are names and ids of the tokens that grammars know as control tokens."""
        self._tokenizer = tokenizer
        self._spell = TokenSpelling(control)

    def compile(self, asked: Compile) -> tuple[GrammarSpec, LLMatcher] | None:
        """Return the spec with a matcher at its start; None where nothing is constrained. Raises `JobError`."""
        job, tools = asked.job, callable_tools(asked.job)
        if asked.loosened:
            tools = [tool if tool.strict else tool.without_strictness() for tool in tools]
        form = format_of(asked.parser, self._spell) if asked.parser is not None else None
        output_format = OutputFormat(tools=form, spell=self._spell)
        spec = make_spec(job, tools, output_format)
        if spec is None:
            return None
        try:
            return spec, self._make_matcher(spec.grammar)
        except ValueError as failure:
            error = failure
        if tools:
            tools = [self._usable_tool(tool) for tool in tools]
            spec = make_spec(job, tools, output_format) or spec
            try:
                return spec, self._make_matcher(spec.grammar)
            except ValueError as failure:
                error = failure
        raise JobError(Code.INVALID_REQUEST, f"'{spec.param}' can't be enforced: {error}", spec.param)

    def _usable_tool(self, tool: ToolCase) -> ToolCase:
        """Return the tool with a schema that can be enforced: any object, where it was not promised to be strict."""
        try:
            self._make_matcher(schema_grammar(tool.schema))
        except ValueError as error:
            if tool.strict:
                message = f"'{tool.param}' can't be enforced: {error}"
                raise JobError(Code.INVALID_REQUEST, message, tool.param) from None
            return tool.without_strictness()
        return tool

    def _make_matcher(self, text: str) -> LLMatcher:
        """Return a matcher at the start of a grammar. Raises `ValueError` where the grammar is no good."""
        made = LLMatcher(self._tokenizer, _lark(text), log_level=0, limits=LIMITS)
        began = time.process_time()
        if not made.is_error():
            # Copies inherit what the first mask taught the lexer.
            made.compute_bitmask()
        if made.is_error():
            raise ValueError(name_refusal(made.get_error()))
        if time.process_time() - began > FIRST_MASK_S:
            raise ValueError("it takes too long to follow")
        return made


class MaskSteps:
    """The steps of an engine: a mask a slot, in shared memory, whose last bytes name the slot at work, or -1."""

    def __init__(self, start: LLMatcher, tokenizer: LLTokenizer, memory: mmap.mmap) -> None:
        self._start = start
        self._tokenizer = tokenizer
        self._size = (tokenizer.vocab_size + 31) // 32 * 4
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._at_work = ctypes.c_int32.from_buffer(memory, len(memory) - 4)
        self._rows: dict[int, LLMatcher] = {}
        self._grace_s = GRACE_S

    def serve_steps(self, connection: Connection) -> NoReturn:
        """Serve steps until the other end is closed, which raises `EOFError` or `OSError`."""
        decoder = msgspec.msgpack.Decoder(Step)
        while True:
            step = decoder.decode(connection.recv_bytes())
            for slot in step.closed:
                self._rows.pop(slot, None)
            done = bytes(self.follow_row(follow) for follow in step.follow)
            _bound_time(0.0)
            self._at_work.value = -1
            connection.send_bytes(done)

    def follow_row(self, follow: Follow) -> Status:
        """Take tokens in, write the mask of what may follow."""
        self._at_work.value = follow.slot
        _bound_time(MASK_S)
        began = time.process_time()
        if follow.begins:
            matcher = self._rows[follow.slot] = self._start.deep_copy()
            if follow.prefix:
                matcher.consume_tokens(self._tokenizer.tokenize_bytes(follow.prefix))
        matcher = self._rows[follow.slot]
        if follow.tokens:
            matcher.consume_tokens(follow.tokens)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(self._base + follow.slot * self._size, self._size)
        self._grace_s += GRACE_PER_TOKEN_S * len(follow.tokens) - (time.process_time() - began)
        if matcher.is_error():
            return Status.REFUSED
        if matcher.is_stopped():
            return Status.ENDED
        return Status.SLOW if self._grace_s < 0 else Status.OPEN


def run_child(
    connection: Connection, memory: mmap.mmap, tokenizer: LLTokenizer, control: Mapping[str, int], nice: int
) -> None:
    """Run the whole life of a forked process, within bounds that it sets itself."""
    # The time that a process may take for itself is the system's to count: at the end of it stands this signal.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    asked = msgspec.msgpack.decode(connection.recv_bytes(), type=Compile)
    _bound_time(asked.limit_s)
    _bound_memory(asked.limit_bytes)
    found: list[Compiled | LLMatcher] = []
    # A thread can be given a lower priority and be over; a process could never take its own back.
    thread = threading.Thread(target=lambda: found.extend(_compile(asked, SpecCompiler(tokenizer, control), nice)))
    thread.start()
    thread.join()
    _bound_time(0.0)
    connection.send_bytes(msgspec.msgpack.encode(found[0]))
    matcher = found[1] if len(found) > 1 else None
    if isinstance(matcher, LLMatcher):
        _bound_memory(FOLLOW_BYTES)
        MaskSteps(matcher, tokenizer, memory).serve_steps(connection)


def _compile(asked: Compile, compiler: SpecCompiler, nice: int) -> list[Compiled | LLMatcher]:
    """Return what came of it, and the matcher if it went well."""
    if sys.platform == "linux" and nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    began, before = time.process_time(), _peak_bytes()
    more: list[Compiled | LLMatcher] = []
    try:
        made = compiler.compile(asked)
        answer = Compiled()
        if made is not None:
            answer = Compiled(msgspec.structs.replace(made[0], grammar=""))
            more.append(made[1])
    except JobError as error:
        answer = Compiled(code=error.code, message=error.message, param=error.param)
    except Exception as error:
        reason = str(error).strip()[:ERROR_CHARS] or type(error).__name__
        param = asked.job.grammar.param if asked.job.grammar else "tools"
        message = f"'{param}' can't be enforced: {reason}"
        answer = Compiled(code=Code.INVALID_REQUEST, message=message, param=param)
    spent_s, grown = time.process_time() - began, max(0, _peak_bytes() - before)
    return [msgspec.structs.replace(answer, spent_s=spent_s, grown_bytes=grown, pid=os.getpid()), *more]


def _lark(text: str) -> str:
    """Return llguidance's own form; a part that may be GBNF (vLLM's users send either) becomes Lark."""
    parts = json.loads(text)
    for part in parts["grammars"]:
        if (ebnf := part.pop("ebnf", None)) is not None:
            part["lark_grammar"] = any_to_lark(ebnf)
    return json.dumps(parts)


def _bound_time(seconds: float) -> None:
    """End this process once it has used so much more processor time; 0: no more."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _bound_memory(more: int) -> None:
    """Let nothing be allocated beyond so many bytes more than there are now; who tries ends the process."""
    if sys.platform != "linux":
        return
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _peak_bytes() -> int:
    """Return the largest resident size so far; `getrusage` counts kilobytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
