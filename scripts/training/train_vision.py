"""A whole training of the vision model: what `scripts/train_vision.py` runs and the suite runs in small."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from training import export, init_from_chat, pretrain_vision, text, train, vision_network
from training.batches import Shape
from training.training import Trainer, TrainingPlan
from training.vision_batches import PROCESSOR, PatchCutter, VisionPacker

CHAT = Path(__file__).resolve().parents[2] / "demo" / "chat"


@dataclass(frozen=True, kw_only=True)
class VisionCourse(train.Course):
    """What to train and for how long; the defaults are the shipped model's. `sizes` are those of its language model.

    `first` is the plan of the tower's own lessons. `language` is the folder of a chat model to start from, or None.
    """

    first: TrainingPlan
    language: Path | None
    vision_sizes: dict[str, int] = field(default_factory=dict)


FULL = VisionCourse(
    first=TrainingPlan(steps=2000, seed=1, shapes=(Shape(rows=0, length=0, learnt=0, pictures=32),)),
    plan=TrainingPlan(
        steps=4500,
        seed=1,
        shapes=(Shape(rows=10, length=224, learnt=900, pictures=28),),
        matrix_rate=0.007,
        other_rate=0.001,
    ),
    language=CHAT,
)
BRIEF = VisionCourse(
    first=TrainingPlan(steps=5, seed=1, shapes=(Shape(rows=0, length=0, learnt=0, pictures=4),)),
    plan=TrainingPlan(steps=20, seed=1, shapes=(Shape(rows=3, length=224, learnt=300, pictures=8),)),
    language=None,
    texts=train.BRIEF.texts,
    vocab_size=train.BRIEF.vocab_size,
    sizes={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2},
    vision_sizes={"depth": 1, "embed_dim": 32, "num_heads": 2},
)
"""For trying out that everything runs: its model has learnt next to nothing."""


def follow(
    lessons: VisionCourse, out: Path, *, run: Path | None, resume: bool, finish: bool, report: Callable[[str], None]
) -> Trainer:
    """Train and export to `out`, as the chat model's course does. Going on is possible once the tower has learnt."""
    mx.set_default_device(mx.cpu)
    mx.random.seed(lessons.plan.seed)
    tokenizer = train.learn_tokenizer(lessons)
    ids = {token: tokenizer.token_to_id(token) for token in text.CONTROL}
    settings = vision_network.config(lessons.vocab_size, ids, vision=lessons.vision_sizes, language=lessons.sizes)
    encoder = text.SampleEncoder(tokenizer)

    def batches(seed: int) -> Iterator[vision_network.VisionBatch]:
        (shape,) = lessons.plan.shapes
        return VisionPacker(encoder, pad=ids["<|image_pad|>"], seed=seed, shape=shape).batches()

    model = vision_network.build(settings)
    record: dict[str, Any] = {}
    if lessons.language is not None:
        record["language_sha256"] = init_from_chat.copy_weights(model, lessons.language, settings, tokenizer)
    sight = run and run / "first_sight"
    goes_on = (resume or finish) and sight is not None
    first = pretrain_vision.pretrain_tower(
        model, PatchCutter(), tokenizer, lessons.first, run=sight, resume=goes_on, report=report
    )
    record["first_sight"] = _record(first, lessons.first)
    # What it has learnt to see, words would spoil before they can tell what they need of it.
    model.vision_tower.freeze()
    trainer = Trainer(model, vision_network.loss, batches, lessons.plan)
    begun = run is not None and (run / "checkpoint.safetensors").exists()
    plan = train.train(trainer, lessons.plan, run=run, resume=resume and begun, finish=finish, report=report)
    record = {"plan": asdict(plan), "vocab_size": lessons.vocab_size, "finished_early": finish, **record}
    libraries = ("mlx", "mlx-lm", "mlx-vlm", "numpy", "pillow", "tokenizers")
    export.write(out, trainer, tokenizer, settings, record, libraries=libraries)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", **PROCESSOR}
    export.write_json(out / "preprocessor_config.json", processor)
    return trainer


def _record(first: Trainer, plan: TrainingPlan) -> dict[str, Any]:
    return {
        "plan": asdict(plan),
        "resumed_at_steps": [step for step in first.resumed if step < plan.steps],
        "training_s": round(first.trained_s),
        "loss": first.curve,
    }
