"""Vision rows say what mlx-vlm says by itself, alone and in any company."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from make_models import VISION_NAMES

from tests.support.engine_runs import run
from tests.support.vision_runs import Part, look, noise, reference
from worker.config import WorkerConfig
from worker.engines.vision.engine import VisionEngine

pytestmark = pytest.mark.mlx

N_TOKENS = 32
FILES = [noise(seed, 40 + 23 * seed, 150 - 17 * seed) for seed in range(6)]
TURNS: tuple[tuple[tuple[Part, ...] | str, ...], ...] = (
    (("What is ", 0, " this?"),),
    ("Hello",),
    ((1, "and", 2, " which is larger?"),),
    (("See ", 3), "A nice one.", "What was it?"),
    (("Look: ", 4), "Yes.", (5, "and this? " + "It is far away. " * 30)),
    ("Tell me of the sea. " * 40,),
)


@lru_cache(maxsize=1)
def loaded(folder: Path) -> VisionEngine:
    engine = VisionEngine(
        WorkerConfig(model_path=str(folder), served_name="m", prefix_cache_bytes=0, feature_cache_bytes=0)
    )
    engine.load()
    return engine


@pytest.mark.parametrize("name", VISION_NAMES)
def test_rows_of_text_and_images_say_what_mlx_vlm_says(name: str, model_folder: Callable[[str], Path]) -> None:
    """Six conversations at once, with no, one or two images, late and early: token for token as mlx-vlm's own."""
    folder = model_folder(name)
    jobs = [look(number, FILES, *turns, max_tokens=N_TOKENS) for number, turns in enumerate(TURNS)]
    together = run(loaded(folder), jobs, files=FILES)
    alone = [run(loaded(folder), [job], files=FILES)[job.job].tokens[0] for job in jobs]
    expected = [reference(folder, FILES, *turns, max_tokens=N_TOKENS) for turns in TURNS]
    assert alone == expected
    assert [together[job.job].tokens[0] for job in jobs] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(TURNS)
