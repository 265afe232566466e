"""The bundled vision model through the whole pool: each client is told what is in its own picture."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from stress.running_pool import RunningPool

from training.answering import client_messages
from training.evaluation import Case, ModelAnswer, cases, different
from training.vision_questions import VISION_SKILLS

DEMO = Path(__file__).parents[2] / "demo" / "vision"


@pytest.fixture(scope="module")
def pool() -> Iterator[RunningPool]:
    """A pool that serves demo/vision alone."""
    running = RunningPool(("--model-type", "vision", "--model-path", str(DEMO)))
    running.wait_healthy()
    yield running
    running.stop()
    running.check_logs("")
    running.remove()


async def ask(api: openai.AsyncOpenAI, case: Case) -> ModelAnswer:
    """One held-out question, streamed."""
    messages: Any = [*client_messages(case)]
    stream = await api.chat.completions.create(
        model="vision", messages=messages, temperature=0, max_tokens=100, stream=True
    )
    return ModelAnswer(content="".join([chunk.choices[0].delta.content or "" async for chunk in stream]))


def held_out(sight: str, n: int) -> list[Case]:
    return different(partial(VISION_SKILLS[sight], held_out=True), n, seed=5)


async def wrong(pool: RunningPool, asked: list[Case]) -> list[tuple[Case, ModelAnswer]]:
    """Ask everything at once."""
    async with openai.AsyncOpenAI(base_url=pool.base_url, api_key="any", max_retries=0) as api:
        answers = await asyncio.gather(*(ask(api, case) for case in asked))
    return [(case, answer) for case, answer in zip(asked, answers, strict=True) if not case.is_right(answer)]


async def test_each_of_32_pictures_has_its_own_colors(pool: RunningPool) -> None:
    """Asked all at once: pictures of many sizes never change places. The model itself errs in one of thirty."""
    asked = held_out("color", 32)
    assert len({case.sample.pictures for case in asked}) == 32
    assert len(await wrong(pool, asked)) <= 2


async def test_colors_while_text_requests_run_beside(pool: RunningPool) -> None:
    """Rows with and without a picture share a batch, and each is answered for itself."""
    pictures, words = held_out("color", 12), cases("facts", 12, seed=5)
    asked = [case for both in zip(pictures, words, strict=True) for case in both]
    missed = await wrong(pool, asked)
    assert len([case for case, _ in missed if case.sample.pictures]) <= 1, missed
    assert len([case for case, _ in missed if not case.sample.pictures]) <= 3, missed


async def test_two_turns_about_one_picture(pool: RunningPool) -> None:
    """The second question is answered from the picture of the first one, or from the newer one if there is one."""
    asked = held_out("turns", 12)
    assert all(len(case.messages) >= 3 for case in asked)
    assert len(await wrong(pool, asked)) <= 2


async def test_two_pictures_in_one_turn(pool: RunningPool) -> None:
    """The first and the second are told apart, as far as the model can: it errs in one of five."""
    assert len(await wrong(pool, held_out("pair", 12))) <= 4
