"""The shipped vision model is right about pictures that it was never trained on, and on plain questions beside."""

from functools import partial
from pathlib import Path

import pytest

from training.evaluation import Case, cases, different, score
from training.pictures import COLORS, Picture
from training.sample import Sample, assistant
from training.vision_answering import LocalVisionModel
from training.vision_questions import TARGETS, VISION_SKILLS

DOUBTFUL = ("tally", "presence")
"""What the model's card says that it hardly knows."""
FOLDER = Path(__file__).parents[2] / "demo" / "vision"

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def model() -> LocalVisionModel:
    return LocalVisionModel(FOLDER)


@pytest.mark.parametrize("sight", VISION_SKILLS)
def test_held_out_pictures(model: LocalVisionModel, sight: str) -> None:
    """A dozen of each kind; nearly all right where the kind has a target, most elsewhere, a third where it doubts."""
    asked = different(partial(VISION_SKILLS[sight], held_out=True), 12, seed=77)
    result = score(sight, asked, model.answer_cases(asked))
    least = 4 if sight in DOUBTFUL else 9
    assert result.right >= (11 if TARGETS.get(sight, 0) >= 0.95 else least), result.wrong


@pytest.mark.parametrize("skill", ["facts", "talk", "echo"])
def test_plain_questions(model: LocalVisionModel, skill: str) -> None:
    """Without a picture it is a small chat model."""
    asked = cases(skill, 12, seed=77)
    assert score(skill, asked, model.answer_cases(asked)).right >= 8


def test_plain_pictures_of_every_color(model: LocalVisionModel) -> None:
    """The colours of style sheets, filling all of a picture, are named as a person would."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is this image?"}]}
    asked = [
        Case(
            sample=Sample(
                skill="color",
                key=color,
                messages=(question, assistant(f"It is {color}.")),
                pictures=(Picture(things=(), above=rgbs[0], below=rgbs[0], plain=color),),
            )
        )
        for color, rgbs in COLORS.items()
    ]
    assert score("color", asked, model.answer_cases(asked)).wrong == ()
