"""A whole training: tokenizer, model, steps, export. What `scripts/train_chat.py` runs and the suite runs in small."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from models import bpe
from tokenizers import Tokenizer

from training import export, network, text
from training.batches import Packer, Shape
from training.draw import Draw
from training.mixture import LONG, SHORT, stream
from training.training import Batches, Trainer, TrainingPlan, rate

_TOKENIZER_SEED = 7
_FINISH_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Course:
    """What to train and for how long; the defaults are the shipped model's."""

    plan: TrainingPlan
    vocab_size: int = 1024
    texts: int = 8000
    sizes: dict[str, int] = field(default_factory=dict)


FULL = Course(
    plan=TrainingPlan(
        steps=4800, seed=1, shapes=(Shape(rows=14, length=128, learnt=900), Shape(rows=3, length=384, learnt=1000))
    )
)
BRIEF = Course(
    plan=TrainingPlan(
        steps=25, seed=1, shapes=(Shape(rows=4, length=128, learnt=300), Shape(rows=1, length=384, learnt=300))
    ),
    texts=500,
    vocab_size=600,
    sizes={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
)
"""For trying out that everything runs: its model has learnt next to nothing."""


def learn_tokenizer(course: Course) -> Tokenizer:
    """Train the course's tokenizer, from training samples alone."""
    return text.train(_texts(course.texts), vocab_size=course.vocab_size)


def _texts(n: int) -> Iterator[str]:
    renderer = text.Renderer()
    for mix in (SHORT, LONG):
        for sample in itertools.islice(stream(Draw(_TOKENIZER_SEED), mix), n):
            yield renderer.text(sample)


def follow(
    course: Course, out: Path, *, run: Path | None, resume: bool, finish: bool, report: Callable[[str], None]
) -> Trainer:
    """Train and export to `out`. Checkpoints go to `run`; `resume` goes on from there.

    `finish` takes the checkpoint's step for the run's last but a tail, in which the rates fall to nothing.
    """
    mx.set_default_device(mx.cpu)
    mx.random.seed(course.plan.seed)
    tokenizer = learn_tokenizer(course)
    settings = network.config(course.vocab_size, tokenizer.token_to_id(bpe.ENDS[0]), **course.sizes)
    trainer = Trainer(
        network.build(settings), network.loss, batches(text.SampleEncoder(tokenizer), course.plan), course.plan
    )
    plan = train(trainer, course.plan, run=run, resume=resume, finish=finish, report=report)
    record: dict[str, Any] = {"plan": asdict(plan), "vocab_size": course.vocab_size, "finished_early": finish}
    export.write(out, trainer, tokenizer, settings, record, libraries=("mlx", "mlx-lm", "numpy", "tokenizers"))
    return trainer


def batches(encoder: text.SampleEncoder, plan: TrainingPlan) -> Batches:
    """Return what a trainer learns from: the packed rows as arrays."""

    def endless(seed: int) -> Iterator[list[network.Arrays]]:
        for blocks in Packer(encoder, seed=seed, shapes=plan.shapes).blocks():
            yield [network.arrays(block) for block in blocks]

    return endless


def train(
    trainer: Trainer, plan: TrainingPlan, *, run: Path | None, resume: bool, finish: bool, report: Callable[[str], None]
) -> TrainingPlan:
    """Take the trainer through its plan and answer the plan that it followed. Options are those of `follow`."""
    if resume or finish:
        if run is None:
            raise ValueError("a run to go on from needs the folder of its checkpoint")
        trainer.load(run)
    if finish:
        tail = max(1, round(_FINISH_SHARE * trainer.step))
        reached = rate(plan, trainer.step)
        plan = replace(
            plan,
            steps=trainer.step + tail,
            decay=tail / (trainer.step + tail),
            matrix_rate=plan.matrix_rate * reached,
            other_rate=plan.other_rate * reached,
        )
        trainer.follow(plan)
    trainer.run(to=plan.steps, folder=run, report=report)
    return plan
