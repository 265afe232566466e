"""A grammar process: compiles grammars and computes masks for an engine. Knows llguidance and nothing else of the pool.

It is expendable. Grammars come from clients, and some take seconds, or gigabytes, or for ever: whoever started this
process kills it then, and nothing is lost but time.
"""

import ctypes
import json
import mmap
import os
import resource
import sys
import threading
import time
from collections import OrderedDict
from multiprocessing.connection import Connection

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from worker.grammar.wire import Compile, Compiled, Follow, Specials, Status, Step, Vocabulary

KEPT = 64
"""Compiled grammars that are kept, least recently used first out."""
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
MEMORY_BYTES = 4 << 30
"""Address space; what asks for more ends the process (Linux: elsewhere the limit has no effect)."""
FIRST_MASK_S = 0.25
"""Processor time that the first mask may take. Later ones take about as long wherever a grammar is as rich."""
GRACE_S, GRACE_PER_TOKEN_S = 0.5, 0.01
"""Processor time that following one grammar may take in all. Usual are a few microseconds a token."""
ERROR_CHARS = 300


class Grammars:
    """Compiled grammars by their text; safe to use from both threads."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> LLMatcher:
        """A matcher of one's own at the start of the grammar. Raises `ValueError` where the grammar is no good."""
        with self._lock:
            if (kept := self._kept.get(text)) is not None:
                self._kept.move_to_end(text)
                return kept.deep_copy()
        made = LLMatcher(self._tokenizer, _lark(text), log_level=0, limits=LIMITS)
        began = time.thread_time()
        if not made.is_error():
            # Copies inherit what the first mask taught the lexer.
            made.compute_bitmask()
        if made.is_error():
            raise ValueError(made.get_error())
        if time.thread_time() - began > FIRST_MASK_S:
            raise ValueError("it takes too long to follow")
        with self._lock:
            self._kept[text] = made
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return made.deep_copy()


class Followed:
    """One row on its way through a grammar."""

    __slots__ = ("matcher", "spent_s", "tokens")

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher
        self.spent_s = 0.0
        self.tokens = 0

    def take(self, prefix: list[int], tokens: list[int], address: int, size: int) -> Status:
        """Take tokens in, write the mask of what may follow to `address`."""
        began = time.thread_time()
        matcher = self.matcher
        self.tokens += len(tokens)
        if prefix:
            matcher.consume_tokens(prefix)
        if tokens:
            matcher.consume_tokens(tokens)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(address, size)
        self.spent_s += time.thread_time() - began
        if matcher.is_error():
            return Status.REFUSED
        if matcher.is_stopped():
            return Status.ENDED
        return Status.SLOW if self.spent_s > GRACE_S + GRACE_PER_TOKEN_S * self.tokens else Status.OPEN


class Steps:
    """Serves the steps of an engine: a mask a slot, in shared memory, whose last bytes name the slot at work, or -1."""

    def __init__(self, grammars: Grammars, tokenizer: LLTokenizer, memory: mmap.mmap, words: int) -> None:
        self._grammars = grammars
        self._tokenizer = tokenizer
        self._size = words * 4
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._at_work = ctypes.c_int32.from_buffer(memory, len(memory) - 4)
        self._followed: dict[int, Followed] = {}

    def serve(self, connection: Connection) -> None:
        """Until the other end is closed."""
        decoder = msgspec.msgpack.Decoder(Step)
        while True:
            step = decoder.decode(connection.recv_bytes())
            for slot in step.closed:
                self._followed.pop(slot, None)
            done = bytes(self._take(follow) for follow in step.follow)
            self._at_work.value = -1
            connection.send_bytes(done)

    def _take(self, follow: Follow) -> Status:
        self._at_work.value = follow.slot
        if follow.grammar is not None:
            try:
                self._followed[follow.slot] = Followed(self._grammars.get(follow.grammar))
            except ValueError:
                return Status.REFUSED
        prefix = self._tokenizer.tokenize_bytes(follow.prefix) if follow.prefix else []
        return self._followed[follow.slot].take(
            prefix, follow.tokens, self._base + follow.slot * self._size, self._size
        )


def _lark(text: str) -> str:
    """Llguidance's own form; a part that may be GBNF (vLLM's users send either) becomes Lark."""
    parts = json.loads(text)
    for part in parts["grammars"]:
        if (ebnf := part.pop("ebnf", None)) is not None:
            part["lark_grammar"] = any_to_lark(ebnf)
    return json.dumps(parts)


def _compile(grammars: Grammars, connection: Connection) -> None:
    """Serve `Compile` until the other end is closed."""
    decoder = msgspec.msgpack.Decoder(Compile)
    try:
        while True:
            text = decoder.decode(connection.recv_bytes()).grammar
            error = ""
            try:
                grammars.get(text)
            except Exception as failure:
                error = str(failure) or type(failure).__name__
            connection.send_bytes(msgspec.msgpack.encode(Compiled(error.strip()[:ERROR_CHARS])))
    except (EOFError, OSError):
        os._exit(0)


def _leave_with_parent(lifeline_fd: int) -> None:
    """A mask that is never done must not outlive the engine that asked for it."""

    def wait() -> None:
        while os.read(lifeline_fd, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def main() -> None:
    """Entry of the process: file descriptors of both sockets, the lifeline and the shared memory; its niceness."""
    compile_fd, steps_fd, lifeline_fd, memory_fd, nice = map(int, sys.argv[1:])
    os.nice(nice)
    _leave_with_parent(lifeline_fd)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    compiling, steps = Connection(compile_fd), Connection(steps_fd)
    vocabulary = msgspec.msgpack.decode(compiling.recv_bytes(), type=Vocabulary)
    try:
        tokenizer = LLTokenizer(vocabulary.tokenizer, n_vocab=vocabulary.size, eos_token=vocabulary.eos)
    except Exception as error:
        compiling.send_bytes(msgspec.msgpack.encode(Specials([], str(error)[:ERROR_CHARS] or "unknown")))
        return
    found = [token for token in vocabulary.asked if tokenizer.is_special_token(token)]
    compiling.send_bytes(msgspec.msgpack.encode(Specials(found)))
    grammars = Grammars(tokenizer)
    threading.Thread(target=_compile, args=(grammars, compiling), name="compile", daemon=True).start()
    memory = mmap.mmap(memory_fd, 0)
    try:
        Steps(grammars, tokenizer, memory, (tokenizer.vocab_size + 31) // 32).serve(steps)
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
