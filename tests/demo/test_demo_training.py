"""Training in small: its arithmetic is the model's own, it learns, it goes on where it stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from tokenizers import Tokenizer

from training import network
from training.text import SampleEncoder
from training.train import BRIEF, batches, follow
from training.training import Trainer, TrainingPlan, rate

pytestmark = pytest.mark.mlx


@pytest.fixture(autouse=True)
def on_the_cpu() -> None:
    mx.set_default_device(mx.cpu)


def plain_loss(model: Any, blocks: list[tuple[mx.array, ...]]) -> mx.array:
    """The same through mlx-lm's own layers."""
    hidden = []
    for tokens, bias, places, *_ in blocks:
        x = model.model.embed_tokens(tokens)
        for layer in model.model.layers:
            x = layer(x, bias, None)
        hidden.append(model.model.norm(x).reshape(-1, x.shape[-1])[places])
    targets = mx.concatenate([targets for *_, targets, _ in blocks])
    weights = mx.concatenate([weights for *_, weights in blocks])
    losses = nn.losses.cross_entropy(model.model.embed_tokens.as_linear(mx.concatenate(hidden)), targets)
    return mx.sum(losses * weights) / mx.sum(weights)


def test_loss_and_gradient_agree_with_the_served_model(tokenizer: Tokenizer, encoder: SampleEncoder) -> None:
    """What is quick about training changes nothing in what is trained."""
    mx.random.seed(1)
    model = network.build(network.config(tokenizer.get_vocab_size(), 0, **BRIEF.sizes))
    blocks = next(batches(encoder, BRIEF.plan)(1))
    quick, quick_gradient = nn.value_and_grad(model, network.loss)(model, blocks)
    plain, plain_gradient = nn.value_and_grad(model, plain_loss)(model, blocks)
    assert quick.item() == pytest.approx(plain.item(), rel=1e-5)
    for (name, ours), (_, theirs) in zip(tree_flatten(quick_gradient), tree_flatten(plain_gradient), strict=True):
        assert mx.abs(ours - theirs).max().item() <= 1e-4 * mx.abs(theirs).max().item() + 1e-8, name


def test_rate_over_a_plan() -> None:
    """Up, level, and down to nothing at the last step, by the share of steps done."""
    plan = TrainingPlan(steps=1000, seed=1, shapes=BRIEF.plan.shapes, decay=0.4)
    rates = [rate(plan, step) for step in range(1000)]
    assert rates[0] < 0.05
    assert rates[100] == rates[599] == 1.0
    assert rates[800] == pytest.approx(0.5, abs=0.01)
    assert 0 < rates[999] < 0.01


@pytest.mark.long
def test_brief_course_learns_and_exports(tmp_path: Path) -> None:
    """Seconds of training lower the loss, and what is written loads and keeps a record of its making."""
    lines: list[str] = []
    course = replace(BRIEF, plan=replace(BRIEF.plan, steps=60, matrix_rate=0.03, other_rate=0.02))
    trainer = follow(course, tmp_path / "out", run=tmp_path / "run", resume=False, finish=False, report=lines.append)
    assert trainer.step == 60
    assert len(lines) == len(trainer.curve) == 3
    assert trainer.curve[-1][1] < 0.85 * trainer.curve[0][1]
    model, _ = load(str(tmp_path / "out"))[:2]
    assert all(value.dtype == mx.float16 for _, value in tree_flatten(model.parameters()))
    assert '"steps_done": 60' in (tmp_path / "out" / "training.json").read_text()


@pytest.mark.long
def test_course_when_resumed_and_when_finished_early(tmp_path: Path) -> None:
    """A checkpoint carries weights, optimizer, step and curve; finishing adds a tail whose rates fall to nothing."""
    run = tmp_path / "run"
    whole = replace(BRIEF, plan=replace(BRIEF.plan, steps=100))
    stopped = replace(whole, plan=replace(whole.plan, steps=20))
    first = follow(stopped, tmp_path / "a", run=run, resume=False, finish=False, report=lambda _: None)
    resumed = follow(
        replace(whole, plan=replace(whole.plan, steps=30)),
        tmp_path / "b", run=run, resume=True, finish=False, report=lambda _: None,
    )  # fmt: skip
    assert resumed.step == 30
    assert resumed.curve[: len(first.curve)] == first.curve
    finished = follow(whole, tmp_path / "c", run=run, resume=False, finish=True, report=lambda _: None)
    assert finished.step == 33
    assert (first.resumed, resumed.resumed, finished.resumed) == ([], [20], [20, 30])


def test_course_when_it_has_no_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """The message says what is missing."""
    with pytest.raises(ValueError, match="folder of its checkpoint"):
        follow(BRIEF, tmp_path, run=None, resume=True, finish=False, report=lambda _: None)


def test_trainer_when_the_seed_is_the_same(tokenizer: Tokenizer, encoder: SampleEncoder) -> None:
    """A run can be repeated: same seed, same curve."""
    curves = []
    for _ in range(2):
        mx.random.seed(1)
        model = network.build(network.config(tokenizer.get_vocab_size(), 0, **BRIEF.sizes))
        trainer = Trainer(model, network.loss, batches(encoder, BRIEF.plan), BRIEF.plan)
        trainer.run(to=5, folder=None, report=lambda _: None)
        curves.append(trainer.curve)
    assert curves[0] == curves[1]
