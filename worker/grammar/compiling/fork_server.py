"""The process that grammar processes are forked from: it knows the model's tokenizer, sees no grammar, runs no thread.

A fork takes milliseconds, and the tokenizer's data is there once, however many grammars are followed.
"""

import contextlib
import gc
import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from struct import Struct
from typing import Any

import msgspec
from llguidance import LLTokenizer

from worker.grammar.compiling.child import ERROR_CHARS, run_child
from worker.grammar.compiling.footprint import footprint_bytes
from worker.grammar.compiling.wire import Specials, TokenTable

ORDER = Struct("<BBI")
"""What is to be done, the niceness of what is compiled, the number of the child."""
FORK, KILL = 0, 1
LARGEST_BYTES = 1 << 30
"""Where the system bounds no memory: what a child may hold beyond what it shares."""
MODEL = '"model":'
NICE = 5
"""Whoever waits for the first grammar has time; running streams have not."""
WRONG_SHARE = 0.1
"""Of the samples that a tokenizer may read otherwise: names that are no good in their own vocabulary."""
LOOK_S, WATCH_S = 1.0, 0.1
"""How often children that have ended are reaped; where the system bounds no memory, how often it is looked at."""


class ForkServer:
    """The process itself: it forks, kills and reaps children."""

    def __init__(
        self, orders: socket.socket, tokenizer: LLTokenizer, control: dict[str, int], *, watched: bool
    ) -> None:
        """`watched`: whether children that grow beyond their bound are killed from here."""
        self._orders = orders
        self._tokenizer = tokenizer
        self._control = control
        self._watched = watched
        self._base_bytes = footprint_bytes(os.getpid()) if watched else 0
        self._children: dict[int, int] = {}

    def serve_forks(self) -> None:
        """Serve orders until the other end is closed."""
        while True:
            wait_s = (WATCH_S if self._watched else LOOK_S) if self._children else None
            if select.select([self._orders], [], [], wait_s)[0] and not self._take_order():
                break
            self._reap_children()
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)

    def _take_order(self) -> bool:
        """Take one order; return whether the engine is still there."""
        order, fds, _, _ = socket.recv_fds(self._orders, ORDER.size, 2)
        while order and len(order) < ORDER.size:
            more = self._orders.recv(ORDER.size - len(order))
            order = order + more if more else b""
        if not order:
            return False
        what, nice, number = ORDER.unpack(order)
        if what == FORK and len(fds) == 2:
            self._fork(number, nice, *fds)
        elif what == KILL and (pid := self._children.get(number)) is not None:
            # Not reaped yet, so this number is nobody else's.
            os.kill(pid, signal.SIGKILL)
        for fd in fds:
            os.close(fd)
        return True

    def _fork(self, number: int, nice: int, connection_fd: int, memory_fd: int) -> None:
        try:
            pid = os.fork()
        except OSError:
            # The engine's end of the socket says so.
            return
        if pid:
            self._children[number] = pid
            return
        try:
            self._orders.close()
            with contextlib.suppress(EOFError, OSError):
                memory = mmap.mmap(memory_fd, 0)
                run_child(Connection(connection_fd), memory, self._tokenizer, self._control, nice)
        finally:
            os._exit(0)

    def _reap_children(self) -> None:
        for number, pid in [*self._children.items()]:
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._children[number]
            elif self._watched and footprint_bytes(pid) > self._base_bytes + LARGEST_BYTES:
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Start the process; its arguments are file descriptors of the orders, and of the tokenizer's text."""
    orders_fd, tokenizer_fd = map(int, sys.argv[1:])
    # What a terminal interrupts is for the engine to end; a crash is expected here, and no core of it is wanted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    orders = Connection(orders_fd)
    vocabulary = msgspec.msgpack.decode(orders.recv_bytes(), type=TokenTable)
    tokenizer = _read_tokenizer(vocabulary, tokenizer_fd)
    if isinstance(tokenizer, Specials):
        orders.send_bytes(msgspec.msgpack.encode(tokenizer))
        return
    control = {name: token for name, token in vocabulary.added.items() if tokenizer.is_special_token(token)}
    orders.send_bytes(msgspec.msgpack.encode(Specials(sorted(control.values()))))
    del vocabulary
    gc.collect()
    # Children share what never changes: a collector that walked it would copy it.
    gc.freeze()
    gc.disable()
    with socket.socket(fileno=os.dup(orders.fileno())) as line:
        orders.close()
        ForkServer(line, tokenizer, control, watched=sys.platform != "linux").serve_forks()


def with_head(text: str, head: Mapping[str, Any]) -> str:
    """Return the text of a `tokenizer.json` with other contents for all that is not its model.

    The model, which is all but a little of it, is not even parsed where it comes last, as it does.
    """
    at = text.find(MODEL)
    own: dict[str, Any] = {}
    rest = text[at:]
    with contextlib.suppress(ValueError):
        own = json.loads(text[:at].rstrip().removesuffix(",") + "}")
    if "added_tokens" not in own or any(text.rfind(f'"{name}":') > at for name in head):
        own = json.loads(text)
        rest = f'"model":{json.dumps(own.pop("model"), ensure_ascii=False)}}}'
    return json.dumps({**own, **head}, ensure_ascii=False)[:-1] + "," + rest


def _read_tokenizer(vocabulary: TokenTable, tokenizer_fd: int) -> LLTokenizer | Specials:
    """Return the tokenizer of a file, or why it can't be used; at a low priority, since this takes seconds."""
    found: list[LLTokenizer | Specials] = []

    def read() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            with os.fdopen(tokenizer_fd, encoding="utf-8") as file:
                file.seek(0)
                text = with_head(file.read(), json.loads(vocabulary.head))
            tokenizer = LLTokenizer(text, n_vocab=vocabulary.size, eos_token=vocabulary.eos)
        except Exception as error:
            found.append(Specials([], str(error)[:ERROR_CHARS] or "unknown"))
            return
        wrong = sum(tokenizer.decode_bytes([token]) != raw for token, raw in vocabulary.samples)
        if wrong > len(vocabulary.samples) * WRONG_SHARE:
            found.append(Specials([], "its tokens stand for other bytes than the engine's"))
        else:
            found.append(tokenizer)

    # A thread can be given a lower priority and be over; no thread may run once this process forks.
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return found[0]


if __name__ == "__main__":
    main()
