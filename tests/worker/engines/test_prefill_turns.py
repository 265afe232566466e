"""Who is computed next: short prompts pass long ones and say their first token soon; long ones still get on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.messages import Delta, GenerateJob, TokenPrompt
from tests.support.engine_runs import job, prepared
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

CHUNK = 16
LONG = [1 + at % 500 for at in range(1600)]


@pytest.fixture(scope="module")
def _loaded(model_folder: Callable[[str], Path]) -> ChatEngine:
    engine = ChatEngine(WorkerConfig(model_path=str(model_folder("qwen3")), served_name="m", prefix_cache_bytes=0))
    engine.load()
    return engine


@pytest.fixture
def engine(_loaded: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatEngine]:
    """With a stream that runs, a long prompt on its way, and chunks of one size."""
    batch = _loaded.batch
    for sizer in (batch.chunk_sizer, batch.short_chunk_sizer):
        monkeypatch.setattr(sizer, "next_size", lambda *, running: CHUNK)
    admit(_loaded, job(1, "a stream", max_tokens=4000, sampling={"ignore_eos": True}))
    for _ in range(4):
        _loaded.step()
    admit(_loaded, job(2, TokenPrompt(LONG), max_tokens=1))
    for _ in range(4):
        _loaded.step()
    yield _loaded
    for number in list(_loaded.running):
        _loaded.cancel(number)
    while _loaded.busy:
        _loaded.step()


def admit(engine: ChatEngine, asked: GenerateJob) -> None:
    engine.admit(prepared(engine, asked))


def covered(engine: ChatEngine) -> int:
    """How much of the long prompt is computed."""
    long = engine.batch.progress
    assert long is not None
    return long.covered


def steps_to_first_token(engine: ChatEngine, number: int) -> int:
    for count in range(1, 100):
        if any(isinstance(one, Delta) and one.job == number for one in engine.step()):
            return count
    raise AssertionError("it says nothing")


@pytest.mark.parametrize("waited", range(4))
def test_short_request_says_its_first_token_as_soon_as_alone(engine: ChatEngine, waited: int) -> None:
    """Two steps, whenever it comes, and none of them holds a chunk of the long prompt."""
    for _ in range(waited):
        engine.step()
    before = covered(engine)
    admit(engine, job(3, TokenPrompt([5] * (CHUNK - 2)), max_tokens=2))
    assert steps_to_first_token(engine, 3) == 2
    assert covered(engine) == before


def test_long_prompt_gets_on_when_short_ones_never_end(engine: ChatEngine) -> None:
    """A new short request with every step: one step in four is a chunk of the long prompt, at least."""
    before, steps = covered(engine), 40
    for number in range(3, 3 + steps):
        admit(engine, job(number, TokenPrompt([5] * 8), max_tokens=1))
        engine.step()
    assert covered(engine) - before >= CHUNK * (steps // 4 - 1)


def test_middling_prompt_passes_a_far_longer_one(engine: ChatEngine) -> None:
    """One of several chunks takes turns with a long one, and does not wait for its end."""
    before = covered(engine)
    admit(engine, job(3, TokenPrompt([7] * (4 * CHUNK)), max_tokens=1))
    assert steps_to_first_token(engine, 3) <= 2 * 4 + 3
    assert before < covered(engine) <= before + 5 * CHUNK
