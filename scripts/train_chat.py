#!/usr/bin/env python3
"""Trains the bundled chat model from text that this repository generates. About half an hour on one CPU core.

    python scripts/train_chat.py            # train, with checkpoints in .run/train_chat, export to demo/chat
    python scripts/train_chat.py --resume   # go on where a run stopped
    python scripts/train_chat.py --finish   # end a run early: let the rates fall to nothing now, and export
    python scripts/train_chat.py --brief --out X   # seconds: shows that it runs; the model has learnt nothing

Needs a C++ compiler for MLX's compiled kernels. demo/chat/README.md says how to make it quick on Linux.
"""

import sys

from training.command import train
from training.train import BRIEF, FULL, follow


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says."""
    return train(arguments, usage=__doc__, name="chat", full=FULL, brief=BRIEF, follow=follow)


if __name__ == "__main__":
    sys.exit(main())
