"""The command line of an evaluation script."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from training.answering import AnswerSource, PoolClient
from training.evaluation import Case, score, table

ROOT = Path(__file__).resolve().parents[2]


class Cases(Protocol):
    """A skill's held-out cases: up to `n` of them, the same ones for the same seed."""

    def __call__(self, n: int, /, *, seed: int) -> list[Case]:
        """Return up to so many cases, in the order in which they are drawn."""
        ...


def evaluate_model(
    arguments: list[str] | None,
    *,
    usage: str | None,
    name: str,
    skills: Mapping[str, Cases],
    targets: Mapping[str, float],
    in_process: Callable[[Path], AnswerSource],
) -> int:
    """Ask `demo/name` as the arguments say; 1 where a skill misses its target."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skills", nargs="*", metavar="SKILL", help=f"of {', '.join(skills)}; default all")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo" / name, help="the model to ask in this process")
    parser.add_argument("--url", help="ask a pool instead")
    parser.add_argument("--model", help="the model's name in the pool; default the pool's own choice")
    parser.add_argument("--key", default="none", help="the pool's API key")
    parser.add_argument("-n", type=int, default=200, help="questions for each skill (200)")
    parser.add_argument("--seed", type=int, default=1000, help="which questions (1000)")
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="also show N wrong answers of each skill")
    options = parser.parse_args(arguments)
    if unknown := [skill for skill in options.skills if skill not in skills]:
        parser.error(f"no skill named {', '.join(unknown)}: there are {', '.join(skills)}")
    asker = PoolClient(options.url, options.model, options.key) if options.url else in_process(options.folder)
    scores = []
    for skill in options.skills or skills:
        asked = skills[skill](options.n, seed=options.seed)
        scores.append(score(skill, asked, asker.answer_cases(asked), targets=targets))
        for case, answer in scores[-1].wrong[: options.wrong]:
            shown = "".join(f"[{picture.key}] " for picture in case.sample.pictures)
            print(f"{skill}: {shown}{case.question!r}\n  not {case.expected}\n  but {answer}")
        print(f"{skill}: {scores[-1].right} of {scores[-1].asked}", file=sys.stderr, flush=True)
    print("\n".join(table(scores)))
    return int(any(one.falls_short for one in scores))
