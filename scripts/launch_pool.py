#!/usr/bin/env python3
"""What `scripts/serve` does: check the arguments, make what is missing, become honcho. Standard library only."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from environment import ROOT, StepError, ensure

KINDS = ("chat", "vision", "embedding")
DEMO_MODELS = {"chat": "demo/chat", "vision": "demo/vision", "embedding": ".models/all-MiniLM-L6-v2"}
EXAMPLES = {"chat": "mlx-community/Qwen3-0.6B-4bit", "vision": "mlx-community/Qwen2-VL-2B-Instruct-4bit"}
MAX_WORKERS = 64


class UsageError(Exception):
    """An argument that can't be served. One line: which, and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """What to run: how many workers of each kind, which models were named, where to listen."""

    workers: dict[str, int]
    models: dict[str, str]
    host: str | None
    port: int | None
    auth: bool = False
    insecure: bool = False

    @property
    def demos(self) -> list[str]:
        """Kinds that run and for which no model was named."""
        return [kind for kind, count in self.workers.items() if count and kind not in self.models]

    @property
    def concurrency(self) -> str:
        """Workers of each kind, as `honcho -c` reads it."""
        return ",".join(f"{name}={count}" for name, count in {"gateway": 1, **self.workers}.items())

    def environment(self) -> dict[str, str]:
        """Return what the Procfile's lines are told."""
        variables = {f"{kind.upper()}_MODEL": model for kind, model in self.models.items()}
        variables |= {f"{kind.upper()}_MODEL": DEMO_MODELS[kind] for kind in self.demos}
        if self.host is not None:
            variables["POOL_HOST"] = self.host
        if self.port is not None:
            variables["POOL_PORT"] = str(self.port)
        if self.auth:
            variables["POOL_AUTH"] = "true"
        if self.insecure:
            variables["POOL_INSECURE"] = "true"
        return variables


def make_plan(argv: Sequence[str], *, procfile: str, environment: Mapping[str, str], folder: Path) -> LaunchPlan:
    """Read the arguments; relative model paths count from `folder`. Raises `UsageError`; `--help` exits."""
    served = [kind for kind in KINDS if re.search(rf"^{kind}:", procfile, re.MULTILINE)]
    options = _parser().parse_args(list(argv))
    models = {}
    for kind in KINDS:
        model = getattr(options, kind)
        if model is not None and kind not in served:
            raise UsageError(f"--{kind}: the Procfile has no line for it, only for {', '.join(served)}")
        if model or environment.get(f"{kind.upper()}_MODEL"):
            models[kind] = _model(f"--{kind}", model, folder) if model else environment[f"{kind.upper()}_MODEL"]
    only = _kinds(options.only, served) if options.only is not None else served
    workers = {kind: int(kind in only) for kind in served}
    for kind, count in _counts(options.workers, served).items():
        if kind not in only:
            raise UsageError(f"--workers: {kind} is left out by --only {options.only}")
        workers[kind] = count
    if options.port is not None and not (re.fullmatch(r"\d{1,5}", options.port) and int(options.port) < 65536):
        raise UsageError(f"--port: must be a number from 0 (a free one) to 65535, not {options.port!r}")
    return LaunchPlan(
        workers=workers,
        models=models,
        host=options.host,
        port=int(options.port) if options.port is not None else None,
        auth=options.auth,
        insecure=options.insecure,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="scripts/serve", allow_abbrev=False, description="Serve models to OpenAI clients.")
    parser.add_argument("--chat", metavar="MODEL", help="hub id or local path; default the bundled demo/chat")
    parser.add_argument("--vision", metavar="MODEL", help="hub id or local path; default the bundled demo/vision")
    parser.add_argument("--embedding", metavar="MODEL", help="hub id or local path; default all-MiniLM-L6-v2")
    parser.add_argument("--only", metavar="KINDS", help="serve these kinds only, as in --only chat")
    parser.add_argument("--workers", metavar="KIND=N,...", default="", help="several workers, as in --workers chat=2")
    parser.add_argument("--host", help="address to listen on; default the configuration's")
    parser.add_argument("--port", help="port to listen on; default the configuration's")
    parser.add_argument("--auth", action="store_true", help="ask for API keys; `python -m gateway keys` makes them")
    parser.add_argument("--insecure", action="store_true", help="let other machines connect, and ask for no keys")
    return parser


