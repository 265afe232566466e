"""Rows whose numbers have become none: each fails by itself, with an error, and never answers in garbage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from protocol.errors import Code
from protocol.messages import TokenPrompt
from tests.support.engine_runs import job, run
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine

BAD = 77
"""The token whose embedding holds no numbers."""
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20},
    {"temperature": 0.8, "min_p": 0.1, "repetition_penalty": 1.2},
    {"temperature": 0.0, "logit_bias": {5: 3.0}},
]


@pytest.fixture(scope="module")
def engine(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> ChatEngine:
    folder = shutil.copytree(model_folder("qwen3"), tmp_path_factory.mktemp("broken") / "m")
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    weights = mx.load(str(folder / "model.safetensors"))
    weights["model.embed_tokens.weight"][BAD] = mx.nan
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="m"))
    engine.load()
    return engine


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_row_fails_when_its_logits_are_no_numbers(engine: ChatEngine, sampling: dict[str, Any]) -> None:
    """A prompt with the bad token, greedy or sampled, alone: an error, no text, no usage of tokens."""
    prompt = TokenPrompt([40, BAD, 41])
    outcome = run(engine, [job(1, prompt, sampling=sampling, max_tokens=4, logprobs=2)])[1]
    assert outcome.failed is not None
    assert (outcome.failed.code, outcome.text) == (Code.NOT_FINITE, {})
    assert "not a finite number" in outcome.failed.message
    assert not engine.busy


def test_other_rows_answer_as_alone_when_one_is_broken(engine: ChatEngine) -> None:
    """Five rows share a cohort; the broken one leaves it, and the others say what each says by itself."""
    prompts = {number: TokenPrompt([50 + number, 51, 52]) for number in range(4)}
    alone = {number: run(engine, [job(number, prompts[number], max_tokens=12)])[number].text for number in prompts}
    everyone = [job(number, prompts[number], max_tokens=12) for number in prompts]
    together = run(engine, [*everyone[:2], job(9, TokenPrompt([BAD]), max_tokens=12), *everyone[2:]])
    failed = together.pop(9).failed
    assert failed is not None
    assert failed.code is Code.NOT_FINITE
    assert {number: outcome.text for number, outcome in together.items()} == alone


def test_row_fails_later_when_it_meets_the_bad_token_while_it_answers(engine: ChatEngine) -> None:
    """Pushed to say it: what came before is kept, what would come behind is an error, not a wrong word."""
    pushed = job(1, TokenPrompt([40, 41]), sampling={"logit_bias": {BAD: 100.0}}, max_tokens=8)
    outcome = run(engine, [pushed])[1]
    assert outcome.failed is not None
    assert outcome.failed.code is Code.NOT_FINITE
    assert outcome.failed.usage is not None
    assert outcome.failed.usage.completion_tokens == 2
