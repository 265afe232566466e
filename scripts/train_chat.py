#!/usr/bin/env python3
"""Trains the bundled chat model from text that this repository generates. About half an hour on one CPU core.

    python scripts/train_chat.py                  # train, with checkpoints in .run/train_chat, and export to demo/chat
    python scripts/train_chat.py --resume         # go on where a run stopped
    python scripts/train_chat.py --finish         # end a run early: let the rates fall to nothing now, and export
    python scripts/train_chat.py --brief --out X  # seconds: shows that it runs; the model has learnt nothing

Needs a C++ compiler for MLX's compiled kernels. The README says how to make it quick on Linux.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from demo.course import BRIEF, FULL, follow

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "chat", help="the model folder to write")
    parser.add_argument("--run", type=Path, default=ROOT / ".run" / "train_chat", help="where checkpoints go")
    parser.add_argument("--steps", type=int, help=f"default {FULL.plan.steps}")
    parser.add_argument("--seed", type=int, default=FULL.plan.seed)
    parser.add_argument("--brief", action="store_true", help="a few steps of a tiny model")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--finish", action="store_true", help="end the run that the checkpoint is of")
    options = parser.parse_args(arguments)
    course = BRIEF if options.brief else FULL
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


if __name__ == "__main__":
    sys.exit(main())
