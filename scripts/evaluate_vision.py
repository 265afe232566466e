#!/usr/bin/env python3
"""Asks the bundled vision model about held-out pictures, and some plain questions; prints how many answers are right.

    python scripts/evaluate_vision.py                              # demo/vision, in this process
    python scripts/evaluate_vision.py --url http://127.0.0.1:8000 --model vision   # through a running pool

Ends with 1 where a skill misses its target.
"""

import sys
from functools import partial

from demo.evaluation import cases, different
from demo.examination import examine
from demo.seeing import Seeing
from demo.sights import SIGHTS, TARGETS
from demo.vision_batches import TEXT


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says."""
    sights = {name: partial(different, partial(sight, held_out=True)) for name, sight in SIGHTS.items()}
    skills = sights | {skill: partial(cases, skill) for skill in TEXT}
    return examine(arguments, usage=__doc__, name="vision", skills=skills, targets=TARGETS, in_process=Seeing)


if __name__ == "__main__":
    sys.exit(main())