def _kinds(text: str, served: Sequence[str]) -> list[str]:
    kinds = [part.strip() for part in text.split(",")]
    for kind in kinds:
        if kind not in served:
            raise UsageError(f"--only: must be of {', '.join(served)}, not {kind!r}")
    return kinds


def _counts(text: str, served: Sequence[str]) -> dict[str, int]:
    counts = {}
    for part in filter(None, text.split(",")):
        kind, _, count = part.strip().partition("=")
        if kind not in served or not re.fullmatch(r"\d{1,3}", count) or not 1 <= int(count) <= MAX_WORKERS:
            kinds = ", ".join(served)
            raise UsageError(
                f"--workers: must be KIND=N with KIND of {kinds} and N from 1 to {MAX_WORKERS}, not {part!r}"
            )
        counts[kind] = int(count)
    return counts


def _model(flag: str, model: str, folder: Path) -> str:
    path = folder / Path(model).expanduser()
    if path.exists():
        return str(path)
    if model.startswith((".", "/", "~")):
        raise UsageError(f"{flag}: there is no {path}")
    return model


def read_env_file(path: Path) -> dict[str, str]:
    """Return the settings of a `.env`, as far as the shell and honcho agree on what they mean."""
    if not path.exists():
        return {}
    found = re.findall(r"^\s*([A-Za-z_]\w*)\s*=\s*(.*?)\s*$", path.read_text(), re.MULTILINE)
    return {name: "".join(shlex.split(value, comments=True)) for name, value in found}


def prepare(plan: LaunchPlan, settings: Mapping[str, str]) -> list[str]:
    """Install, try the gateway's settings, write what the Procfile is told; returns honcho's command line.

    `settings` are those of the environment and of `.env`. Raises `StepError`, `UsageError`.
    """
    python = ensure(["worker"])
    check_gateway(python, {**settings, **plan.environment()})
    check_models(python, plan)
    for kind in plan.demos:
        if kind not in EXAMPLES:
            print(f"{kind}: {Path(DEMO_MODELS[kind]).name}. Another one: --{kind} MODEL")
        else:
            print(f"{kind}: the bundled {DEMO_MODELS[kind]}, of few words. A real one: --{kind} {EXAMPLES[kind]}")
    # honcho lets .env override what is exported to it: what this command line asks for goes into a file behind it.
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in plan.environment().items()]
    (ROOT / ".run" / "serve.env").write_text("".join(lines))
    print(f"starting {plan.concurrency.replace(',', ' ')}; Ctrl-C stops all", flush=True)
    honcho = [str(python), "-m", "honcho", "-e", ".env,.run/serve.env", "-f", "Procfile"]
    return [*honcho, "start", "-c", plan.concurrency]


def check_gateway(python: Path, environment: Mapping[str, str]) -> None:
    """Raise `UsageError` where the gateway could not run like that: before any model is loaded."""
    command = [str(python), "-m", "gateway", "--check"]
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["the gateway can't start"]
        raise UsageError(said[-1].removeprefix("gateway: "))


def check_models(python: Path, plan: LaunchPlan) -> None:
    """Ask, before anything starts, whether the folders that were named are models. Raises `UsageError`."""
    named = {kind: path for kind, path in plan.models.items() if plan.workers[kind] and (ROOT / path).exists()}
    if not named:
        return
    given = [word for kind, path in named.items() for word in (kind, str(ROOT / path))]
    done = subprocess.run(
        [str(python), "-m", "worker.model_folder", *given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UsageError(done.stderr.strip())


def main() -> int:
    """Become honcho, or say why not: 2 for arguments, 1 for what could not be made."""
    settings = {**os.environ, **read_env_file(ROOT / ".env")}
    try:
        procfile = (ROOT / "Procfile").read_text()
        plan = make_plan(sys.argv[1:], procfile=procfile, environment=settings, folder=Path.cwd())
        command = prepare(plan, settings)
    except UsageError as error:
        print(f"scripts/serve: {error}", file=sys.stderr)
        return 2
    except StepError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return become(command)


def become(command: list[str]) -> NoReturn:
    """Run honcho in place of this process, with `python` meaning the environment's own."""
    os.chdir(ROOT)
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.execve(command[0], command, {**os.environ, "PATH": path})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    sys.exit(main())
