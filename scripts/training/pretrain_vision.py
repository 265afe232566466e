"""The vision tower's first lessons: to tell what is in each ninth of a picture, before any word is learnt.

Words are few for each picture; this tells the tower of all of it, and so costs minutes where words alone take hours.
What the lessons need beside the tower is thrown away after them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training import fast_ops
from training.draw import Draw
from training.pictures import CELLS, COLORS, SHAPES, Picture, compose, size
from training.training import Trainer, TrainingPlan
from training.vision_network import MERGE, see

Cut = Callable[[list[Picture], tuple[int, int]], tuple[NDArray[np.float32], tuple[int, int]]]
"""From pictures, with their width and height in pixels, to patches and how many there are down and across."""
LabelledBatch = tuple[mx.array, tuple[int, int], mx.array]
"""Patches, their grid, and what each image token is to tell: (pictures x tokens, 3) of colour, shape and third."""
_KINDS = (len(COLORS) + 1, len(SHAPES) + 1, len(CELLS) + 1)
"""Classes of each label; the last of each stands for nothing."""
_WEIGHT = 3.0
"""Of a token that tells of a thing, beside the many that have nothing to tell."""
_SHARPNESS = 20.0
"""Of the choice between classes: tokens and words are compared by the cosine of their angle."""
_STRENGTH = 30.0
"""Mean size of an image token's numbers: about what the language model's layers add to them, or it would be buried."""


class TowerPretraining(nn.Module):  # type: ignore[misc] # MLX has no complete types
    """The tower, and the words that its tokens are to be sums of: directions (classes of all kinds, width)."""

    def __init__(self, tower: nn.Module, words: mx.array) -> None:
        super().__init__()
        self.tower = tower
        self._words = words

    def read(self, seen: mx.array) -> mx.array:
        """Return logits of the classes of all kinds, (tokens, classes): how much of each word is in a token."""
        seen = seen.reshape(-1, seen.shape[-1])
        lengths = mx.linalg.norm(seen, axis=-1, keepdims=True)
        return _SHARPNESS * (seen / lengths) @ self._words.T


def loss(pupil: TowerPretraining, lesson: LabelledBatch) -> mx.array:
    """Return the mean cross-entropy of three labels over tokens, those that tell of a thing counting more."""
    patches, grid, labels = lesson
    read = pupil.read(see(pupil.tower, patches, grid))
    weights = mx.where(labels[:, 2] < len(CELLS), _WEIGHT, 1.0)
    weights = weights / mx.sum(weights)
    total = mx.array(0.0)
    start = 0
    for kind, classes in enumerate(_KINDS):
        total = total + fast_ops.cross_entropy(read[:, start : start + classes], labels[:, kind], weights)[0]
        start += classes
    return total


def labelled_batches(cut: Cut, *, seed: int, pictures: int) -> Iterator[LabelledBatch]:
    """Yield so many pictures for each step, without end and the same for the same seed."""
    source = Draw(seed)
    while True:
        pixels = size(source)
        shown = [compose(source, held_out=False) for _ in range(pictures)]
        patches, grid = cut(shown, pixels)
        down, across = grid[0] // MERGE, grid[1] // MERGE
        labels = np.concatenate([labelled(picture, (down, across)) for picture in shown])
        yield mx.array(patches), grid, mx.array(labels)


def labelled(picture: Picture, grid: tuple[int, int]) -> NDArray[np.int32]:
    """Return what is to be told at each image token, shape (tokens, 3): numbers of colour, shape and third.

    Of each thing there is one token that tells, the one in the middle of its ninth of the picture: a language model can
    then count things by counting tokens.
    """
    down, across = grid
    nothing = [kind - 1 for kind in _KINDS]
    if picture.plain:
        nothing[0] = list(COLORS).index(picture.plain)
    labels = np.tile(np.array(nothing, dtype=np.int32), (down, across, 1))
    for thing in picture.things:
        third = CELLS.index(thing.cell)
        row, column = divmod(third, 3)
        token = int((row + 0.5) * down / 3), int((column + 0.5) * across / 3)
        labels[token] = (list(COLORS).index(thing.color), SHAPES.index(thing.shape), third)
    return labels.reshape(-1, 3)


def pretrain_tower(
    model: Any,
    cut: Cut,
    tokenizer: Tokenizer,
    plan: TrainingPlan,
    *,
    run: Path | None,
    resume: bool,
    report: Callable[[str], None],
) -> Trainer:
    """Train the model's tower, by the plan and with as many pictures a step as its one shape says.

    An image token becomes the sum of the language model's words for what it tells: that one meets words that it knows,
    where it would else have to learn a language from nothing. Checkpoints go to `run`; `resume` goes on from there.
    """
    (shape,) = plan.shapes
    pupil = TowerPretraining(
        model.vision_tower, _words(np.array(model.language_model.model.embed_tokens.weight), tokenizer)
    )
    trainer = Trainer(pupil, loss, lambda seed: labelled_batches(cut, seed=seed, pictures=shape.pictures), plan)
    if resume and run is not None:
        trainer.load(run)
    trainer.run(to=plan.steps, folder=run, report=lambda line: report(f"first sight: {line}"))
    _strengthen(model.vision_tower, cut)
    return trainer


def _strengthen(tower: Any, cut: Cut) -> None:
    """Make image tokens as large as they have to be for the language model."""
    patches, grid, _ = next(labelled_batches(cut, seed=0, pictures=100))
    last = tower.merger.mlp[-1]
    scale = _STRENGTH / mx.sqrt(mx.mean(see(tower, patches, grid) ** 2))
    last.weight, last.bias = last.weight * scale, last.bias * scale
    mx.eval(last.parameters())


def _words(embeddings: NDArray[np.float32], tokenizer: Tokenizer) -> mx.array:
    """Return a direction for each class, (classes, width): at right angles, else as near their words as can be.

    `top` and `top left` share a token: as they are, they would be hard to tell apart.
    """

    def direction(words: str) -> NDArray[np.float64]:
        total: NDArray[np.float64] = embeddings[tokenizer.encode(f" {words}", add_special_tokens=False).ids].sum(axis=0)
        return np.asarray(total / np.linalg.norm(total), dtype=np.float64)

    names = (*COLORS, "no color", *SHAPES, "no shape", *CELLS, "nothing")
    left, _, right = np.linalg.svd(np.stack([direction(name) for name in names]), full_matrices=False)
    return mx.array((left @ right).astype(np.float32))
