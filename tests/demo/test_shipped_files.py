"""The files of the shipped models: small enough, as their records say, and those that the scripts write."""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from training import train, train_vision
from training.text import TEMPLATE
from training.vision_batches import PROCESSOR

DEMO = Path(__file__).parents[2] / "demo"
LARGEST_BYTES = 12_000_000
COURSES = {"chat": train.FULL, "vision": train_vision.FULL}
LIBRARIES = {"chat": {"mlx", "mlx-lm", "numpy", "tokenizers"}, "vision": {"mlx", "mlx-vlm", "numpy", "tokenizers"}}


@pytest.fixture(params=COURSES)
def name(request: pytest.FixtureRequest) -> str:
    """A model's."""
    chosen: str = request.param
    return chosen


def record(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEMO / name / "training.json").read_text())
    return content


def test_weights_are_small_and_half_precision(name: str) -> None:
    """The repository carries them: at most 12 MB, two bytes a number."""
    weights = DEMO / name / "model.safetensors"
    assert weights.stat().st_size <= LARGEST_BYTES
    assert {value.dtype for value in mx.load(str(weights)).values()} == {mx.float16}


def test_record_is_of_these_weights(name: str) -> None:
    """Weights, seed, plan, versions and loss curve belong together, and come from one run of the script as it is."""
    kept, plan = record(name), COURSES[name].plan
    assert kept["weights_sha256"] == hashlib.sha256((DEMO / name / "model.safetensors").read_bytes()).hexdigest()
    assert (kept["plan"]["seed"], kept["plan"]["steps"]) == (plan.seed, plan.steps)
    assert (kept["resumed_at_steps"], kept["finished_early"]) == ([], False)
    steps = [step for step, _ in kept["loss"]]
    assert steps == sorted(steps)
    assert steps[-1] == kept["steps_done"] == plan.steps
    assert kept["loss"][-1][1] < 0.1 * kept["loss"][0][1]
    assert set(kept["versions"]) >= LIBRARIES[name]


def test_tokenizer_and_template_are_the_script_s(name: str) -> None:
    """Whoever trains again gets the very files that are shipped, and both models read alike."""
    tokenizer = train.learn_tokenizer(COURSES[name])
    assert json.loads((DEMO / name / "tokenizer.json").read_text()) == json.loads(tokenizer.to_str())
    assert (DEMO / name / "chat_template.jinja").read_text() == TEMPLATE.read_text()
    assert (DEMO / "vision" / "tokenizer.json").read_bytes() == (DEMO / "chat" / "tokenizer.json").read_bytes()


def test_processor_cuts_pictures_as_in_training() -> None:
    """A server reads from the folder what the trainer has used."""
    kept = json.loads((DEMO / "vision" / "preprocessor_config.json").read_text())
    assert {key: kept[key] for key in PROCESSOR} == dict(PROCESSOR)
