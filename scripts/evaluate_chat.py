#!/usr/bin/env python3
"""Asks the bundled chat model held-out questions of every skill and prints how many answers are right.

    python scripts/evaluate_chat.py                              # demo/chat, in this process
    python scripts/evaluate_chat.py --url http://127.0.0.1:8000  # through a running pool

Ends with 1 where a skill misses its target.
"""

import sys
from functools import partial

from training.answering import LocalModel
from training.eval_cli import evaluate_model
from training.evaluation import TARGETS, cases
from training.skills import SKILLS


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says."""
    skills = {skill: partial(cases, skill) for skill in SKILLS}
    return evaluate_model(arguments, usage=__doc__, name="chat", skills=skills, targets=TARGETS, in_process=LocalModel)


if __name__ == "__main__":
    sys.exit(main())
