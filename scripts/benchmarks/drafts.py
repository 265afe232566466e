"""What a draft model gives a single stream, and that it costs many streams nothing. The pair is made, not trained.

The model is a random Qwen3 whose upper layers add little to what the lower ones say; the draft is those lower ones. So
how often they agree says nothing about models that people serve; what a round costs, and that answers are the same, do.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import mlx.core as mx
import uvloop
from models import weights

from benchmarks.chat import bodies
from benchmarks.client import load
from benchmarks.processes import Pool, pool
from benchmarks.table import Table, median, ratio

LAYERS, DRAFT_LAYERS = 10, 2
WIDTHS: Mapping[str, int] = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "head_dim": 64}
DAMPED = 0.04
"""What upper layers add, as part of what random ones would: the draft is right about half of the time then."""
TOKENS = 128


def drafted(table: Table, folder: Path, scratch: Path, *, rounds: int) -> None:
    """Measure tokens a second with a draft and without, one stream and eight; `folder` lends the tokenizer."""
    model, draft = _pair(folder, scratch)
    flags = ("--model-path", str(model))
    with pool(*flags) as plain, pool(*flags, "--draft-model", str(draft)) as ours:
        for streams, wanted in ((1, 1.0), (8, 0.9)):
            rates: dict[Pool, list[float]] = {ours: [], plain: []}
            for _ in range(rounds + 1):
                for one, found in rates.items():
                    body = bodies(streams, TOKENS, ignore_eos=True)
                    found.append(uvloop.run(load(one.server, body)).tokens_per_s)
            mine, without = rates[ours][1:], rates[plain][1:]
            quotient = ratio(mine, without)
            figure = f"{median(mine):,.0f} / {median(without):,.0f} = {quotient:.2f} x"
            what = f"{streams} stream{'s' * (streams > 1)}, greedy: draft / none"
            table.add(what, figure, f">= {wanted} x", quotient >= wanted)
        proposed, accepted = (_counted(ours, f"pool_worker_draft_{name}") for name in ("proposed", "accepted"))
        share = accepted / max(proposed, 1)
        table.add("proposals that were the model's own", f"{accepted:,.0f} of {proposed:,.0f} = {share:.0%}")
        same = all(_text(ours, seed) == _text(plain, seed) for seed in range(8))
        table.add("answers with a draft, greedy and seeded", "the same" if same else "DIFFERENT", "the same", same)


def _pair(folder: Path, scratch: Path) -> tuple[Path, Path]:
    """Return a model and its draft, with the tokenizer of `folder`."""
    model, draft = scratch / "model", scratch / "draft"
    for made in (model, draft):
        shutil.copytree(folder, made, ignore=shutil.ignore_patterns("*.safetensors"))
    config = {**json.loads((folder / "config.json").read_text()), **WIDTHS, "num_hidden_layers": LAYERS}
    weights.write(config, model, seed=7, norm_centre=1.0, silent=[])
    arrays = dict(mx.load(str(model / "model.safetensors")))
    lower = {}
    for name, array in arrays.items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        if layer is not None and layer >= DRAFT_LAYERS:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                arrays[name] = DAMPED * array
        else:
            lower[name] = array
    mx.save_safetensors(str(model / "model.safetensors"), arrays, metadata={"format": "mlx"})
    mx.save_safetensors(str(draft / "model.safetensors"), lower, metadata={"format": "mlx"})
    (model / "config.json").write_text(json.dumps(config))
    (draft / "config.json").write_text(json.dumps({**config, "num_hidden_layers": DRAFT_LAYERS}))
    return model, draft


def _counted(one: Pool, name: str) -> float:
    with urlopen(f"http://127.0.0.1:{one.port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name}_total{{")))


def _text(one: Pool, seed: int) -> str:
    body = {"prompt": f"number {seed}", "max_tokens": 64, "temperature": seed % 2, "seed": seed, "ignore_eos": True}
    content = json.dumps(body).encode()
    url = f"http://127.0.0.1:{one.port}/v1/completions"
    with urlopen(Request(url, content, {"Content-Type": "application/json"}), timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    text: str = found["choices"][0]["text"]
    return text
