#!/usr/bin/env python3
"""Asks the bundled chat model held-out questions of every skill and prints how many answers are right.

    python scripts/evaluate_chat.py                              # demo/chat, in this process
    python scripts/evaluate_chat.py --url http://127.0.0.1:8000  # through a running pool

Ends with 1 where a skill misses its target.
"""

import argparse
import sys
from pathlib import Path

from demo.answering import InProcess, Pool
from demo.evaluation import cases, score, table
from demo.skills import SKILLS

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skills", nargs="*", metavar="SKILL", help=f"of {', '.join(SKILLS)}; default all")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo" / "chat", help="the model to ask in this process")
    parser.add_argument("--url", help="ask a pool instead")
    parser.add_argument("--model", help="the model's name in the pool; default the pool's own choice")
    parser.add_argument("--key", default="none", help="the pool's API key")
    parser.add_argument("-n", type=int, default=200, help="questions for each skill (200)")
    parser.add_argument("--seed", type=int, default=1000, help="which questions (1000)")
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="also show N wrong answers of each skill")
    options = parser.parse_args(arguments)
    if unknown := [skill for skill in options.skills if skill not in SKILLS]:
        parser.error(f"no skill named {', '.join(unknown)}: there are {', '.join(SKILLS)}")
    asker = Pool(options.url, options.model, options.key) if options.url else InProcess(options.folder)
    scores = []
    for skill in options.skills or SKILLS:
        asked = cases(skill, options.n, seed=options.seed)
        scores.append(score(skill, asked, asker.answers(asked)))
        for case, answer in scores[-1].wrong[: options.wrong]:
            print(f"{skill}: {case.messages[-1]['content']!r}\n  not {case.expected}\n  but {answer}")
        print(f"{skill}: {scores[-1].right} of {scores[-1].asked}", file=sys.stderr, flush=True)
    print("\n".join(table(scores)))
    return int(any(one.falls_short for one in scores))


if __name__ == "__main__":
    sys.exit(main())
