"""The seam between a worker process and the model it serves.

An engine knows tokens, rows and its own memory; it knows nothing of sockets, threads or processes.
Everything but `prepare` is called on one thread only (MLX arrays and streams belong to a thread).
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from protocol.messages import ModelJob, Ready, Text, ToGateway, Tokens, Usage, Vectors


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine shows of itself with every beat. Bytes; rows; counts since start."""

    running: int = 0
    waiting: int = 0
    active_bytes: int = 0
    cache_bytes: int = 0
    peak_bytes: int = 0
    prefix_bytes: int = 0
    prefix_hits: int = 0
    prefix_lookups: int = 0
    feature_bytes: int = 0
    feature_hits: int = 0
    feature_lookups: int = 0
    draft_proposed: int = 0
    draft_accepted: int = 0
    prefix_disk_bytes: int = 0
    prefix_disk_hits: int = 0


@runtime_checkable
class Counting(Protocol):
    """An engine that can tell what a job has cost before it has ended."""

    def spent(self, job: int, /) -> Usage | None:
        """Return what a job has cost up to now; None if it is not here (any more)."""


class Engine(Protocol):
    """One model, loaded once, serving many jobs step by step."""

    def load(self) -> None:
        """Load the model. Raises `EngineLoadError` where it can't be served."""

    def warm(self) -> None:
        """Run real forward passes so that the first request pays no compilation."""

    def describe(self) -> Ready:
        """Return what only loading could know; durations and warmup flags are filled in by the process."""

    def prepare(self, job: ModelJob, buffers: Sequence[bytes] = (), /) -> Any:
        """Do what needs no device: render, tokenise, check. Called on another thread than the rest.

        `buffers` are the raw frames that came with the job: what its `Image`s point into.
        Returns `Tokens`, `Text` or `Vectors` (the whole answer) or whatever `admit` takes. Where it takes long, an
        iterator: it yields None between pieces of some milliseconds, so that other jobs pass, and at last the result.
        A `Future` that it yields is work done elsewhere: it goes on when that is done; cancelling a job cancels it.
        Raises `JobError` for a job that can't run.
        """

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        """Take a prepared job in; it joins at the next step. Returns its `Accepted`."""

    def cancel(self, job: int) -> bool:
        """Forget a job and free its rows at once. False if it is not here (any more)."""

    def step(self) -> Sequence[ToGateway]:
        """Advance every row by one token and the prompts by at most one chunk; returns what came of it.

        An exception is fatal to the process: the model's state can't be trusted after it.
        """

    @property
    def busy(self) -> bool:
        """Whether `step` would do anything."""

    def gauges(self) -> Gauges:
        """Return the current counters; cheap, and safe to call from another thread."""


@runtime_checkable
class CacheOwner(Protocol):
    """What an engine may have besides `Engine`: things it keeps from one job for the next ones."""

    def forget(self) -> None:
        """Drop them all."""

    def close(self, timeout_s: float) -> None:
        """Put what is to last where it lasts, within that time: the process ends."""


class EngineLoadError(Exception):
    """The model can't be served as configured. The message says what to do about it."""


Answer = Tokens | Text | Vectors
