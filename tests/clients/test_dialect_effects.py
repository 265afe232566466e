"""What clients of other servers send has its effect: over HTTP, on a real engine, streamed and not."""

import json
from typing import Any

import pytest
from stress.running_pool import RunningPool

from tests.support.pool_fixtures import CONTEXT, QWEN_NAME

pytestmark = pytest.mark.mlx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "tell me about the sea"}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
GREEDY = {"temperature": 0, "ignore_eos": True}


def ask(pool: RunningPool, path: str = CHAT, **fields: Any) -> Any:
    base: dict[str, Any] = {"model": QWEN_NAME, "max_tokens": 8}
    base |= {"messages": MESSAGES} if path == CHAT else {"prompt": "the sea is"}
    answer = pool.post(path, base | fields)
    assert answer.status == 200, answer.body
    return answer.json()


def token(pool: RunningPool, text: str) -> int:
    tokens = pool.post("/tokenize", {"model": QWEN_NAME, "prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert len(tokens) == 1
    return int(tokens[0])


def thinking_for_ever(pool: RunningPool) -> dict[str, Any]:
    bias = {str(token(pool, "<think>")): 20, str(token(pool, "</think>")): -100}
    return {"temperature": 1, "seed": 3, "logit_bias": bias}


@pytest.mark.parametrize(
    ("on", "off"),
    [
        ({"enable_thinking": True}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}),
        ({"thinking": True}, {"thinking": False}),
        ({"reasoning": {"enabled": True}}, {"reasoning": {"enabled": False}}),
        ({"reasoning": {"effort": "high"}}, {"reasoning": {"effort": "none"}}),
    ],
)
def test_prompt_closes_the_thought_when_thinking_is_turned_off(qwen: RunningPool, on: Any, off: Any) -> None:
    """The template writes an empty thought, in whichever dialect that is asked for."""
    end = token(qwen, "</think>")
    quiet = ask(qwen, **off, return_token_ids=True)["prompt_token_ids"]
    loud = ask(qwen, **on, return_token_ids=True)["prompt_token_ids"]
    assert (end in quiet, end in loud) == (True, False)
    assert (
        quiet == ask(qwen, chat_template_kwargs={"enable_thinking": False}, return_token_ids=True)["prompt_token_ids"]
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_budget": 6},
        {"thinking": {"type": "enabled", "budget_tokens": 6}},
        {"reasoning": {"max_tokens": 6}},
        {"chat_template_kwargs": {"thinking_budget": 6}},
    ],
)
def test_thought_is_closed_when_its_budget_is_spent(qwen: RunningPool, fields: dict[str, Any]) -> None:
    """A model that thinks for ever comes to an answer, in whichever dialect the budget is given."""
    answer = ask(qwen, **fields, **thinking_for_ever(qwen), max_tokens=40, ignore_eos=True, return_token_ids=True)
    ids = answer["choices"][0]["token_ids"]
    assert (ids.index(token(qwen, "<think>")), ids.index(token(qwen, "</think>"))) == (0, 7)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("wanted", ["schema", "call"])
def test_demand_is_met_when_the_model_thinks_for_ever(qwen: RunningPool, wanted: str, streamed: bool) -> None:
    """A schema or a demanded call comes whole, without any budget being named."""
    fields: dict[str, Any] = {"response_format": FORMAT} if wanted == "schema" else {
        "tools": [LOOK], "tool_choice": "required",
    }  # fmt: skip
    fields |= {"max_tokens": 160, **thinking_for_ever(qwen)}
    if not streamed:
        choice = ask(qwen, **fields)["choices"][0]
        message = choice["message"]
        assert message["reasoning_content"]
        found = message["content"] if wanted == "schema" else message["tool_calls"][0]["function"]["arguments"]
    else:
        body = qwen.post(CHAT, {"model": QWEN_NAME, "messages": MESSAGES, "stream": True, **fields}).body.decode()
        frames = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]
        deltas = [frame["choices"][0]["delta"] for frame in frames]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas)
        pieces = [call["function"].get("arguments") or "" for delta in deltas for call in delta.get("tool_calls") or []]
        found = "".join(pieces) or "".join(delta.get("content") or "" for delta in deltas)
        choice = frames[-1]["choices"][0]
    assert json.loads(found)["a"] in ("b", "c")
    assert choice["finish_reason"] == ("stop" if wanted == "schema" else "tool_calls")


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_reasoning_is_not_told_when_a_client_wants_none(qwen: RunningPool, fields: dict[str, Any]) -> None:
    """It is thought, and counted."""
    answer = ask(qwen, **fields, thinking_budget=4, max_tokens=20, **thinking_for_ever(qwen))
    assert "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_penalty_is_the_same_when_it_has_another_name(qwen: RunningPool, path: str) -> None:
    """`repeat_penalty` is `repetition_penalty`, and changes the answer."""

    def text(**fields: Any) -> str:
        choice = ask(qwen, path, **{**GREEDY, "max_tokens": 24, **fields})["choices"][0]
        return str(choice.get("text") or choice.get("message"))

    assert text(repeat_penalty=1.9) == text(repetition_penalty=1.9) != text()


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", ["max_tokens", "n_predict", "num_predict", "max_new_tokens"])
def test_answer_has_that_many_tokens_when_the_ceiling_has_another_name(qwen: RunningPool, path: str, name: str) -> None:
    """All of them are the same ceiling; none is refused for being high."""
    for asked, told in ((5, 5), (-1, 16 if path == TEXT else None), (10**15, None)):
        prompt = {"prompt": [5] * (CONTEXT - 20)} if path == TEXT else {"messages": [*MESSAGES] * 40}
        answer = ask(qwen, path, **{**GREEDY, **prompt, "max_tokens": None, name: asked})
        usage = answer["usage"]
        assert usage["completion_tokens"] == (told or CONTEXT - usage["prompt_tokens"])
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_answer_goes_on_when_it_must_have_so_many_tokens(qwen: RunningPool, path: str) -> None:
    """With an end that is certain, and with a stop text."""
    end = token(qwen, "<|im_end|>")
    for least in (0, 4):
        answer = ask(qwen, path, logit_bias={str(end): 100}, min_tokens=least, return_token_ids=True)
        ids = answer["choices"][0]["token_ids"]
        assert (len(ids), ids[-1], answer["choices"][0]["finish_reason"]) == (least + 1, end, "stop")
    free = ask(qwen, path, **GREEDY, max_tokens=12, return_token_ids=True)["choices"][0]
    stop = free["token_ids"][3]
    ended = ask(qwen, path, **GREEDY, max_tokens=12, stop_token_ids=[stop], return_token_ids=True)["choices"][0]
    assert ended["token_ids"] == free["token_ids"][: free["token_ids"].index(stop) + 1]
    assert ended["finish_reason"] == "stop"


