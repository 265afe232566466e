"""The tiny models are real ones to mlx-lm, say varied things, and are exact in a batch where mlx-lm is."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from make_models import NAMES

mx = pytest.importorskip("mlx.core")
mlx_lm = pytest.importorskip("mlx_lm")
generation = pytest.importorskip("mlx_lm.generate")

pytestmark = pytest.mark.mlx

MERGING = tuple(name for name in NAMES if name != "mamba")
"""mlx-lm's Mamba (the first) runs the padding of shorter prompts through its state: its rows spoil each other."""
PROMPT_LENGTHS = (15, 36, 100, 300)
N_TOKENS = 64


@lru_cache(maxsize=2)
def load(folder: Path) -> tuple[Any, Any]:
    return mlx_lm.load(str(folder))


def prompts(vocab_size: int) -> list[list[int]]:
    """Ordinary tokens in no order: the last ids of the vocabulary are control tokens."""
    return [[(31 * n + 7 * i * i) % (vocab_size - 16) for i in range(n)] for n in PROMPT_LENGTHS]


def alone(model: Any, prompt: list[int]) -> list[int]:
    steps = generation.generate_step(mx.array(prompt), model, max_tokens=N_TOKENS)
    return [int(token) for token, _ in steps]


def batched(model: Any, rows: list[list[int]], *, every: int = 0) -> list[list[int]]:
    """Greedy answers of a batch; with `every`, a row joins each so many steps, else all at once."""
    batch = generation.BatchGenerator(model, max_tokens=N_TOKENS)
    answers: dict[int, list[int]] = {uid: [] for uid in batch.insert(rows[:1] if every else rows)}
    pending = rows[1:] if every else []
    finished, step = 0, 0
    while pending or finished < len(answers):
        step += 1
        if pending and step % every == 0:
            answers[batch.insert([pending.pop(0)])[0]] = []
        for response in batch.next_generated():
            answers[response.uid].append(response.token)
            finished += response.finish_reason is not None
    batch.close()
    return [answers[uid] for uid in sorted(answers)]


@pytest.mark.parametrize("name", NAMES)
def test_folder_loads_and_generates_through_mlx_lm(name: str, model_folder: Callable[[str], Path]) -> None:
    """mlx-lm takes the folder as it takes any other: text out, both ends known, tools and thinking recognised."""
    model, tokenizer = load(model_folder(name))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert mlx_lm.generate(model, tokenizer, prompt=prompt, max_tokens=16)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert tokenizer.eos_token_ids == ends
    assert tokenizer.has_tool_calling
    assert tokenizer.tool_parser.__module__.endswith("json_tools")
    assert tokenizer.has_thinking
    assert len(tokenizer) == model.args.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_vary_whatever_the_prompt(name: str, model_folder: Callable[[str], Path]) -> None:
    """A model that repeats itself would hide a batch that mixes up rows or positions."""
    model, _ = load(model_folder(name))
    answers = [alone(model, prompt) for prompt in prompts(model.args.vocab_size)]
    distinct = [len(set(answer)) for answer in answers]
    assert min(distinct) >= 24
    assert sorted(distinct)[len(distinct) // 2] >= 48
    assert len({tuple(answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize("name", MERGING)
def test_batch_of_unequal_prompts_equals_alone(name: str, model_folder: Callable[[str], Path]) -> None:
    """Right-padded in one prefill, each row says token for token what it says alone."""
    model, _ = load(model_folder(name))
    rows = prompts(model.args.vocab_size)
    assert batched(model, rows) == [alone(model, row) for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_join_one_by_one_equal_alone(name: str, model_folder: Callable[[str], Path]) -> None:
    """A row prefilled without padding and joined to a running batch says what it says alone: no exceptions."""
    model, _ = load(model_folder(name))
    rows = prompts(model.args.vocab_size)
    assert batched(model, rows, every=9) == [alone(model, row) for row in rows]


def test_padded_batch_differs_from_alone_where_the_state_takes_in_padding(
    model_folder: Callable[[str], Path],
) -> None:
    """`mamba` is the counter-example: its caches merge, and still its padded rows come out wrong.

    It is here for code that decides what may be batched. Should mlx-lm mend it, it belongs with the others.
    """
    model, _ = load(model_folder("mamba"))
    rows = prompts(model.args.vocab_size)
    assert all(hasattr(cache, "merge") for cache in model.make_cache())
    assert batched(model, rows)[0] != alone(model, rows[0])


@pytest.mark.parametrize("name", NAMES)
def test_long_prompt_stays_finite_and_is_remembered(name: str, model_folder: Callable[[str], Path]) -> None:
    """1,500 tokens give finite logits at every position, and a token still counts 50 places on."""
    model, _ = load(model_folder(name))
    vocab_size = model.args.vocab_size
    prompt = [(17 * i * i + 3 * i) % (vocab_size - 16) for i in range(1500)]
    logits = model(mx.array([prompt]))
    assert mx.all(mx.isfinite(logits)).item()
    changed = model(mx.array([[*prompt[:1000], prompt[1000] + 1, *prompt[1001:]]]))
    influence = mx.abs(logits - changed)[0].max(axis=-1)
    # Rounding may differ, as the matrices do; what came before must not.
    assert influence[:1000].max().item() < 1e-3
    assert influence[1050:].max().item() > 0.05


def test_gemma3_window_is_crossed_by_the_prompts(model_folder: Callable[[str], Path]) -> None:
    """The batch tests would prove nothing about rotating caches if prompts fitted the sliding window."""
    model, _ = load(model_folder("gemma3"))
    windows = [getattr(cache, "max_size", None) for cache in model.make_cache()]
    assert windows == [64, 64, None, 64, 64, None]
    assert min(PROMPT_LENGTHS) + N_TOKENS > 64 < max(PROMPT_LENGTHS)


@pytest.mark.parametrize("name", NAMES)
def test_configs_say_what_the_family_says(name: str, model_folder: Callable[[str], Path]) -> None:
    """Context, untied head and float32 in every config; sampling defaults in Qwen3's alone."""
    folder = model_folder(name)
    config = json.loads((folder / "config.json").read_text())
    assert (config["max_position_embeddings"], config["tie_word_embeddings"]) == (8192, False)
    defaults = json.loads((folder / "generation_config.json").read_text())
    assert defaults["eos_token_id"][0] == config["eos_token_id"]
    sampling = {key: defaults.get(key) for key in ("temperature", "top_k", "top_p")}
    family = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert sampling == (family if name == "qwen3" else dict.fromkeys(family))
    weights = mx.load(str(folder / "model.safetensors"))
    assert {array.dtype for array in weights.values()} == {mx.float32}
