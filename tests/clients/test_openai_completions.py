"""Plain completions, models and token counts through the unmodified `openai` client."""

from typing import Any

import pytest
from openai import NotFoundError, OpenAI
from stress.running_pool import RunningPool

from tests.support.pool_fixtures import CONTEXT, QWEN_NAME

pytestmark = pytest.mark.mlx

GREEDY: dict[str, Any] = {"model": QWEN_NAME, "temperature": 0, "max_tokens": 12}


def test_same_text_comes_back_however_the_prompt_is_given(client: OpenAI, qwen: RunningPool) -> None:
    """A string, its token ids, and lists of either are continued alike, one choice per prompt, in order."""
    prompts = ["the sea is", "once upon a time there was"]
    ids = [qwen.post("/v1/tokenize", {"prompt": prompt}).json()["tokens"] for prompt in prompts]
    alone = [client.completions.create(**GREEDY, prompt=prompt).choices[0].text for prompt in prompts]
    assert alone[0] != alone[1]
    for given in (prompts, ids):
        answer = client.completions.create(**GREEDY, prompt=given)
        assert [choice.text for choice in answer.choices] == alone
        assert [choice.index for choice in answer.choices] == [0, 1]
    assert client.completions.create(**GREEDY, prompt=ids[0]).choices[0].text == alone[0]
    answer = client.completions.create(**GREEDY, prompt=prompts)
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_streams_of_several_prompts_join_to_the_whole(client: OpenAI) -> None:
    """Two prompts, two choices each, interleaved in one stream: each choice as unstreamed."""
    asked: dict[str, Any] = {**GREEDY, "prompt": ["the sea", "the sky"], "n": 2, "temperature": 0.8, "seed": 3}
    whole = client.completions.create(**asked)
    assert len({choice.text for choice in whole.choices}) == 4
    texts = [""] * 4
    reasons: list[str | None] = [None] * 4
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = reasons[choice.index] or choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_prompt_comes_first_when_echo_is_asked_for(client: OpenAI) -> None:
    """`echo`: prompt and continuation, streamed and not."""
    plain = client.completions.create(**GREEDY, prompt="the sea is").choices[0].text
    assert client.completions.create(**GREEDY, prompt="the sea is", echo=True).choices[0].text == f"the sea is{plain}"
    chunks = client.completions.create(**GREEDY, prompt="the sea is", echo=True, stream=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == f"the sea is{plain}"


def test_four_lists_agree_when_log_probabilities_are_asked_for(client: OpenAI) -> None:
    """`logprobs=2`: tokens, their log-probabilities, alternatives and offsets, one each per token."""
    choice = client.completions.create(**GREEDY, prompt="the sea is", logprobs=2).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    lengths = {len(found.tokens), len(found.token_logprobs), len(found.top_logprobs), len(found.text_offset)}
    assert lengths == {12}
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())
        assert 2 <= len(top) <= 3
    assert found.text_offset[0] == 0


def test_prompt_is_scored_when_echo_and_log_probabilities_are_asked_for(client: OpenAI) -> None:
    """As evaluation harnesses ask: `echo`, `logprobs`, no new tokens; streamed and not. The first entry is null."""
    asked: dict[str, Any] = {**GREEDY, "prompt": ["the sea is", "wide"], "echo": True, "logprobs": 1, "max_tokens": 0}
    whole = client.completions.create(**asked)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 0
    assert [choice.text for choice in whole.choices] == asked["prompt"]
    for choice in whole.choices:
        found: Any = choice.logprobs
        assert "".join(found.tokens) == choice.text
        assert (found.token_logprobs[0], found.top_logprobs[0], found.text_offset[0]) == (None, None, 0)
        for token, own, top in zip(found.tokens[1:], found.token_logprobs[1:], found.top_logprobs[1:], strict=True):
            assert top[token] == own <= max(top.values()) <= 0
        assert choice.finish_reason == "length"
    more = client.completions.create(**{**asked, "prompt": "the sea is", "max_tokens": 4}).choices[0].logprobs
    assert more is not None
    assert whole.choices[0].logprobs is not None
    assert more.tokens is not None
    assert more.token_logprobs is not None
    assert (more.token_logprobs[:2], len(more.tokens) - len(whole.choices[0].logprobs.tokens or ())) == (
        (whole.choices[0].logprobs.token_logprobs or [])[:2],
        4,
    )
    streamed = [chunk.choices[0] for chunk in client.completions.create(**{**asked, "prompt": "wide"}, stream=True)]
    assert streamed[0].logprobs == whole.choices[1].logprobs


