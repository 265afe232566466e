"""Where grammar processes come from: one fork server for a model, started with the first grammar, replaced if lost."""

import json
import logging
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from protocol.errors import Code, JobError
from worker.grammar.compiling.process import ForkServerHandle, GrammarProcess, ProcessLostError
from worker.grammar.compiling.wire import TokenTable

log = logging.getLogger("worker")

TRIES = 2
SAMPLES = 512
"""Tokens by whose bytes a file is known to be the engine's tokenizer's."""
UNSUPPORTED = "This model's tokenizer can't be held to a grammar."


class ProcessSource:
    """The grammar processes of one model, for any thread. `error` says why its tokenizer can't be used, once known."""

    def __init__(self, tokenizer: Any, *, size: int, slots: int, raws: Sequence[bytes] = ()) -> None:
        """`size` is the number of ids that masks cover, `slots` the most rows at once, `raws` each token's bytes."""
        self._tokenizer = tokenizer
        self.added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
        self.specials: frozenset[int] = frozenset()
        """What grammars know as control tokens, once the first process was started."""
        self.error = "" if getattr(tokenizer, "is_fast", False) else UNSUPPORTED
        self._slots = slots
        self._lock = threading.Lock()
        self._server: ForkServerHandle | None = None
        self._closed = False
        self._vocabulary = TokenTable(size, sorted(tokenizer.eos_token_ids), self.added)
        self._file: IO[bytes] | None = None
        self._written = False
        """Whether the file was written here, and so has what the tokenizer has."""
        if not self.error:
            head = _head_of(tokenizer.backend_tokenizer)
            samples = _samples(raws, frozenset(self.added.values()))
            self._vocabulary = msgspec.structs.replace(self._vocabulary, head=head, samples=samples)
            self._keep_file(_own_file(tokenizer))

    def _keep_file(self, found: IO[bytes] | None) -> IO[bytes]:
        """Keep the tokenizer's own file for as long as processes may be started, else one that is written."""
        self._written = found is None
        file = self._file = _written_file(self._tokenizer) if found is None else found
        weakref.finalize(self, file.close)
        return file

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
        server = self._start_with(self._file)
        if server.error and not self._written:
            log.warning("the file of the tokenizer is no good for grammars: it is written anew, which holds up streams")
            server.kill()
            server = self._start_with(self._keep_file(None))
        if server.error:
            self.error = UNSUPPORTED
            log.warning("no grammars with this tokenizer: %s", server.error)
            raise JobError(Code.UNSUPPORTED, UNSUPPORTED)
        self.specials = server.specials
        return server

    def _start_with(self, file: IO[bytes]) -> ForkServerHandle:
        try:
            return ForkServerHandle(self._vocabulary, file, slots=self._slots)
        except (OSError, ProcessLostError) as error:
            raise JobError(Code.ENGINE_ERROR, f"no grammar process could be started: {error!r}") from error


def _own_file(tokenizer: Any) -> IO[bytes] | None:
    """Return the `tokenizer.json` that a tokenizer was read from, opened before anybody changes it."""
    # To write a large vocabulary down holds the interpreter for half a second, so nothing does if it can be helped.
    try:
        return (Path(tokenizer.name_or_path) / "tokenizer.json").open("rb")
    except (OSError, ValueError):
        return None


def _written_file(tokenizer: Any) -> IO[bytes]:
    """Return the text of a `tokenizer.json` in a file without a name."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - kept for as long as processes may be started
    file.write(tokenizer.backend_tokenizer.to_str().encode())
    file.flush()
    return file


def _head_of(backend: Any) -> bytes:
    """Return all of a tokenizer but its model, as in a `tokenizer.json`: classes and settings change a file's."""
    parts = {
        name: json.loads(part.__getstate__()) if (part := getattr(backend, name)) is not None else None
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    }
    added = [
        {
            "id": number,
            "content": token.content,
            **{name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")},
        }
        for number, token in sorted(backend.get_added_tokens_decoder().items())
    ]
    return json.dumps({"truncation": None, "padding": None, "added_tokens": added, **parts}).encode()


def _samples(raws: Sequence[bytes], added: frozenset[int]) -> list[tuple[int, bytes]]:
    """Return some ids from everywhere with their bytes, which say nothing of added tokens to a grammar."""
    step = max(1, len(raws) // SAMPLES)
    return [(number, raws[number]) for number in range(0, len(raws), step) if number not in added and raws[number]]
