"""Training of the vision model in small: its arithmetic is the served model's own, it learns, its folder loads."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tokenizers import Tokenizer

from training import init_from_chat, pretrain_vision, text, vision_network
from training.batches import Shape
from training.draw import Draw
from training.evaluation import different, score
from training.mixture import stream
from training.pictures import CELLS, COLORS, SHAPES, Picture, Thing, compose, in_its_size
from training.sample import Sample
from training.text import Renderer, SampleEncoder
from training.train_vision import BRIEF, CHAT, follow
from training.vision_answering import LocalVisionModel
from training.vision_batches import PIXELS, TEXT, PatchCutter, VisionPacker, expanded
from training.vision_questions import VISION_SKILLS, talk

pytestmark = pytest.mark.mlx

SHAPE = Shape(rows=2, length=224, learnt=200, pictures=5)


@pytest.fixture(autouse=True)
def on_the_cpu() -> None:
    mx.set_default_device(mx.cpu)


@pytest.fixture(scope="module")
def settings(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {token: tokenizer.token_to_id(token) for token in text.CONTROL}
    return vision_network.config(tokenizer.get_vocab_size(), ids, vision=BRIEF.vision_sizes, language=BRIEF.sizes)


@pytest.fixture
def model(settings: dict[str, Any]) -> Any:
    mx.random.seed(1)
    return vision_network.build(settings)


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that has been trained for seconds."""
    out: Path = tmp_path_factory.mktemp("vision")
    course = replace(BRIEF, plan=replace(BRIEF.plan, steps=50, matrix_rate=0.03, other_rate=0.02))
    follow(course, out, run=None, resume=False, finish=False, report=lambda _: None)
    return out


def test_tower_sees_what_the_served_one_sees(model: Any) -> None:
    """What is quick about training changes nothing in image tokens and gradients, whatever the shape of pictures."""
    source = Draw(1)
    for pixels in ((100, 100), (150, 90)):
        cut, grid = PatchCutter()([compose(source, held_out=False) for _ in range(3)], pixels)
        patches, grids = mx.array(cut), mx.array([[1, *grid]] * 3)

        def quick(tower: Any, patches: mx.array = patches, grid: tuple[int, int] = grid) -> mx.array:
            return vision_network.see(tower, patches, grid)

        def served(tower: Any, patches: mx.array = patches, grids: mx.array = grids) -> mx.array:
            return tower(patches.reshape(-1, patches.shape[-1]), grids)

        ours, theirs = quick(model.vision_tower), served(model.vision_tower)
        assert mx.abs(ours.reshape(theirs.shape) - theirs).max().item() < 1e-4
        gradients = [_gradient(model.vision_tower, way) for way in (quick, served)]
        for (name, mine), (_, other) in zip(*gradients, strict=True):
            assert mx.abs(mine - other).max().item() <= 1e-3 * mx.abs(other).max().item() + 1e-6, name


def _gradient(tower: Any, way: Callable[[Any], mx.array]) -> list[tuple[str, mx.array]]:
    _, gradient = nn.value_and_grad(tower, lambda tower: mx.sum(way(tower) ** 2))(tower)
    found: list[tuple[str, mx.array]] = tree_flatten(gradient)
    return found


