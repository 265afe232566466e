"""The command line of a training script."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from training.train import Course
from training.training import Trainer

C = TypeVar("C", bound=Course)

ROOT = Path(__file__).resolve().parents[2]


def train(
    arguments: list[str] | None,
    *,
    usage: str | None,
    name: str,
    full: C,
    brief: C,
    follow: Callable[..., Trainer],
) -> int:
    """Train `demo/name` as the arguments say."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / name, help="the model folder to write")
    parser.add_argument("--run", type=Path, default=ROOT / ".run" / f"train_{name}", help="where checkpoints go")
    parser.add_argument("--steps", type=int, help=f"default {full.plan.steps}")
    parser.add_argument("--seed", type=int, default=full.plan.seed)
    parser.add_argument("--brief", action="store_true", help="a few steps of a tiny model")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--finish", action="store_true", help="end the run that the checkpoint is of")
    options = parser.parse_args(arguments)
    course = brief if options.brief else full
    plan = replace(course.plan, seed=options.seed, steps=options.steps or course.plan.steps)
    follow(
        replace(course, plan=plan),
        options.out,
        run=options.run,
        resume=options.resume,
        finish=options.finish,
        report=lambda line: print(line, flush=True),
    )
    return 0