def test_completion_tells_the_chosen_tokens_when_no_alternatives_are_wanted(qwen: RunningPool) -> None:
    """`logprobs` 0: a log-probability for each token, streamed and not, with the prompt's where it is echoed."""
    for more in ({}, {"echo": True}):
        whole = ask(qwen, TEXT, **GREEDY, logprobs=0, **more)
        found = whole["choices"][0]["logprobs"]
        total = whole["usage"]["total_tokens" if more else "completion_tokens"]
        assert len(found["tokens"]) == len(found["token_logprobs"]) == total
        assert all(value is None or value <= 0 for value in found["token_logprobs"])
        assert found["top_logprobs"] is None
        full = ask(qwen, TEXT, **GREEDY, logprobs=2, **more)["choices"][0]["logprobs"]
        assert full["tokens"] == found["tokens"]


def test_tokens_are_named_by_number_when_texts_would_be_ambiguous(qwen: RunningPool) -> None:
    """`return_tokens_as_token_ids`, as vLLM has it, on both endpoints."""
    text = ask(qwen, TEXT, **GREEDY, logprobs=1, return_tokens_as_token_ids=True, return_token_ids=True)["choices"][0]
    assert text["logprobs"]["tokens"] == [f"token_id:{one}" for one in text["token_ids"]]
    chat = ask(qwen, **GREEDY, logprobs=True, return_tokens_as_token_ids=True, return_token_ids=True)["choices"][0]
    assert [one["token"] for one in chat["logprobs"]["content"]] == [f"token_id:{one}" for one in chat["token_ids"]]


def test_special_tokens_stay_out_when_a_completion_says_so(qwen: RunningPool) -> None:
    """The ids of the prompt are those that `/tokenize` counts with the same switch."""
    for switch in (True, False):
        asked = {"prompt": "the sea", "add_special_tokens": switch}
        counted = qwen.post("/tokenize", {"model": QWEN_NAME, **asked}).json()["tokens"]
        assert ask(qwen, TEXT, **asked, return_token_ids=True)["choices"][0]["prompt_token_ids"] == counted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"5": 1, "50300": 1}}, "logit_bias.50300"),
        ({"logit_bias": {"5": 1, "seven": 1}}, "logit_bias.seven"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7"),
        ({"stop_token_ids": [1, 50300]}, "stop_token_ids[1]"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"mirostat": 2}, "mirostat"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_parameter_at_fault_is_named_when_a_request_is_refused(
    qwen: RunningPool, path: str, fields: dict[str, Any], param: str
) -> None:
    """Down to the entry of a list or an object."""
    base: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": "x"}
    answer = qwen.post(path, {"model": QWEN_NAME, **base, **fields})
    assert (answer.status, answer.error["param"]) == (400, param)


def test_tokenizer_tells_of_itself_when_a_harness_asks(qwen: RunningPool) -> None:
    """At the root and below `/v1`: special tokens and the template that renders its chats."""
    for path in ("/tokenizer_info", "/v1/tokenizer_info", f"/tokenizer_info?model={QWEN_NAME}"):
        told = qwen.get(path).json()
        assert told["eos_token"] == "<|im_end|>"
        assert "<|im_start|>" in told["chat_template"]
        assert told["model_max_length"] == CONTEXT
    assert qwen.get("/version").json()["version"]


def test_header_names_what_changed_nothing_when_an_answer_comes(qwen: RunningPool) -> None:
    """The answer is the one without those parameters."""
    fields = {"mirostat": 0, "cache_prompt": True, "keep_alive": "5m", "user": "u"}
    answer = qwen.post(CHAT, {"model": QWEN_NAME, "messages": MESSAGES, "max_tokens": 8, **GREEDY, **fields})
    assert answer.headers["x-ignored-parameters"] == "cache_prompt, keep_alive, mirostat, user"
    assert answer.json()["choices"] == ask(qwen, **GREEDY)["choices"]
