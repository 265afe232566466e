"""mlx-lm's own `BatchGenerator`, called in process: what a server on top of it can't beat without changing it.

Run as a program, a JSON line per measurement: it has a process of its own, like what it is compared with.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any


def greedy_and_mixed(folder: str, streams: int, tokens: int, *, mixed: bool) -> float:
    """Return tokens per second of `streams` rows of `tokens` each; `mixed` gives every row its own sampling."""
    import mlx_lm
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    model, tokenizer = _load(mlx_lm, folder)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"hello there number {i}"}], add_generation_prompt=True
        )
        for i in range(streams)
    ]
    samplers = [
        make_sampler(temp=0.5 + i / 40, top_p=0.8 + i / 200, top_k=20 + i) if mixed else None for i in range(streams)
    ]
    generator = BatchGenerator(model, max_tokens=tokens, completion_batch_size=streams, prefill_batch_size=streams)
    began = time.perf_counter()
    generator.insert(prompts, samplers=samplers if mixed else None)
    count = 0
    while count < streams * tokens:
        count += len(generator.next_generated())
    took_s = time.perf_counter() - began
    generator.close()
    return count / took_s


_LOADED: dict[str, Any] = {}


def _load(mlx_lm: Any, folder: str) -> Any:
    if folder not in _LOADED:
        _LOADED[folder] = mlx_lm.load(folder)
    return _LOADED[folder]


def serve(measure: Callable[..., float], requests: Iterable[str]) -> None:
    """Answer measurements: a line with the arguments as JSON in, a line with a number out."""
    for line in requests:
        print(json.dumps(measure(**json.loads(line))), flush=True)


if __name__ == "__main__":
    serve(greedy_and_mixed, sys.stdin)
