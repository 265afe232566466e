"""The vision tower's first lessons: to tell of every image token what lies there, before any word is learnt.

Words are few for each picture; this tells the tower of all of it, and so costs minutes where words alone take hours.
What the lessons need beside the tower is thrown away after them. Knows pictures, but no text.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from demo import quick
from demo.draw import Draw
from demo.pictures import CELLS, COLORS, SHAPES, Picture, compose, size
from demo.training import Plan, Trainer
from demo.vision_network import MERGE, see

Cut = Callable[[list[Picture], tuple[int, int]], tuple[NDArray[np.float32], tuple[int, int]]]
"""From pictures, with their width and height in pixels, to patches and how many there are down and across."""
Lesson = tuple[mx.array, tuple[int, int], mx.array]
"""Patches, their grid, and what lies at each image token: (pictures x tokens, 3) of colour, shape and third."""
_KINDS = (len(COLORS) + 1, len(SHAPES) + 1, len(CELLS) + 1)
"""Classes of each label; the last of each stands for nothing."""
SIZE = 20.0
"""Of an image token when words begin: root of the mean square."""
_TOUCH = 0.7
"""Share of a thing's radius that a token's square has to reach into."""


class Pupil(nn.Module):  # type: ignore[misc] # MLX has no complete types
    """The tower, and what reads colour, shape and place off its tokens."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.reader = nn.Linear(width, sum(_KINDS))


def loss(pupil: Pupil, lesson: Lesson) -> mx.array:
    """Mean over tokens of the cross-entropies of the three labels."""
    patches, grid, labels = lesson
    seen = see(pupil.tower, patches, grid)
    read = pupil.reader(seen.reshape(-1, seen.shape[-1]))
    even = mx.full((labels.shape[0],), 1 / labels.shape[0])
    total = mx.array(0.0)
    start = 0
    for kind, classes in enumerate(_KINDS):
        total = total + quick.cross_entropy(read[:, start : start + classes], labels[:, kind], even)[0]
        start += classes
    return total


def lessons(cut: Cut, *, seed: int, pictures: int) -> Iterator[Lesson]:
    """So many pictures for each step, without end and the same for the same seed."""
    source = Draw(seed)
    while True:
        pixels = size(source)
        shown = [compose(source, held_out=False) for _ in range(pictures)]
        patches, grid = cut(shown, pixels)
        down, across = grid[0] // MERGE, grid[1] // MERGE
        labels = np.concatenate([labelled(picture, pixels, (down, across)) for picture in shown])
        yield mx.array(patches), grid, mx.array(labels)


def labelled(picture: Picture, pixels: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.int32]:
    """What lies at each image token, shape (tokens, 3): numbers of colour, shape and third."""
    (width, height), (down, across) = pixels, grid
    nothing = [kind - 1 for kind in _KINDS]
    if picture.plain:
        nothing[0] = list(COLORS).index(picture.plain)
    labels = np.tile(np.array(nothing, dtype=np.int32), (down * across, 1))
    nearest = [math.inf] * (down * across)
    for thing in picture.things:
        row, column = divmod(CELLS.index(thing.cell), 3)
        x, y = (column + 0.5 + thing.right) * width / 3, (row + 0.5 + thing.down) * height / 3
        reach = _TOUCH * thing.size * min(width, height) / 6
        numbers = (list(COLORS).index(thing.color), SHAPES.index(thing.shape), CELLS.index(thing.cell))
        for token in range(down * across):
            above, left = divmod(token, across)
            distance = math.hypot(
                _outside(x, left * width / across, (left + 1) * width / across),
                _outside(y, above * height / down, (above + 1) * height / down),
            )
            if distance <= reach and distance < nearest[token]:
                nearest[token] = distance
                labels[token] = numbers
    return labels


def _outside(value: float, least: float, most: float) -> float:
    return max(least - value, 0.0, value - most)


def teach(
    model: Any, cut: Cut, plan: Plan, *, run: Path | None, resume: bool, report: Callable[[str], None]
) -> Trainer:
    """Train the model's tower, by the plan and with as many pictures a step as its one shape says.

    Checkpoints go to `run`; `resume` goes on from there. Afterwards the tower's tokens have the size of what a language
    model's first layer adds to them: of smaller ones nothing would be left.
    """
    (shape,) = plan.shapes
    pupil = Pupil(model.vision_tower, model.language_model.args.hidden_size)
    trainer = Trainer(pupil, loss, lambda seed: lessons(cut, seed=seed, pictures=shape.pictures), plan)
    if resume and run is not None:
        trainer.load(run)
    trainer.run(to=plan.steps, folder=run, report=lambda line: report(f"first sight: {line}"))
    patches, grid, _ = next(lessons(cut, seed=0, pictures=shape.pictures))
    last = model.vision_tower.merger.mlp[-1]
    share = SIZE / mx.sqrt(mx.mean(see(model.vision_tower, patches, grid) ** 2))
    last.weight, last.bias = last.weight * share, last.bias * share
    mx.eval(last.parameters())
    return trainer
