"""The tiny models' tokenizer keeps every text whole, and its chat template is Qwen3's in what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
USER = {"role": "user", "content": "Hello"}
TEXTS = st.one_of(st.text(), st.lists(st.one_of(st.text(), st.sampled_from([*MARKS, " ", "\n", "🦜"]))).map("".join))


@pytest.fixture(scope="session", params=["qwen3", "bench-qwen3"])
def tokenizer(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Any:
    return transformers.AutoTokenizer.from_pretrained(model_folder(request.param))


def render(tokenizer: Any, messages: list[dict[str, Any]], **more: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    return text


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_text_comes_back_whatever_it_is(tokenizer: Any, text: str) -> None:
    """Any text, control tokens in it or not, is decoded to itself."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("character", ["🦜", "👩‍🚀", "𓀀", "ꙮ"])
def test_rare_character_spans_several_tokens(tokenizer: Any, character: str) -> None:
    """Streams have to hold back half a character; this is what makes one."""
    assert len(tokenizer.encode(character)) > 1


def test_ordinary_text_takes_few_tokens(tokenizer: Any) -> None:
    """It learned something: English words are not spelled out."""
    text = "Please answer the question: where does the river flow when the winter storm has gone?"
    assert len(tokenizer.encode(text)) < len(text) / 3


@pytest.mark.parametrize("mark", MARKS)
def test_control_token_is_one_token(tokenizer: Any, mark: str) -> None:
    """Found by id, not by spelling."""
    assert tokenizer.encode(mark) == [tokenizer.convert_tokens_to_ids(mark)]


def test_plain_turns_render_as_chatml(tokenizer: Any) -> None:
    """System, user and assistant turns, each between its marks."""
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Hi"}, USER]
    assert render(tokenizer, messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("flag", "tail"),
    [({}, ""), ({"enable_thinking": True}, ""), ({"enable_thinking": False}, "<think>\n\n</think>\n\n")],
)
def test_thinking_switched_off_opens_with_an_empty_thought(tokenizer: Any, flag: dict[str, bool], tail: str) -> None:
    """As Qwen3 does it: off means thought through already."""
    prompt = render(tokenizer, [USER], add_generation_prompt=True, **flag)
    assert prompt == f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n{tail}"


def test_tools_are_listed_as_json_in_the_system_turn(tokenizer: Any) -> None:
    """The model reads the signatures as the client sent them, after its instructions."""
    prompt = render(tokenizer, [{"role": "system", "content": "Be brief."}, USER], tools=[TOOL, TOOL])
    listed = prompt.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in listed] == [TOOL, TOOL]
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert prompt.count("Be brief.") == 1


@pytest.mark.parametrize("arguments", [{"city": "Zürich"}, '{"city": "Zürich"}'])
def test_calls_and_results_render_when_arguments_are_text_or_not(tokenizer: Any, arguments: Any) -> None:
    """Calls go out as JSON between marks, results in a row share one user turn."""
    call = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": arguments}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        {"role": "tool", "tool_call_id": "2", "content": "rain"},
    ]
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    assert render(tokenizer, messages, tools=[TOOL]).split("<|im_end|>\n", 2)[2] == (
        f"<|im_start|>assistant\n{written}\n{written}<|im_end|>\n<|im_start|>user\n<tool_response>\nsun\n"
        "</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
    )


@pytest.mark.parametrize(
    "thought", [{"content": "Hi", "reasoning_content": "Hm."}, {"content": "<think>\nHm.\n</think>\n\nHi"}]
)
def test_reasoning_is_dropped_once_the_user_spoke_again(tokenizer: Any, thought: dict[str, str]) -> None:
    """Past turns lose their thoughts; the turn that is still going on keeps them, for its tool calls."""
    answer = {"role": "assistant", **thought}
    assert "Hm." not in render(tokenizer, [USER, answer, USER])
    assert render(tokenizer, [USER, answer]).endswith("assistant\n<think>\nHm.\n</think>\n\nHi<|im_end|>\n")


def test_same_question_twice_counts_the_last_one(tokenizer: Any) -> None:
    """The last user turn is found by place, not by what it says."""
    answer = {"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}
    assert render(tokenizer, [USER, answer, USER, answer]).count("Hm.") == 1


def test_unknown_role_is_refused(tokenizer: Any) -> None:
    """The template says so, rather than leaving the message out."""
    with pytest.raises(Exception, match="Unexpected role: critic"):
        render(tokenizer, [{"role": "critic", "content": "No."}])
