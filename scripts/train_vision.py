#!/usr/bin/env python3
"""Trains the bundled vision model on pictures and text that this repository generates: 45 minutes on one CPU core.

    python scripts/train_vision.py            # train, with checkpoints in .run/train_vision, export to demo/vision
    python scripts/train_vision.py --resume   # go on where a run stopped
    python scripts/train_vision.py --finish   # end a run early: let the rates fall to nothing now, and export
    python scripts/train_vision.py --brief --out X   # seconds: shows that it runs; the model has learnt nothing

Needs a C++ compiler for MLX's compiled kernels. demo/vision/README.md says how to make it quick on Linux.
"""

import sys

from training.command import train
from training.train_vision import BRIEF, FULL, follow


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says."""
    return train(arguments, usage=__doc__, name="vision", full=FULL, brief=BRIEF, follow=follow)


if __name__ == "__main__":
    sys.exit(main())
