"""Which tokens end an answer: the union of what all files say, with real tokenizers."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from protocol.messages import TokenPrompt
from tests.support.engine_runs import job, run
from tests.support.real_tokenizers import fetch_tokenizer, make_tiny_model
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine
from worker.engines.ends import end_tokens
from worker.engines.loading import load

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES_ONLY = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|fim_pad|>{% endif %}"
)
LAST_ONLY = "{% for m in messages %}{{ m.content }}{% if loop.last %}<|endoftext|>{% endif %}{% endfor %}"
REFUSING = "{{ raise_exception('only with tools') }}"
NAMED = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.tool_calls %}<|endoftext|>{% else %}<|im_end|>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer_of() -> Callable[[str], Any]:
    """Real tokenizers that name no end themselves."""

    @cache
    def make(name: str) -> Any:
        tokenizer = load_tokenizer(fetch_tokenizer(name))
        tokenizer._tokenizer._special_tokens_map.pop("eos_token", None)
        return tokenizer

    return make


def named(tokenizer: Any, ends: set[int]) -> set[str]:
    return {tokenizer.convert_ids_to_tokens(number) for number in ends}


def told(folder: Path, *, eos: str | None = "", generation: Any = None, **config: Any) -> Path:
    """Change what the files of a folder say of its ends. `eos` is the tokenizer's; empty: as it is."""
    if eos != "":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": eos}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", {"<|im_end|>"}),
        ("llama3", {"<|eot_id|>"}),
        ("deepseek", {"<｜end▁of▁sentence｜>"}),
        ("gemma3", {"<end_of_turn>"}),
        ("gpt-oss", {"<|return|>", "<|call|>"}),
    ],
)
def test_turn_ends_where_the_template_says_when_no_file_does(
    name: str, expected: set[str], tokenizer_of: Callable[[str], Any]
) -> None:
    """The files' own end is another token: the one behind an answer in the template counts as well."""
    tokenizer = tokenizer_of(name)
    ends = end_tokens({"config": {"eos_token_id": 5}}, tokenizer)
    assert named(tokenizer, ends) == {*expected, tokenizer.convert_ids_to_tokens(5)}


def test_ends_are_all_that_any_file_names(tmp_path: Path) -> None:
    """Config, the part for text, generation_config and tokenizer: one token of each, or a list."""
    folder = make_tiny_model(fetch_tokenizer("qwen3"), tmp_path / "m", template="{{ messages[0].content }}")
    told(folder, eos="<|endoftext|>", eos_token_id=11, generation=[12, 13], text_config={"eos_token_id": [14]})
    tokenizer = load(WorkerConfig(model_path=str(folder), served_name="m")).tokenizer
    assert tokenizer.eos_token_ids == {11, 12, 13, 14, tokenizer.convert_tokens_to_ids("<|endoftext|>")}


@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        ("qwen3", CHATML, {"<|im_end|>"}),
        ("qwen3", ROLES_ONLY, {"<|im_start|>"}),
        ("qwen3", LAST_ONLY, {"<|endoftext|>"}),
        ("qwen3", REFUSING, set()),
        ("qwen3", NAMED, {"<|endoftext|>", "<|im_end|>"}),
        ("qwen3", "{{ messages[0].content }}", set()),
        ("qwen3", "{% if false %}<|im_end|>{% endif %}{{ messages[0].content }}", {"<|im_end|>"}),
    ],
)
def test_ends_are_found_in_templates_of_all_kinds(
    name: str,
    template: str,
    expected: set[str],
    tokenizer_of: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind every turn, behind the last one alone, the next turn's beginning, named in a branch; or none at all."""
    tokenizer = tokenizer_of(name)
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)
    assert named(tokenizer, end_tokens({}, tokenizer)) == expected


def test_answer_stops_at_the_end_of_the_turn_when_config_names_the_end_of_the_text(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A tiny model that is pushed to write `<|im_end|>`: the answer ends there, and does not show it."""
    folder = shutil.copytree(model_folder("qwen3"), tmp_path / "m")
    other = json.loads((folder / "config.json").read_text())["eos_token_id"]
    told(folder, eos=None, eos_token_id=3)
    (folder / "generation_config.json").unlink()
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="m"))
    engine.load()
    end = engine.loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end == (other if isinstance(other, int) else other[0])
    pushed = run(engine, [job(1, TokenPrompt([40, 41]), sampling={"logit_bias": {end: 100.0}}, max_tokens=8)])[1]
    assert (pushed.finish, pushed.text[0]) == ({0: "stop"}, "")
