"""Other servers' names for what this one does: each arrives at the worker."""

from typing import Any

import orjson
import pytest

from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.completion import CompletionRequest
from gateway.schema.decode import decode
from protocol.messages import ChatPrompt, GenerateJob, TextPrompt


def chat_job(**fields: Any) -> GenerateJob:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return decode(orjson.dumps(body), ChatCompletionRequest).make_job(None, request_id="r", tenant="t")


def completion_job(**fields: Any) -> GenerateJob:
    (job,) = decode(orjson.dumps({"prompt": "x", **fields}), CompletionRequest).make_jobs(
        None, request_id="r", tenant="t"
    )
    return job


def template(job: GenerateJob) -> dict[str, Any]:
    assert isinstance(job.prompt, ChatPrompt)
    return job.prompt.template


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {}),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": False}, {"enable_thinking": False}),
        (
            {"thinking": {"type": "enabled", "clear_thinking": False}},
            {"enable_thinking": True, "clear_thinking": False},
        ),
        ({"reasoning": {"enabled": True}}, {"enable_thinking": True}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": "none"}}, {"reasoning_effort": "none", "enable_thinking": False}),
        ({"reasoning_effort": "none", "enable_thinking": True}, {"reasoning_effort": "none", "enable_thinking": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"reasoning_effort": "high"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {"exclude": True}}, {}),
    ],
)
def test_template_is_told_whether_to_think_when_a_client_says_so(fields: dict[str, Any], told: dict[str, Any]) -> None:
    """Every dialect ends in the same words for the chat template."""
    assert template(chat_job(**fields)) == told


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({}, None),
        ({"thinking_budget": 100}, 100),
        ({"thinking_budget": 0}, 0),
        ({"thinking_budget": -1}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, 7),
        ({"reasoning": {"max_tokens": 9}}, 9),
        ({"chat_template_kwargs": {"thinking_budget": 11}}, 11),
        ({"chat_template_kwargs": {"thinking_budget": 11}, "thinking_budget": 11}, 11),
    ],
)
def test_worker_is_told_how_long_to_think_when_a_client_says_so(fields: dict[str, Any], budget: int | None) -> None:
    """The bound travels on its own."""
    assert chat_job(**fields).thinking_budget == budget


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": -1}, None),
        ({"max_completion_tokens": -1.0}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"n_predict": 6}, 6),
        ({"num_predict": 7}, 7),
        ({"max_new_tokens": 8}, 8),
        ({"n_predict": -1, "max_tokens": 9}, 9),
        ({"max_tokens": 2**31}, 2**31 - 1),
        ({"max_tokens": 2**63}, 2**31 - 1),
        ({"max_tokens": 1e25}, 2**31 - 1),
    ],
)
def test_ceiling_is_the_same_when_it_has_another_name(fields: dict[str, Any], most: int | None) -> None:
    """-1 is no ceiling, and none is too high; a plain completion without one has 16 tokens."""
    assert chat_job(**fields).max_tokens == most
    if "max_completion_tokens" not in fields:
        assert completion_job(**fields).max_tokens == (16 if most is None else most)


def test_sampling_has_the_fields_of_other_servers_when_they_are_given() -> None:
    """Each of them is in the job."""
    for make in (chat_job, completion_job):
        sampling = make(repeat_penalty=1.25, min_tokens=3, stop_token_ids=[5, 6]).sampling
        assert (sampling.repetition_penalty, sampling.min_tokens, sampling.stop_token_ids) == (1.25, 3, [5, 6])
        job = make(return_token_ids=True, return_tokens_as_token_ids=True)
        assert (job.tell_prompt, job.number_tokens) == (True, True)
        assert (make().tell_prompt, make().number_tokens) == (False, False)


@pytest.mark.parametrize(("stop", "told"), [("", []), (["", "a", ""], ["a"]), ([""], []), ("a", ["a"])])
def test_stop_text_is_left_out_when_it_is_empty(stop: Any, told: list[str]) -> None:
    """It would stop nothing, or everything."""
    assert chat_job(stop=stop).stop == told


@pytest.mark.parametrize("asked", [None, True, False])
def test_special_tokens_are_left_out_when_a_completion_says_so(asked: bool | None) -> None:
    """As vLLM has it: they are added unless that is refused."""
    job = completion_job(add_special_tokens=asked)
    assert job.prompt == TextPrompt("x", asked is not False)
