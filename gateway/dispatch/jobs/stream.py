"""What one job sends back, between the socket's turn and the handler's: the only place where a handler waits.

Deltas pile up unread and are coalesced when the handler takes them, so a slow client costs nobody anything
but its own delay, and past a bound only its own job. Writing never waits and never allocates per reader.
"""

import asyncio
from collections.abc import Callable

from gateway.job_failure import JobFailed
from protocol.errors import Code
from protocol.messages import Accepted, Delta, Progress, Result, Usage, Vectors
from protocol.parts import joined_calls

MAX_UNREAD = 1024 * 1024
"""Characters (logprobs and ids estimated) that may wait for a streaming reader."""
WEIGH_EVERY = 64
"""Unread deltas are weighed in steps of so many: weighing each would cost more than queueing it."""


class JobStream:
    """One job as its handler sees it. One reader; use either `deltas` or `collect`, or `result`.

    `usage` is known once the job is done; `progress` is the last word about a long prefill; `spent` is what a worker
    says that the job has cost, also where it failed or its client left. Of one that is `closed` no more is heard.
    """

    __slots__ = (
        "_accepted",
        "_begun",
        "_collecting",
        "_delivered",
        "_ended",
        "_failure",
        "_loop",
        "_pending",
        "_reader",
        "_result",
        "_unread",
        "_waiter",
        "_weigh_at",
        "_weighed",
        "choices",
        "closed",
        "on_close",
        "progress",
        "spent",
        "streamed",
        "usage",
    )

    def __init__(self, choices: int) -> None:
        self.choices = choices
        self._loop = asyncio.get_running_loop()
        self.usage: Usage | None = None
        self.spent: Usage | None = None
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        self.progress: Progress | None = None
        self.streamed = False
        self._accepted: Accepted | None = None
        self._result: Result | None = None
        self._failure: JobFailed | None = None
        self._pending: list[Delta] = []
        self._begun = False
        self._delivered: list[list[int]] = [[] for _ in range(choices)]
        # Both are the same future; `_reader` is set only where new deltas are what is waited for.
        self._waiter: asyncio.Future[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._ended = False
        self._collecting = False
        self._unread = 0
        self._weighed = 0
        self._weigh_at = WEIGH_EVERY

    # -- the handler's side ------------------------------------------------

    async def wait_accepted(self) -> Accepted:
        """Wait until the model has taken the job. Raises `JobFailed`."""
        while self._accepted is None:
            self._raise_failure()
            if self._ended:
                raise JobFailed(Code.ENGINE_ERROR, "the worker ended a job that it had not accepted")
            await self._wait(for_deltas=False)
        return self._accepted

    async def next_deltas(self) -> list[Delta] | None:
        """Return what came since the last call, one delta per choice, waiting for at least one; None at the end.

        Raises `JobFailed`, after everything that came before the failure has been handed out.
        """
        self.streamed = True
        while True:
            if self._pending and (taken := self._take()):
                return taken
            self._raise_failure()
            if self._ended:
                return None
            await self._wait(for_deltas=True)

    async def collect_all(self) -> list[Delta]:
        """Wait for the end, without waking before it: one delta per choice, in choice order. Raises `JobFailed`."""
        self._collecting = True
        while not self._ended:
            self._raise_failure()
            await self._wait(for_deltas=False)
        self._raise_failure()
        merged = {delta.choice: delta for delta in self._take()}
        return [merged.get(at) or Delta(job=0, attempt=0, choice=at, tokens=[]) for at in range(self.choices)]

    async def wait_result(self) -> Result:
        """Wait for the answer of a job that does not generate. Raises `JobFailed`."""
        while self._result is None:
            self._raise_failure()
            if self._ended:
                raise JobFailed(Code.ENGINE_ERROR, "the worker ended the job without its result")
            await self._wait(for_deltas=False)
        return self._result

    # -- the dispatcher's side ---------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether anything of the answer has come."""
        return self._begun or bool(self._pending)

    @property
    def delivered(self) -> list[list[int]]:
        """Per choice, the tokens whose text the handler has or will get; empty where nothing of the answer has come.

        A job that is sent again goes on behind these. Before the first token there may be text without one (an echo
        of the prompt): then the lists are there, and empty.
        """
        if not self.begun:
            return []
        found = [[*tokens] for tokens in self._delivered]
        for delta in self._pending:
            if 0 <= delta.choice < self.choices:
                found[delta.choice] += delta.tokens
        return found

    @property
    def reached(self) -> int:
        """How many tokens `delivered` holds."""
        return sum(map(len, self._delivered)) + sum(len(delta.tokens) for delta in self._pending)

    def feed_delta(self, delta: Delta) -> bool:
        """Add a delta; False if the reader has fallen too far behind."""
        pending = self._pending
        pending.append(delta)
        if self._reader is not None:
            self._wake()
        return len(pending) < self._weigh_at or self._weigh()

    def mark_accepted(self, accepted: Accepted) -> None:
        """Note that the model has taken the job."""
        self._accepted = accepted
        if self._reader is None:
            self._wake()

    def finish(self, outcome: Usage | Result) -> None:
        """End well."""
        if isinstance(outcome, Usage):
            self.usage = self.spent = outcome
        else:
            self._result = outcome
            if isinstance(outcome, Vectors):
                self.usage = self.spent = Usage(prompt_tokens=sum(outcome.token_counts), completion_tokens=0)
        self._ended = True
        self._wake()

    def fail(self, failure: JobFailed, *, keep_unread: bool = True) -> None:
        """End badly. What is still unread is handed out first, unless it is the problem."""
        if not keep_unread:
            self._pending.clear()
        self._failure = failure
        self._wake()

    def close_stream(self) -> None:
        """Nothing of it runs any more."""
        if not self.closed:
            self.closed = True
            if self.on_close is not None:
                self.on_close()

    # -- what it has cost --------------------------------------------------

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt, once the model has taken the job."""
        return self._accepted.prompt_tokens if self._accepted is not None else 0

    @property
    def failure(self) -> JobFailed | None:
        """Why it ended without an answer, if it did."""
        return self._failure

    # -- inside ------------------------------------------------------------

    def _raise_failure(self) -> None:
        failure = self._failure
        if failure is not None:
            # A fresh one: its traceback leads to whoever has this stream, a circle that would keep the job's megabytes.
            raise JobFailed(
                failure.code,
                failure.message,
                param=failure.param,
                retryable=failure.retryable,
                retry_after_s=failure.retry_after_s,
            )

    async def _wait(self, *, for_deltas: bool) -> None:
        waiter = self._waiter = self._loop.create_future()
        if for_deltas:
            self._reader = waiter
        try:
            await waiter
        finally:
            self._waiter = self._reader = None

    def _wake(self) -> None:
        # Cleared at once: several deltas of one turn set one future.
        waiter, self._waiter, self._reader = self._waiter, None, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take(self) -> list[Delta]:
        taken = merge_deltas(self._pending, choices=self.choices)
        self._pending = []
        self._forget_weight()
        for delta in taken:
            self._delivered[delta.choice].extend(delta.tokens)
        self._begun = self._begun or bool(taken)
        return taken

    def _forget_weight(self) -> None:
        self._unread = self._weighed = 0
        self._weigh_at = WEIGH_EVERY

    def _weigh(self) -> bool:
        self._unread += sum(map(estimate_size, self._pending[self._weighed :]))
        self._weighed = len(self._pending)
        self._weigh_at = self._weighed + WEIGH_EVERY
        return self._collecting or self._unread <= MAX_UNREAD


def merge_deltas(deltas: list[Delta], *, choices: int) -> list[Delta]:
    """Coalesce to at most one delta per choice, in the order in which choices first appear.

    Order within a choice is kept, order between choices is not. Deltas of a choice that the job does not have (a faulty
    worker) are left out.
    """
    if len(deltas) == 1 and deltas[0].choice == 0:
        return deltas
    by_choice: dict[int, list[Delta]] = {}
    for delta in deltas:
        by_choice.setdefault(delta.choice, []).append(delta)
    return [_join(parts) for choice, parts in by_choice.items() if 0 <= choice < choices]


def estimate_size(delta: Delta) -> int:
    """Return roughly how many characters of memory an unread delta holds on to."""
    size = len(delta.text) + len(delta.reasoning) + 8 * len(delta.tokens)
    if delta.logprobs:
        size += sum(64 * (1 + len(entry.top)) for entry in delta.logprobs)
    if delta.calls:
        size += sum(len(call.arguments) + len(call.name) for call in delta.calls)
    return size


def _join(parts: list[Delta]) -> Delta:
    last = parts[-1]
    if len(parts) == 1:
        return last
    return Delta(
        job=last.job,
        attempt=last.attempt,
        choice=last.choice,
        tokens=[token for part in parts for token in part.tokens],
        text="".join([part.text for part in parts]),
        reasoning="".join([part.reasoning for part in parts]),
        calls=joined_calls(call for part in parts for call in part.calls),
        logprobs=[entry for part in parts for entry in part.logprobs],
        finish=next((part.finish for part in reversed(parts) if part.finish is not None), None),
    )