def test_loss_agrees_with_the_served_model(model: Any, encoder: SampleEncoder) -> None:
    """A row's loss is what the served model says of the same conversation, which it reads and counts by itself."""
    pad = model.config.image_token_id
    source = Draw(2)
    while len((sample := talk(source, held_out=False)).pictures) < 2:
        pass
    encoded = encoder.encode(sample)
    assert len(encoded.tokens) < 170
    batch = _alone(encoder, pad, sample)
    ours = vision_network.loss(model, batch).item()

    grids = mx.array([[1, *batch.grid]] * 2)
    whole, _ = expanded(encoded, pad, (batch.grid[0] // 2, batch.grid[1] // 2))
    tokens = mx.array([whole.tokens])
    output = model(tokens, batch.patches.reshape(-1, batch.patches.shape[-1]), image_grid_thw=grids)
    logits = output.logits[0]
    told = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).astype(mx.float32)
    places = [place for place, learnt in enumerate(whole.learnt) if learnt]
    theirs = -np.mean([told[place - 1, whole.tokens[place]].item() for place in places])
    assert ours == pytest.approx(theirs, rel=1e-3)


def _alone(encoder: SampleEncoder, pad: int, sample: Sample) -> vision_network.VisionBatch:
    """The batch of nothing but this conversation."""
    shape = Shape(rows=1, length=256, learnt=200, pictures=len(sample.pictures))
    album = VisionPacker(encoder, pad=pad, seed=1, shape=shape, samples=iter([sample]))
    return next(album.batches())


def test_positions_agree_with_the_served_model(model: Any, encoder: SampleEncoder) -> None:
    """Qwen2-VL's own counting: an image's tokens on a grid, the text behind the largest of them."""
    pad = model.config.image_token_id
    source = Draw(3)
    for grid in ((4, 4), (3, 5), (5, 2)):
        sample = talk(source, held_out=False)
        whole, positions = expanded(encoder.encode(sample), pad, grid)
        grids = mx.array([[1, 2 * grid[0], 2 * grid[1]]] * len(sample.pictures))
        theirs, _ = model.language_model.get_rope_index(mx.array([whole.tokens]), grids)
        assert (np.array(theirs)[:, 0] == positions).all()


def test_batches_when_the_seed_is_the_same(encoder: SampleEncoder, settings: dict[str, Any]) -> None:
    """Training sees the same rows and pixels for the same seed; every picture has its tokens, and few are empty."""
    pad = settings["image_token_id"]
    left, right = (VisionPacker(encoder, pad=pad, seed=4, shape=SHAPE).batches() for _ in range(2))
    for _ in range(4):
        mine, other = next(left), next(right)
        assert mx.array_equal(mine.tokens, other.tokens)
        assert mx.array_equal(mine.patches, other.patches)
        each = mine.grid[0] * mine.grid[1] // 4
        images = int(mx.sum(mine.tokens == pad).item())
        assert images % each == 0
        assert 0 < images <= SHAPE.pictures * each
        rows = mine.tokens.size
        assert sorted(mine.sources.tolist())[rows - images :] == [*range(rows, rows + images)]
        assert mx.mean(mine.weights).item() > 0.5


@pytest.mark.parametrize("pixels", [(64, 64), (112, 112), (288, 518), (500, 280), (1000, 1000)])
def test_pictures_when_cut_are_about_sixteen_tokens(pixels: tuple[int, int]) -> None:
    """Whatever the size that a client sends, a picture costs about as much."""
    _, (down, across) = PatchCutter()([Picture(things=(), above=(9, 9, 9), below=(9, 9, 9))], pixels)
    assert PatchCutter().tokens(pixels) == down * across // 4
    assert 10 <= down * across // 4 <= 20
    assert abs(down * across * 14**2 - PIXELS) < 0.4 * PIXELS


def test_labels_of_the_first_lessons() -> None:
    """One token in the middle of a thing's ninth tells its colour, shape and third; all others have nothing to tell."""
    star = Thing(color="green", shape="star", cell="right", rgb=(0, 128, 0), size=0.9, right=0, down=0, turn=0)
    picture = Picture(things=(star,), above=(255, 255, 255), below=(255, 255, 255))
    told = [list(COLORS).index("green"), SHAPES.index("star"), CELLS.index("right")]
    for grid, token in (((4, 4), (2, 3)), ((3, 5), (1, 4))):
        labels = pretrain_vision.labelled(picture, grid).reshape(*grid, 3)
        assert labels[token].tolist() == told
        labels[token] = [len(COLORS), len(SHAPES), len(CELLS)]
        assert (labels == [len(COLORS), len(SHAPES), len(CELLS)]).all()


def test_first_lessons_are_learnt(model: Any, tokenizer: Tokenizer) -> None:
    """The tower's loss falls; a token that shows red is more like that word than like other colours."""
    lines: list[str] = []
    plan = replace(BRIEF.first, steps=60, matrix_rate=0.03, other_rate=0.02)
    trainer = pretrain_vision.pretrain_tower(
        model, PatchCutter(), tokenizer, plan, run=None, resume=False, report=lines.append
    )
    first, *_, last = (float(line.split("loss ")[1].split()[0]) for line in lines)
    assert last < 0.85 * first
    plain = [Picture(things=(), above=rgb[0], below=rgb[0], plain=name) for name, rgb in COLORS.items()]
    patches, grid = PatchCutter()(plain, (112, 112))
    seen = vision_network.see(model.vision_tower, mx.array(patches), grid)
    read = np.array(trainer.model.read(seen)).reshape(len(COLORS), -1, 25)[..., : len(COLORS)].mean(axis=1)
    assert (read.argmax(axis=1) == np.arange(len(COLORS))).sum() >= 5
    # About as large as what the layers add to it.
    assert 10 < mx.sqrt(mx.mean(seen**2)).item() < 90


def test_language_taken_over_from_the_chat_model() -> None:
    """Right from the start, and without its norms of queries and keys, the words of demo/chat are hardly a surprise."""
    tokenizer = Tokenizer.from_file(str(CHAT / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in text.CONTROL}
    settings = vision_network.config(tokenizer.get_vocab_size(), ids, vision=BRIEF.vision_sizes, language={})
    model: Any = vision_network.build(settings)
    shape = Shape(rows=4, length=224, learnt=500, pictures=1)
    words = stream(Draw(4), TEXT, chained=tuple(TEXT))
    batch = next(
        VisionPacker(SampleEncoder(tokenizer), pad=ids["<|image_pad|>"], seed=1, shape=shape, samples=words).batches()
    )
    before = vision_network.loss(model, batch).item()
    taken = init_from_chat.copy_weights(model, CHAT, settings, tokenizer)
    assert taken == hashlib.sha256((CHAT / "model.safetensors").read_bytes()).hexdigest()
    assert before > 5
    assert vision_network.loss(model, batch).item() < 1.5
    with pytest.raises(ValueError, match="hidden_size"):
        init_from_chat.copy_weights(model, CHAT, {**settings, "hidden_size": 64}, tokenizer)


@pytest.mark.long
def test_brief_course_writes_what_a_server_needs(brief: Path) -> None:
    """Half-precision weights, the processor's settings and a record with the loss of both parts."""
    weights = mx.load(str(brief / "model.safetensors"))
    assert {value.dtype for value in weights.values()} == {mx.float16}
    record = json.loads((brief / "training.json").read_text())
    assert record["steps_done"] == 50
    assert record["loss"][-1][1] < 0.85 * record["loss"][0][1]
    assert record["first_sight"]["loss"][-1][0] == BRIEF.first.steps
    assert record["first_sight"]["resumed_at_steps"] == []
    assert json.loads((brief / "preprocessor_config.json").read_text())["max_pixels"] == PIXELS


def test_course_when_it_is_stopped_before_words_begin(tmp_path: Path) -> None:
    """The tower's lessons are kept: whoever goes on has the very weights of a run without a break."""
    course = replace(BRIEF, plan=replace(BRIEF.plan, steps=3))
    options: dict[str, Any] = {"run": tmp_path / "run", "finish": False, "report": lambda _: None}
    whole = follow(course, tmp_path / "a", resume=False, **options)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    resumed = follow(course, tmp_path / "b", resume=True, **options)
    assert resumed.resumed == []
    for (name, left), (_, right) in zip(
        tree_flatten(whole.model.parameters()), tree_flatten(resumed.model.parameters()), strict=True
    ):
        assert mx.array_equal(left, right), name


@pytest.mark.long
def test_brief_model_answers_through_the_served_code(brief: Path) -> None:
    """mlx-vlm's own model and processor load the folder and say something about one, two and no pictures."""
    seeing = LocalVisionModel(brief)
    for skill in ("color", "pair", "turns"):
        asked = different(lambda source, name=skill: VISION_SKILLS[name](source, held_out=True), 2, seed=1)
        assert score(skill, asked, seeing.answer_cases(asked)).asked == 2


@pytest.mark.long
def test_prompt_agrees_with_the_server(brief: Path, encoder: SampleEncoder, settings: dict[str, Any]) -> None:
    """What is trained on are the tokens that mlx-vlm's processor makes of the same messages and pictures."""
    seeing = LocalVisionModel(brief)
    source = Draw(7)
    for _ in range(5):
        sample = talk(source, held_out=False, most=3)
        images = [in_its_size(picture).resize((112, 112)) for picture in sample.pictures]
        theirs = seeing.processor(text=[Renderer().text(sample)], images=images)["input_ids"]
        ours, _ = expanded(encoder.encode(sample), settings["image_token_id"], (4, 4))
        assert np.array(theirs)[0].tolist() == ours.tokens
    assert len(tree_flatten(vision_network.build(settings).parameters())) == len(
        mx.load(str(brief / "model.safetensors"))
    )
