"""What a request costs, in tokens: those that were computed, and a price for work that is not counted in tokens.

Pure and cheap: once a request, nothing per token. The table in docs/keys.md says the same.
"""

from collections.abc import Callable

from gateway.access.estimate import IMAGE_TOKENS
from gateway.dispatch.jobs.stream import JobStream
from gateway.job_failure import JobFailed
from gateway.schema.errors import TABLE, ApiError
from protocol.messages import Usage

COUNTED_PER_TOKEN = 100
"""Tokens that are only counted or named (tokenize, detokenize), for the price of one that is computed."""
PRODUCTS_PER_TOKEN = 1_000_000
"""Multiplications of numbers that are compared."""
COMPILED_PER_S = 1000
"""Tokens for a second of processor time that went into a grammar."""
KNOWN_INPUT = 1
"""Tokens for an input whose vector is known already."""


def counting(tokens: int, images: int = 0) -> int:
    """Return the price of counting tokens; images have to be decoded for it."""
    return max(1, tokens // COUNTED_PER_TOKEN) + images * IMAGE_TOKENS


def comparing(pairs: int, dimensions: int) -> int:
    """Return the price of comparing vectors."""
    return max(1, pairs * dimensions // PRODUCTS_PER_TOKEN)


class Work:
    """All that one request had done; `extra` are prices of what is no job, or no job that counts tokens."""

    __slots__ = ("_settle", "extra", "streams")

    def __init__(self) -> None:
        self.streams: list[JobStream] = []
        self.extra = 0
        self._settle: Callable[[int], None] | None = None

    @property
    def tokens(self) -> int:
        """What it costs, as far as that is known."""
        return self.extra + sum(map(tokens_of, self.streams))

    def forgive_all(self) -> None:
        """Charge nothing: it failed without its client's fault."""
        self.streams.clear()
        self.extra = 0

    def settle_when_done(self, settle: Callable[[int], None]) -> None:
        """Have `settle` called with what it cost, once: as soon as nothing of it runs any more."""
        self._settle = settle
        for stream in self.streams:
            stream.on_close = self._look
        self._look()

    def _look(self) -> None:
        if self._settle is not None and all(stream.closed for stream in self.streams):
            settle, self._settle = self._settle, None
            settle(self.tokens)


def tokens_of(stream: JobStream) -> int:
    """Return what a job costs: what its worker counted; else, where it took the job, the prompt and what has come.

    Nothing for what failed without its client's fault, unless part of it was streamed.
    """
    failure = stream.failure
    if failure is not None and not _clients_fault(failure.code):
        return stream.prompt_tokens + stream.reached if stream.streamed and stream.reached else 0
    if stream.spent is not None:
        return _tokens_of_usage(stream.spent)
    return stream.prompt_tokens + stream.reached


def ours(error: Exception) -> bool:
    """Return whether a request failed without its client's fault. A client that leaves does not fail."""
    if isinstance(error, ConnectionError):
        return False
    code = error.code if isinstance(error, JobFailed | ApiError) else "internal_error"
    return not _clients_fault(code)


def _tokens_of_usage(usage: Usage) -> int:
    compiled = round(usage.compile_s * COMPILED_PER_S)
    # Workers of older versions do not count.
    return (usage.stepped_tokens or usage.prompt_tokens + usage.completion_tokens) + compiled


def _clients_fault(code: str) -> bool:
    policy = TABLE.get(code)
    return code == "slow_reader" or (policy is not None and policy.status < 500)
