"""Chat completions through the unmodified `openai` client, on a real (tiny) model."""

import math
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from tests.support.pool_fixtures import QWEN_NAME

pytestmark = pytest.mark.mlx

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tell me a story about the sea"}]
GREEDY: dict[str, Any] = {"model": QWEN_NAME, "messages": HELLO, "temperature": 0, "max_tokens": 64}
SAMPLED: dict[str, Any] = {**GREEDY, "temperature": 0.9, "top_p": 0.95}


def joined(chunks: list[ChatCompletionChunk], choice: int = 0) -> str:
    """The content of one choice of a stream."""
    entries = [entry for chunk in chunks for entry in chunk.choices if entry.index == choice]
    return "".join(entry.delta.content or "" for entry in entries)


def test_answer_is_complete_when_asked_plainly(client: OpenAI) -> None:
    """Everything that a client reads of an answer is there and adds up."""
    answer = client.chat.completions.create(**GREEDY)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == QWEN_NAME
    assert answer.created > 1_700_000_000
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 64
    assert answer.usage.prompt_tokens > 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 64
    assert answer._request_id


def test_deltas_join_to_the_whole_answer_when_streamed(client: OpenAI) -> None:
    """The same greedy answer, piece by piece, with a role first, a reason last and usage only if asked for."""
    whole = client.chat.completions.create(**GREEDY)
    with client.chat.completions.create(**GREEDY, stream=True) as stream:
        chunks = list(stream)
    assert joined(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [entry.finish_reason for chunk in chunks for entry in chunk.choices if entry.finish_reason] == ["length"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)
    assert len(chunks) > 10


def test_usage_comes_last_when_asked_for(client: OpenAI) -> None:
    """`include_usage`: one last chunk without choices, the same numbers as unstreamed."""
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].object == "chat.completion.chunk"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_helper_of_the_client_assembles_the_stream(client: OpenAI) -> None:
    """`chat.completions.stream`, the client's own accumulator, arrives at the unstreamed answer."""
    asked: dict[str, Any] = {**GREEDY, "stop": ["a", "e"]}  # it takes an answer that ran out of tokens for an error
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_three_choices_differ_and_repeat_when_seeded(client: OpenAI) -> None:
    """`n=3` with a seed: three different answers, the same three again, streamed and not; one prompt is counted."""
    first = client.chat.completions.create(**SAMPLED, n=3, seed=7)
    again = client.chat.completions.create(**SAMPLED, n=3, seed=7)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in again.choices] == texts
    chunks = list(client.chat.completions.create(**SAMPLED, n=3, seed=7, stream=True))
    assert [joined(chunks, at) for at in range(3)] == texts
    alone = client.chat.completions.create(**SAMPLED, seed=7)
    assert alone.choices[0].message.content == texts[0]
    assert first.usage is not None
    assert alone.usage is not None
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens
    assert first.usage.completion_tokens == sum(64 if c.finish_reason == "length" else 0 for c in first.choices)


def test_answers_differ_when_no_seed_is_given(client: OpenAI) -> None:
    """Without a seed each request draws its own."""
    texts = {client.chat.completions.create(**SAMPLED).choices[0].message.content for _ in range(3)}
    assert len(texts) == 3
    seeds = {client.chat.completions.create(**SAMPLED, seed=seed).choices[0].message.content for seed in (1, 2, -1)}
    assert len(seeds) == 3


@pytest.mark.parametrize("as_list", [False, True])
def test_text_ends_before_the_stop_when_one_is_given(client: OpenAI, as_list: bool) -> None:
    """A stop string, alone or in a list, ends the answer before itself, streamed and not; it may span tokens."""
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content or ""
    stop = whole[20:27]
    given = ["never said by it", stop] if as_list else stop
    answer = client.chat.completions.create(**GREEDY, stop=given)
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(**GREEDY, stop=given, stream=True))
    assert joined(chunks) == whole[: whole.index(stop)]


def test_log_probabilities_are_of_the_chosen_tokens_when_asked_for(client: OpenAI) -> None:
    """One entry per token whose bytes join to the text; greedy's choice is the likeliest; streamed the same."""
    asked = {**GREEDY, "max_tokens": 24, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content
    assert content is not None
    assert len(content) == 24
    raw = b"".join(bytes(entry.bytes or []) for entry in content)
    assert raw.decode(errors="replace") == answer.choices[0].message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob <= 0
        assert entry.logprob == max(other.logprob for other in entry.top_logprobs)
        assert sum(math.exp(other.logprob) for other in entry.top_logprobs) <= 1.0001
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [
        entry
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or []
    ]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in content]
    plain = client.chat.completions.create(**{**asked, "top_logprobs": 0})
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.content is not None
    assert plain.choices[0].logprobs.content[0].top_logprobs == []


def test_bias_forces_and_forbids_tokens_when_given(client: OpenAI) -> None:
    """`logit_bias` of 100 on one token says it again and again; of −100 never."""
    forced = client.chat.completions.create(**{**GREEDY, "max_tokens": 5}, logit_bias={"300": 100}, logprobs=True)
    assert forced.choices[0].logprobs is not None
    assert len({entry.token for entry in forced.choices[0].logprobs.content or []}) == 1
    free = client.chat.completions.create(**GREEDY)
    forbidden = client.chat.completions.create(**GREEDY, logit_bias={"300": -100})
    assert forbidden.choices[0].message.content == free.choices[0].message.content


def test_all_of_a_conversation_is_taken_when_sent(client: OpenAI) -> None:
    """Every role, part lists, tool calls with results, tools on offer and bookkeeping fields are accepted."""
    messages: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
        {"role": "user", "content": [{"type": "text", "text": "weather in "}, {"type": "text", "text": "Rome?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "sunny"},
        {"role": "user", "content": "and tomorrow?", "name": "ann"},
    ]
    tool: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    asked: dict[str, Any] = {**GREEDY, "messages": messages, "tools": [tool], "tool_choice": "auto"}
    answer = client.chat.completions.create(
        **asked,
        user="u",
        metadata={"a": "b"},
        store=False,
        safety_identifier="s",
        verbosity="low",
        service_tier="auto",
        prompt_cache_key="k",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "return_timing": True},
    )
    without = client.chat.completions.create(**{**asked, "tool_choice": "none"})
    assert answer.usage is not None
    assert without.usage is not None
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens
    timings: Any = answer.timings  # type: ignore[attr-defined]
    assert timings["tokens_per_second"] > 0


def test_prefix_is_found_again_when_a_conversation_goes_on(client: OpenAI) -> None:
    """The second turn says how many of its prompt's tokens were cached."""
    long: Any = [{"role": "user", "content": "once upon a time " * 60}]
    first = client.chat.completions.create(**{**GREEDY, "messages": long})
    again = client.chat.completions.create(**{**GREEDY, "messages": long})
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > again.usage.prompt_tokens / 2
    assert again.choices[0].message.content == first.choices[0].message.content
