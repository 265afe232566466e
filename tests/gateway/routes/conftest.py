"""A real aiohttp server over a pool whose one model follows a script."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.access.gate import GATE, Gate
from gateway.access.keys.key import UNLIMITED
from gateway.access.keys.keyring import Keyring
from gateway.access.usage import UsageLedger as KeyUsage
from gateway.bodies.parsing import PARSING, ParsingTurns
from gateway.context import HTTP, IMAGE_RESOLVER, POOL, RESPONSE_COUNTS, HttpSettings
from gateway.dispatch.jobs.stream import merge_deltas
from gateway.http.middleware import MIDDLEWARES
from gateway.job_failure import JobFailed
from gateway.media.image_resolver import ImageResolver
from gateway.memory_account import MEMORY, MemoryAccount, MemoryShare
from gateway.routes import chat, completions, docs, info, models, tokenize
from gateway.telemetry.logs import TextLines
from protocol.messages import Accepted, Delta, Job, Kind, Ready, Usage

READY = Ready(
    context_length=4096, vocab_size=1000, family="qwen3", description="A small one", tags=["local", "chat"],
    capabilities=["chat", "tools"], weights_bytes=0, load_s=0, warmup_enabled=True, warmup_s=0,
)  # fmt: skip

Script = Callable[["Played"], Awaitable[None]]


@dataclass(kw_only=True)
class FakeModel:
    name: str = "small"
    source: str = "org/small-4bit"
    kind: Kind = Kind.CHAT
    created: int = 1_700_000_000
    state: str = "ready"
    replicas: int = 1
    ready: Ready | None = READY
    aliases: tuple[str, ...] = ("gpt-x",)
    base: None = None

    @property
    def variants(self) -> "list[FakeModel]":
        return [self]


class FakeStream:
    """A job's stream as routes know it, fed by a script."""

    def __init__(self, choices: int) -> None:
        self.usage: Usage | None = None
        self.answer: Any = None
        self.accepted_as: Accepted | None = None
        self.failure: JobFailed | None = None
        self.pending: list[Any] = []
        self.choices = choices
        self.changed = asyncio.Condition()
        self.collecting = False

    @property
    def ended(self) -> bool:
        return self.usage is not None or self.answer is not None

    async def wait(self, ready: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: ready() or self.failure is not None)
        if self.failure is not None and (self.collecting or not self.pending):
            raise self.failure

    @property
    def prompt_tokens(self) -> int:
        return self.accepted_as.prompt_tokens if self.accepted_as is not None else 0

    async def wait_accepted(self) -> Accepted:
        await self.wait(lambda: self.accepted_as is not None)
        assert self.accepted_as is not None
        return self.accepted_as

    async def next_deltas(self) -> list[Delta] | None:
        await self.wait(lambda: bool(self.pending) or self.ended)
        taken, self.pending = self.pending, []
        async with self.changed:
            self.changed.notify_all()
        return taken or None

    async def collect_all(self) -> list[Delta]:
        self.collecting = True
        async with self.changed:
            self.changed.notify_all()
        await self.wait(lambda: self.ended)
        merged = {delta.choice: delta for delta in merge_deltas(self.pending, choices=self.choices)}
        return [merged.get(at) or Delta(job=0, attempt=0, choice=at, tokens=[]) for at in range(self.choices)]

    async def wait_result(self) -> Any:
        await self.wait(lambda: self.ended)
        return self.answer