def test_best_answers_are_given_when_more_are_made(client: OpenAI) -> None:
    """`best_of`: the likeliest per token of all that the seed gives, best first; all of them are paid for."""
    asked: dict[str, Any] = {**GREEDY, "prompt": "the sea is", "temperature": 1.0, "seed": 5}
    every = client.completions.create(**asked, n=6, logprobs=0)
    means = {}
    for choice in every.choices:
        assert choice.logprobs is not None
        values = [value for value in choice.logprobs.token_logprobs or [] if value is not None]
        means[choice.text] = sum(values) / len(values)
    best = client.completions.create(**asked, n=2, best_of=6)
    assert [choice.text for choice in best.choices] == sorted(means, key=lambda text: -means[text])[:2]
    assert [(choice.index, choice.logprobs) for choice in best.choices] == [(0, None), (1, None)]
    assert best.usage is not None
    assert every.usage is not None
    assert best.usage.completion_tokens == every.usage.completion_tokens
    echoed = client.completions.create(**asked, best_of=6, echo=True).choices[0].text
    assert echoed == f"the sea is{best.choices[0].text}"


def test_model_is_found_by_each_of_its_names(client: OpenAI) -> None:
    """A served name with `/` is listed and retrieved; requests may also name the model's folder or its family."""
    listed = client.models.list()
    assert [model.id for model in listed.data] == [QWEN_NAME]
    found = client.models.retrieve(QWEN_NAME)
    assert found.id == QWEN_NAME
    assert found.owned_by == "local-mlx"
    assert found.object == "model"
    extra: Any = found.model_extra
    assert extra["context_length"] == CONTEXT
    assert extra["family"] == "qwen"
    assert extra["tier"] == "3A"
    assert {"local", "chat"} <= set(extra["tags"])
    for name in (QWEN_NAME, "qwen3", "qwen"):
        assert client.completions.create(**{**GREEDY, "model": name}, prompt="the sea").model == QWEN_NAME
    with pytest.raises(NotFoundError):
        client.models.retrieve("acme/other")


@pytest.mark.parametrize("path", ["acme/tiny-qwen3", "acme%2Ftiny-qwen3", "acme%2ftiny%2Dqwen3"])
def test_model_is_found_when_its_slash_is_raw_or_encoded(qwen: RunningPool, path: str) -> None:
    """`/v1/models/{id}` and `/health/{id}` take both."""
    assert qwen.get(f"/v1/models/{path}").json()["id"] == QWEN_NAME
    assert qwen.get(f"/health/{path}").json()["id"] == QWEN_NAME


@pytest.mark.parametrize(
    "text", ["", "hello", "  two  spaces ", "naïve – “quoted” 漢字 🎉", "line\n\tbreak", "<|im_end|>"]
)
def test_text_survives_when_tokenized_and_back(qwen: RunningPool, text: str) -> None:
    """Text to ids to text is the identity; the count is right."""
    tokens = qwen.post("/v1/tokenize", {"model": QWEN_NAME, "prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == CONTEXT
    assert qwen.post("/v1/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": text}


def test_count_of_a_conversation_is_what_a_chat_is_charged(client: OpenAI, qwen: RunningPool) -> None:
    """`/v1/tokenize` with `messages` gives the prompt tokens that a chat completion reports."""
    messages: Any = [{"role": "user", "content": "how long is this?"}]
    counted = qwen.post("/v1/tokenize", {"messages": messages}).json()["count"]
    answer = client.chat.completions.create(model=QWEN_NAME, messages=messages, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == counted
