#!/usr/bin/env python3
"""Asks the bundled vision model about held-out pictures, and some plain questions; prints how many answers are right.

    python scripts/evaluate_vision.py                              # demo/vision, in this process
    python scripts/evaluate_vision.py --url http://127.0.0.1:8000 --model vision   # through a running pool

Ends with 1 where a skill misses its target.
"""

import sys
from functools import partial

from training.eval_cli import evaluate_model
from training.evaluation import cases, different
from training.vision_answering import LocalVisionModel
from training.vision_batches import TEXT
from training.vision_questions import TARGETS, VISION_SKILLS


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says."""
    sights = {name: partial(different, partial(sight, held_out=True)) for name, sight in VISION_SKILLS.items()}
    skills = sights | {skill: partial(cases, skill) for skill in TEXT}
    return evaluate_model(
        arguments, usage=__doc__, name="vision", skills=skills, targets=TARGETS, in_process=LocalVisionModel
    )


if __name__ == "__main__":
    sys.exit(main())
