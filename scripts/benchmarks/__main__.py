"""`scripts/bench`: everything the pool promises about speed, measured on this machine in one run, as ratios."""

import argparse
import contextlib
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import uvloop

from benchmarks import chat, embeddings, gaps, gateway, grammar, prefixes, promptness, vision
from benchmarks.client import Server
from benchmarks.overhead import overhead
from benchmarks.processes import ROOT, direct, mlx_lm_server, mlx_vlm_server, pool, running
from benchmarks.table import Table

PARTS = ("chat", "prefixes", "drafts", "grammar", "vision", "gateway", "embeddings", "promptness", "gaps")
PACKAGES = ("mlx", "mlx-lm", "mlx-vlm", "mlx-embeddings", "llguidance", "aiohttp", "pyzmq", "uvloop", "msgspec")


def main() -> int:
    """Measure; exit 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], help=f"what to measure: {', '.join(PARTS)}; default all"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement, taken in turn")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of the memory measurement")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="URL",
        help="another OpenAI-compatible server to measure chat beside, like http://127.0.0.1:8080/v1 (repeatable); let"
        " it serve .models/bench-qwen3, which `scripts/make_models.py` writes; a key is taken from BENCH_KEY",
    )
    parser.add_argument(
        "--against-model", metavar="NAME", help="what that server calls it; default: the first it names"
    )
    parser.add_argument(
        "--mlx-vlm-python", help="a Python with all of mlx-vlm's packages, to run its server; default: not compared"
    )
    options = parser.parse_args()
    _describe()
    table = Table()
    parts = options.parts or PARTS
    if "chat" in parts:
        _chat(table, options.rounds, [running(url, options.against_model) for url in options.against])
    if "prefixes" in parts:
        _prefixes(table, min(options.rounds, 3))
    if "drafts" in parts:
        _drafts(table, min(options.rounds, 3))
    if "grammar" in parts:
        _grammar(table, min(options.rounds, 3))
    if "vision" in parts:
        _vision(table, options.rounds, options.mlx_vlm_python)
    if "gateway" in parts:
        _gateway(table, options.rounds, options.requests)
    if "embeddings" in parts:
        _embeddings(table, options.rounds)
    if "promptness" in parts:
        _promptness(table, options.rounds)
    if "gaps" in parts:
        _gaps(table, min(options.rounds, 3))
    for line in table.missed:
        print(f"missed: {line.what}: {line.figure}, wanted {line.wanted}", file=sys.stderr)
    return 1 if table.missed else 0


def _describe() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    print(f"{platform.platform()}, {os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    print(
        f"BLAS: {os.environ.get('LD_PRELOAD') or 'as built'}, threads {os.environ.get('OPENBLAS_NUM_THREADS', 'all')}"
    )
    print("models made from their seeds, all-MiniLM-L6-v2 as published; load average", os.getloadavg()[0], flush=True)


def _chat(table: Table, rounds: int, others: list[Server]) -> None:
    from make_models import make

    folder: Path = make("bench-qwen3", ROOT / ".models")
    with pool("--model-path", str(folder)) as ours, mlx_lm_server(folder) as first, direct() as plain:
        rivals = [first, *others]
        chat.throughput(table, ours, rivals, plain, folder, rounds=rounds)
        chat.mixed_sampling(table, ours, rivals, plain, folder, rounds=min(rounds, 3))
        chat.long_prompt(table, ours, rivals, rounds=rounds)
        chat.row_of_long_prompts(table, ours, rounds=rounds)


def _prefixes(table: Table, rounds: int) -> None:
    from make_models import make

    folder: Path = make("bench-qwen3", ROOT / ".models")
    prefixes.sooner(table, folder, rounds=rounds)
    prefixes.writing(table, folder, rounds=rounds)


def _drafts(table: Table, rounds: int) -> None:
    from make_models import make

    from benchmarks.drafts import drafted

    with tempfile.TemporaryDirectory() as scratch:
        drafted(table, make("bench-qwen3", ROOT / ".models"), Path(scratch), rounds=rounds)


def _grammar(table: Table, rounds: int) -> None:
    from make_models import make

    folder: Path = make("bench-qwen3", ROOT / ".models")
    with pool("--model-path", str(folder)) as ours, direct() as plain:
        grammar.mixed(table, ours, plain, folder, rounds=rounds)
        grammar.flood(table, ours, rounds=rounds)


def _vision(table: Table, rounds: int, python: str | None) -> None:
    from make_models import make

    folder: Path = make("qwen2-vl", ROOT / ".models")
    server = mlx_vlm_server(python, folder) if python else contextlib.nullcontext()
    with pool("--model-type", "vision", "--model-path", str(folder)) as ours, server as rival:
        vision.throughput(table, ours, rival, rounds=rounds)
        vision.second_turn(table, ours, rounds=rounds)


def _embeddings(table: Table, rounds: int) -> None:
    from models import encoders

    many = ("--model-type", "embedding", "--max-concurrency", str(embeddings.CLIENTS), "--model-path")
    with tempfile.TemporaryDirectory() as scratch, direct("benchmarks.embeddings_direct") as plain:
        folder = embeddings.minilm()
        with pool(*many, str(folder)) as ours:
            best, loop = embeddings.uncached(table, "MiniLM", ours, plain, folder, chat.WORDS, count=200, rounds=rounds)
            table.add("MiniLM: pool / best batch", f"{best:.2f} x", ">= 0.95 x", best >= 0.95)
            # Where the device is busy with one text, as a CPU is with this model, batches win little.
            table.add("MiniLM: pool / one at a time", f"{loop:.2f} x")
            embeddings.cached(table, ours, rounds=rounds)
        tiny = encoders.write("bert", Path(scratch) / "tiny")
        words = tuple(f"w{at}" for at in range(4, encoders.VOCABULARY))
        with pool(*many, str(tiny)) as ours:
            best, loop = embeddings.uncached(table, "tiny BERT", ours, plain, tiny, words, count=2000, rounds=rounds)
            # What is left of so small a model is HTTP.
            table.add("tiny BERT: pool / best batch", f"{best:.2f} x")
            table.add("tiny BERT: pool / one at a time", f"{loop:.2f} x", ">= 2 x", loop >= 2)


def _promptness(table: Table, rounds: int) -> None:
    from make_models import make

    promptness.promptness(table, make("qwen3", ROOT / ".models"), rounds=rounds)


def _gaps(table: Table, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        gaps.gaps(table, Path(scratch), rounds=rounds)


def _gateway(table: Table, rounds: int, requests: int) -> None:
    uvloop.run(overhead(table, rounds=rounds))
    fake = ("--engine", "worker.engines.fake:FakeEngine", "--model-path", "fake", "--max-concurrency", "64")
    with pool(*fake) as ours:
        gateway.first_token(table, ours)
        gateway.throughput(table, ours, rounds=rounds)
        gateway.memory(table, ours, requests=requests)


if __name__ == "__main__":
    sys.exit(main())
