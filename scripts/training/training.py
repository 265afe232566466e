"""The training loop: schedule by share of steps, checkpoints, the curve of the loss. Knows no skill."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from training.batches import Shape

_WARMUP_STEPS = 50
_CURVE_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a run does. Rates stay level from the warm-up until the last `decay` of the steps, then fall to nothing."""

    steps: int
    seed: int
    shapes: tuple[Shape, ...]
    matrix_rate: float = 0.02
    other_rate: float = 0.004
    decay: float = 0.62
    checkpoint_s: float = 180.0


def rate(plan: TrainingPlan, step: int) -> float:
    """Return the share of the full learning rates at a step."""
    level = min(1.0, (step + 1) / _WARMUP_STEPS)
    left = (plan.steps - step) / (plan.decay * plan.steps)
    return max(0.0, min(level, left))


Batches = Callable[[int], Iterator[Any]]
"""From a seed to what is learnt in each step, without end."""


class Trainer:
    """A model, its optimizers, and where in its plan it is."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Any, Any], mx.array], batches: Batches, plan: TrainingPlan
    ) -> None:
        self.model = model
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.resumed: list[int] = []
        """Steps at which a run went on from a checkpoint: there the samples start anew, from another seed."""
        self.trained_s = 0.0
        self._batches = batches
        self._plan = plan
        matrices, others = optimizers.Muon(0.0, weight_decay=0.0), optimizers.Adam(0.0, betas=[0.9, 0.98])
        self._optimizer = optimizers.MultiOptimizer([matrices, others], [_is_matrix])
        self._rates = ((matrices, plan.matrix_rate), (others, plan.other_rate))
        self._gradient = nn.value_and_grad(model, loss)

    def follow(self, plan: TrainingPlan) -> None:
        """Change the plan on the way."""
        self._plan = plan

    def run(self, *, to: int, folder: Path | None, report: Callable[[str], None]) -> None:
        """Train up to a step, with a checkpoint in `folder` now and then."""
        batches = self._batches(self._plan.seed * 100_003 + self.step)
        recent: list[float] = []
        saved = started = time.perf_counter()
        while self.step < to:
            recent.append(self._advance(batches))
            if self.step % _CURVE_EVERY == 0 or self.step == to:
                now = time.perf_counter()
                self.trained_s += now - started
                started = now
                self.curve.append((self.step, round(float(np.mean(recent)), 4)))
                report(f"step {self.step}/{self._plan.steps} loss {self.curve[-1][1]:.4f} after {self.trained_s:.0f} s")
                recent.clear()
                if folder is not None and (now - saved > self._plan.checkpoint_s or self.step == to):
                    self.save(folder)
                    saved = now

    def _advance(self, batches: Iterator[Any]) -> float:
        share = rate(self._plan, self.step)
        for optimizer, full in self._rates:
            optimizer.learning_rate = mx.array(full * share)
        value, gradient = self._gradient(self.model, next(batches))
        self._optimizer.update(self.model, gradient)
        mx.eval(value, self.model.parameters(), self._optimizer.state)
        self.step += 1
        return float(value.item())

    def save(self, folder: Path) -> None:
        """Write a checkpoint. A reader never sees half of one."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"model.{name}": value for name, value in tree_flatten(self.model.parameters())}
        arrays |= {f"optimizer.{name}": value for name, value in tree_flatten(self._optimizer.state)}
        note = {"step": str(self.step), "curve": json.dumps(self.curve), "trained_s": str(self.trained_s)}
        note["resumed"] = json.dumps(self.resumed)
        fresh = folder / "fresh.safetensors"
        mx.save_safetensors(str(fresh), arrays, metadata=note)
        fresh.replace(folder / "checkpoint.safetensors")

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        arrays, note = mx.load(str(folder / "checkpoint.safetensors"), return_metadata=True)
        self.model.load_weights([(n.removeprefix("model."), v) for n, v in arrays.items() if n.startswith("model.")])
        state = [(n.removeprefix("optimizer."), v) for n, v in arrays.items() if n.startswith("optimizer.")]
        self._optimizer.init(self.model.trainable_parameters())
        self._optimizer.state = tree_unflatten(state)
        self.step, self.curve = int(note["step"]), [tuple(point) for point in json.loads(note["curve"])]
        self.resumed = [*json.loads(note.get("resumed", "[]")), self.step]
        self.trained_s = float(note["trained_s"])


def _is_matrix(name: str, value: mx.array) -> bool:
    """Return whether Muon learns it, as one matrix from inputs to outputs: also what turns patches into numbers."""
    return value.ndim >= 2 and "embed_tokens" not in name


def half_precision(model: nn.Module) -> dict[str, Any]:
    """Return the weights as they go to disk."""
    return {name: value.astype(mx.float16) for name, value in tree_flatten(model.parameters())}