@dataclass(kw_only=True)
class Played:
    """One job in the fake pool, with what a script does to its stream. Every step is seen before the next."""

    job: Any
    stream: FakeStream
    buffers: list[bytes] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def accept(self) -> None:
        prompt = [7, 8, 9] if getattr(self.job, "tell_prompt", False) else []
        await self._change(accepted_as=Accepted(job=0, attempt=0, prompt_tokens=3, prompt=prompt))

    async def say(self, text: str = "", **fields: Any) -> None:
        """A delta; returns once a streaming handler has taken it."""
        delta = {"job": 0, "attempt": 0, "choice": 0, "tokens": [1], "text": text} | fields
        await self.mumble(Delta(**delta))

    async def mumble(self, anything: Any) -> None:
        self.stream.pending.append(anything)
        await self._change()
        async with self.stream.changed:
            await self.stream.changed.wait_for(lambda: not self.stream.pending or self.stream.collecting)

    async def done(self, **fields: Any) -> None:
        counts = {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1, "reasoning_tokens": 0}
        await self._change(usage=Usage(**(counts | fields)))

    async def answer(self, answer: Any) -> None:
        await self._change(answer=answer)

    async def fail(self, code: str, message: str = "words", **fields: Any) -> None:
        await self._change(failure=JobFailed(code, message, **fields))

    async def _change(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self.stream, name, value)
        async with self.stream.changed:
            self.stream.changed.notify_all()


async def hello(play: Played) -> None:
    """The default script: two words per choice."""
    await play.accept()
    for choice in range(getattr(play.job, "n", 1)):
        await play.say("Hello", choice=choice)
        await play.say(" world", choice=choice)
        await play.say(choice=choice, tokens=[], finish="stop")
    await play.done()


class FakePool:
    def __init__(self) -> None:
        self.served = [FakeModel()]
        self.script: Script = hello
        self.played: list[Played] = []
        self.asked = asyncio.Event()
        self.most_at_once = 0
        self.running = 0

    def models(self) -> list[FakeModel]:
        return self.served

    def find_model(self, name: str | None, kind: Kind | None, capability: str = "") -> FakeModel:
        for model in self.served:
            if kind in (None, model.kind) and name in (None, model.name, model.source, *model.aliases):
                return model
        raise JobFailed("model_not_found", f"The model {str(name)[:100]!r} does not exist.", param="model")

    @asynccontextmanager
    async def run_job(
        self,
        model: FakeModel,
        job: Job,
        buffers: Sequence[bytes] = (),
        *,
        cache_key: str | None = None,
        share: MemoryShare | None = None,
    ) -> AsyncIterator[FakeStream]:
        self.cache_key = cache_key
        play = Played(job=job, buffers=[*buffers], stream=FakeStream(getattr(job, "n", 1)))
        self.played.append(play)
        self.asked.set()
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        task = asyncio.ensure_future(self.script(play))
        try:
            yield play.stream
        finally:
            self.running -= 1
            play.left.set()
            task.cancel()


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def http_settings() -> HttpSettings:
    """Overridden by tests that need another clock."""
    return HttpSettings()


@pytest.fixture
async def client(
    pool: FakePool, http_settings: HttpSettings
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application(middlewares=MIDDLEWARES, client_max_size=100_000)
    app[GATE] = Gate(auth=False, keyring=Keyring(None), usage=KeyUsage(UNLIMITED))
    app[RESPONSE_COUNTS] = Counter()
    app[POOL] = pool  # type: ignore[assignment]
    app[HTTP] = http_settings
    app[IMAGE_RESOLVER] = ImageResolver(remote=None)
    app[MEMORY], app[PARSING] = MemoryAccount(), ParsingTurns()
    for module in (chat, completions, models, info, tokenize, docs):
        module.setup(app)

    async def broken(_request: web.Request) -> web.Response:
        raise ValueError("/secret/path")

    app.router.add_get("/broken", broken)
    server = TestServer(app)
    await server.start_server(access_log=None)
    async with TestClient(server) as connected:
        yield connected


class Collected(logging.Handler):
    """Keeps formatted lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.grown = asyncio.Event()
        self.setFormatter(TextLines())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        self.grown.set()

    async def wait_for(self, text: str) -> str:
        """The first line that holds `text`, now or within five seconds."""
        async with asyncio.timeout(60):
            while not (found := [line for line in self.lines if text in line]):
                self.grown.clear()
                await self.grown.wait()
        return found[0]


@pytest.fixture
def log() -> Iterator[Collected]:
    """Everything logged from here on, as text lines."""
    collected, root = Collected(), logging.getLogger()
    before = root.level
    root.addHandler(collected)
    root.setLevel(logging.INFO)
    yield collected
    root.removeHandler(collected)
    root.setLevel(before)
