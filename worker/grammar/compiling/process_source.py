"""Where grammar processes come from: one fork server for a model, started with the first grammar, replaced if lost."""

import copy
import logging
import tempfile
import threading
import weakref
from typing import IO, Any

from protocol.errors import Code, JobError
from worker.grammar.compiling.process import ForkServerHandle, GrammarProcess, ProcessLostError
from worker.grammar.compiling.wire import TokenTable

log = logging.getLogger("worker")

TRIES = 2
UNSUPPORTED = "This model's tokenizer can't be held to a grammar."


class ProcessSource:
    """The grammar processes of one model, for any thread. `error` says why its tokenizer can't be used, once known."""

    def __init__(self, tokenizer: Any, *, size: int, slots: int) -> None:
        """`size` is the number of ids that masks cover, `slots` the most rows at once."""
        self.added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
        self.specials: frozenset[int] = frozenset()
        """What grammars know as control tokens, once the first process was started."""
        self.error = "" if getattr(tokenizer, "is_fast", False) else UNSUPPORTED
        self._vocabulary = TokenTable(size, sorted(tokenizer.eos_token_ids), self.added)
        self._slots = slots
        self._lock = threading.Lock()
        self._server: ForkServerHandle | None = None
        self._closed = False
        # Written down before anybody is served: it holds the interpreter, of a large vocabulary for a while.
        self._file = None if self.error else _tokenizer_file(tokenizer)
        if self._file is not None:
            weakref.finalize(self, self._file.close)

    @property
    def server(self) -> ForkServerHandle | None:
        """The process that the others are forked from, if it has been started."""
        return self._server

    def fork_process(self, *, nice: int = 0) -> GrammarProcess:
        """Fork a process for a grammar. Raises `JobError`."""
        for _ in range(TRIES):
            server = self._running_server()
            try:
                return server.fork_process(nice=nice)
            except ProcessLostError:
                log.warning("the process that grammar processes are forked from was lost; another one is started")
                with self._lock:
                    if self._server is server:
                        server.kill()
                        self._server = None
        raise JobError(Code.ENGINE_ERROR, "no grammar process could be started")

    def close(self) -> None:
        """End the process that the others are forked from, and those with it; threads that still compile get none."""
        with self._lock:
            self._closed = True
            if self._server is not None:
                self._server.kill()
                self._server = None

    def _running_server(self) -> ForkServerHandle:
        with self._lock:
            if self._closed:
                raise JobError(Code.ENGINE_ERROR, "the engine ends")
            if self._server is None:
                self._server = self._start_server()
            return self._server

    def _start_server(self) -> ForkServerHandle:
        if self._file is None:
            raise JobError(Code.UNSUPPORTED, UNSUPPORTED)
        try:
            server = ForkServerHandle(self._vocabulary, self._file, slots=self._slots)
        except (OSError, ProcessLostError) as error:
            raise JobError(Code.ENGINE_ERROR, f"no grammar process could be started: {error!r}") from error
        if server.error:
            self.error = UNSUPPORTED
            log.warning("no grammars with this tokenizer: %s", server.error)
            raise JobError(Code.UNSUPPORTED, UNSUPPORTED)
        self.specials = server.specials
        return server


def _tokenizer_file(tokenizer: Any) -> IO[bytes]:
    """Return a `tokenizer.json`, with what `tokenizer_config.json` has added, in a file without a name."""
    backend = copy.copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    file = tempfile.TemporaryFile()  # noqa: SIM115 - kept for as long as processes may be started
    file.write(backend.to_str().encode())
    file.flush()
    return file
