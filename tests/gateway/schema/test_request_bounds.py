"""Every bound of a request: at the cap it passes, one over it is a 400 that names the parameter."""

import json
from typing import Any

import orjson
import pytest

from gateway.schema.base import Request
from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.completion import CompletionRequest
from gateway.schema.decode import decode
from gateway.schema.errors import ApiError
from gateway.schema.tokenize import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "hi"}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"a": schema}
    return schema


def sized(size: int) -> dict[str, Any]:
    return {"a": "x" * (size - len('{"a":""}'))}


def schema_format(schema: Any, *, name: str = "answer") -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


GENERATION: list[tuple[str, Any, Any, str]] = [
    ("temperature", 0, -0.001, "temperature"),
    ("temperature", 2, 2.001, "temperature"),
    ("temperature", 1, "1", "temperature"),
    ("temperature", 1.5, True, "temperature"),
    ("top_p", 0, -0.001, "top_p"),
    ("top_p", 1.0, 1.001, "top_p"),
    ("top_k", -1, -2, "top_k"),
    ("top_k", 2**31 - 1, 2**31, "top_k"),
    ("min_p", 0, -0.1, "min_p"),
    ("min_p", 1, 1.1, "min_p"),
    ("repetition_penalty", 0.001, 0, "repetition_penalty"),
    ("repetition_penalty", 10, 10.1, "repetition_penalty"),
    ("presence_penalty", -2, -2.1, "presence_penalty"),
    ("presence_penalty", 2, 2.1, "presence_penalty"),
    ("frequency_penalty", -2, -2.1, "frequency_penalty"),
    ("frequency_penalty", 2, 2.1, "frequency_penalty"),
    ("logit_bias", {"5": -100}, {"5": -101}, "logit_bias.5"),
    ("logit_bias", {"5": 100}, {"1": 0, "5": 101}, "logit_bias.5"),
    ("logit_bias", {"2147483647": 1}, {"2147483648": 1}, "logit_bias.2147483648"),
    ("logit_bias", {"0": 1}, {"-1": 1}, "logit_bias.-1"),
    ("logit_bias", {"7": 1}, {"seven": 1}, "logit_bias.seven"),
    ("logit_bias", {"7": 1}, {"٧": 1}, "logit_bias.٧"),
    ("logit_bias", {str(i): 0 for i in range(1024)}, {str(i): 0 for i in range(1025)}, "logit_bias"),
    ("seed", -(2**63), -(2**63) - 1, "seed"),
    ("seed", 2**63 - 1, 2**63, "seed"),
    ("seed", 1, 1.5, "seed"),
    ("stop", "x" * 256, "x" * 257, "stop"),
    ("logit_bias", {"5": 1}, {"5": "1"}, "logit_bias.5"),
    ("logit_bias", {"5": 1}, {"5": True}, "logit_bias.5"),
    ("stop", "", 5, "stop"),
    ("stop", ["a", "b" * 256], ["a", "b" * 257], "stop[1]"),
    ("stop", ["a", ""], ["a", None], "stop[1]"),
    ("stop", ["a"] * 32, ["a"] * 33, "stop"),
    ("max_tokens", 1, 0, "max_tokens"),
    ("max_tokens", 2**40, -2, "max_tokens"),
    ("max_tokens", -1, "5", "max_tokens"),
    ("max_tokens", 1e30, 1.5, "max_tokens"),
    ("n_predict", 1, 0, "n_predict"),
    ("num_predict", -1, -2, "num_predict"),
    ("max_new_tokens", 2**31, True, "max_new_tokens"),
    ("min_tokens", 0, -1, "min_tokens"),
    ("min_tokens", 16, 2**31, "min_tokens"),
    ("stop_token_ids", [2**31 - 1], [2**31], "stop_token_ids[0]"),
    ("stop_token_ids", list(range(128)), list(range(129)), "stop_token_ids"),
    ("repeat_penalty", 0.001, 0, "repeat_penalty"),
    ("repeat_penalty", 10, 10.1, "repeat_penalty"),
    ("usage", {"include": True}, {"include": 1}, "usage.include"),
    ("return_token_ids", True, 1, "return_token_ids"),
    ("return_tokens_as_token_ids", True, "yes", "return_tokens_as_token_ids"),
    ("n", 1, 0, "n"),
    ("n", 8, 9, "n"),
    ("model", "m" * 256, "m" * 257, "model"),
    ("model", "m", "", "model"),
    ("user", "u" * 1024, "u" * 1025, "user"),
    ("stream", True, "yes", "stream"),
    ("ignore_eos", True, 1, "ignore_eos"),
    ("return_timing", True, "true", "return_timing"),
    ("structured_outputs", {"regex": "x" * 65536}, {"regex": "x" * 65537}, "structured_outputs.regex"),
    ("structured_outputs", {"grammar": "é" * 32768}, {"grammar": "é" * 32769}, "structured_outputs.grammar"),
    ("structured_outputs", {"choice": ["a"] * 1024}, {"choice": ["a"] * 1025}, "structured_outputs.choice"),
    ("structured_outputs", {"choice": ["a"]}, {"choice": ["a", ""]}, "structured_outputs.choice[1]"),
    ("structured_outputs", {"json": sized(65536)}, {"json": sized(65537)}, "structured_outputs.json"),
    ("structured_outputs", {"json": nested(32)}, {"json": nested(33)}, "structured_outputs.json"),
    ("structured_outputs", {"json": '{"type": "object"}'}, {"json": "[1]"}, "structured_outputs.json"),
    ("structured_outputs", {"json_object": True}, {"json_object": False}, "structured_outputs"),
    ("structured_outputs", {"regex": "a"}, {"regex": "a", "json_object": True}, "structured_outputs"),
]
CHAT: list[tuple[str, Any, Any, str]] = [
    ("messages", [USER], [], "messages"),
    ("messages", [USER] * 2048, [USER] * 2049, "messages"),
    ("messages", [USER], {}, "messages"),
    ("messages", [USER], [USER, {"content": "x"}], "messages[1].role"),
    ("messages", [USER], [USER, {"role": "robot", "content": "x"}], "messages[1].role"),
    ("messages", [USER], [{"role": "user"}], "messages[0].content"),
    ("messages", [USER], [{"role": "user", "content": None}], "messages[0].content"),
    ("messages", [USER], [{"role": "user", "content": 5}], "messages[0].content"),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": ""}]}], [{"role": "user", "content": []}],
     "messages[0].content"),
    ("messages", [USER], [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ("messages", [USER], [{"role": "user", "content": [{"type": "poem"}]}], "messages[0].content[0].type"),
    ("messages", [USER], [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}],
     "messages[0].content[0].type"),
    ("messages", [{**USER, "name": "n" * 256}], [{**USER, "name": "n" * 257}], "messages[0].name"),
    ("messages", [USER, {"role": "assistant"}], [USER, {"role": "assistant", "content": 5}], "messages[1].content"),
    ("messages", [{"role": "tool", "content": "1", "tool_call_id": "c"}], [{"role": "tool", "content": "1"}],
     "messages[0].tool_call_id"),
    ("max_completion_tokens", 1, 0, "max_completion_tokens"),
    ("enable_thinking", True, "yes", "enable_thinking"),
    ("thinking", {"type": "enabled", "budget_tokens": -1}, {"type": "maybe"}, "thinking.type"),
    ("thinking", {"type": "adaptive", "clear_thinking": False}, {"type": "enabled", "budget_tokens": -2},
     "thinking.budget_tokens"),
    ("thinking", True, 5, "thinking"),
    ("thinking_budget", -1, -2, "thinking_budget"),
    ("thinking_budget", 2**31 - 1, 2**31, "thinking_budget"),
    ("reasoning", {"effort": "none", "enabled": False}, {"effort": "huge"}, "reasoning.effort"),
    ("reasoning", {"max_tokens": 2**31 - 1, "exclude": True}, {"max_tokens": -2}, "reasoning.max_tokens"),
    ("include_reasoning", False, 0, "include_reasoning"),
    ("tools", [tool()] * 128, [tool()] * 129, "tools"),
    ("tools", [tool(name="a" * 64)], [tool(name="a" * 65)], "tools[0].function.name"),
    ("tools", [tool(name="a_b-c.d")], [tool(name="a b")], "tools[0].function.name"),
    ("tools", [tool(parameters=sized(65536))], [tool(), tool(parameters=sized(65537))], "tools[1].function.parameters"),
    ("tools", [tool(parameters=nested(32))], [tool(parameters=nested(33))], "tools[0].function.parameters"),
    ("tools", [tool(parameters=nested(2))], [tool(parameters=nested(600))], "tools[0].function.parameters"),
    ("tools", [tool(parameters={})], [tool(parameters=[])], "tools[0].function.parameters"),
    ("tools", [tool()], [{"type": "function"}], "tools[0].function"),
    ("tool_choice", "auto", "maybe", "tool_choice"),
    ("tool_choice", "none", {"type": "function"}, "tool_choice.function"),
    ("tool_choice", "none", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
     "tool_choice.allowed_tools.tools"),
    ("metadata", {str(i): "" for i in range(16)}, {str(i): "" for i in range(17)}, "metadata"),
    ("metadata", {"k": "v" * 512}, {"k": "v" * 513}, "metadata"),
    ("metadata", {"k" * 64: ""}, {"k" * 65: ""}, "metadata"),
    ("metadata", {"k": "v"}, {"k": 1}, "metadata"),
    ("response_format", {"type": "text"}, {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_object"}, {"type": "json_schema"}, "response_format.json_schema"),
    ("response_format", schema_format(sized(65536)), schema_format(sized(65537)), "response_format.json_schema.schema"),
    ("response_format", schema_format(nested(32)), schema_format(nested(33)), "response_format.json_schema.schema"),
    ("response_format", schema_format({}), schema_format(["object"]), "response_format.json_schema.schema"),
    ("response_format", schema_format({}, name="n" * 64), schema_format({}, name="n" * 65),
     "response_format.json_schema.name"),
    ("reasoning_effort", "low", "huge", "reasoning_effort"),
    ("chat_template_kwargs", {"reasoning_effort": "low"}, {"reasoning_effort": 5},
     "chat_template_kwargs.reasoning_effort"),
    ("chat_template_kwargs", {"enable_thinking": None}, {"enable_thinking": 1}, "chat_template_kwargs.enable_thinking"),
    ("chat_template_kwargs", {}, {f"n{n}": 1 for n in range(33)}, "chat_template_kwargs"),
    ("chat_template_kwargs", {f"n{n}": n / 2 for n in range(32)}, {"n": [1]}, "chat_template_kwargs"),
    ("chat_template_kwargs", {"n" * 64: "v" * 4096}, {"n" * 65: 1}, "chat_template_kwargs." + "n" * 64),
    ("chat_template_kwargs", {"a": True, "b": -(2**63)}, {"a": "v" * 4097}, "chat_template_kwargs"),
    ("chat_template_kwargs", {"a1_": 0}, {"a b": 0}, "chat_template_kwargs.a b"),
    ("add_generation_prompt", False, 0, "add_generation_prompt"),
    ("continue_final_message", False, "yes", "continue_final_message"),
    ("modalities", ["text"], ["smell"], "modalities[0]"),
    ("modalities", ["text"], [], "modalities"),
    ("verbosity", "high", "extreme", "verbosity"),
    ("service_tier", "auto", "gold", "service_tier"),
    ("prompt_cache_key", "k" * 1024, "k" * 1025, "prompt_cache_key"),
    ("safety_identifier", "k" * 1024, "k" * 1025, "safety_identifier"),
    ("parallel_tool_calls", False, 0, "parallel_tool_calls"),
    ("store", True, "no", "store"),
]  # fmt: skip
COMPLETION: list[tuple[str, Any, Any, str]] = [
    ("prompt", "", None, "prompt"),
    ("prompt", ["a"] * 128, ["a"] * 129, "prompt"),
    ("prompt", [[1]] * 128, [[1]] * 129, "prompt"),
    ("prompt", [1] * 129, [], "prompt"),
    ("prompt", [[1]], [[]], "prompt[0]"),
    ("prompt", [0], [-1], "prompt[0]"),
    ("prompt", [2**31 - 1], [2**31], "prompt[0]"),
    ("prompt", [[0]], [[0], [1, -1]], "prompt[1][1]"),
    ("prompt", [1], [True], "prompt[0]"),
    ("prompt", ["a", "b"], ["a", 1], "prompt"),
    ("prompt", ["a", "b"], ["a", [1]], "prompt"),
    ("prompt", "x", {"a": 1}, "prompt"),
    ("logprobs", 0, -1, "logprobs"),
    ("logprobs", 5, 6, "logprobs"),
    ("add_special_tokens", False, 0, "add_special_tokens"),
    ("best_of", 1, 0, "best_of"),
    ("echo", True, "x", "echo"),
]
TOKENIZE: list[tuple[str, Any, Any, str]] = [
    ("prompt", "x", 5, "prompt"),
    ("model", "m" * 256, "m" * 257, "model"),
    ("add_special_tokens", False, 0, "add_special_tokens"),
    ("add_generation_prompt", None, 0, "add_generation_prompt"),
    ("continue_final_message", None, "yes", "continue_final_message"),
]
DETOKENIZE: list[tuple[str, Any, Any, str]] = [
    ("model", "m", 5, "model"),
    ("tokens", [0, 2**31 - 1], [0, 2**31], "tokens[1]"),
    ("tokens", [], [-1], "tokens[0]"),
    ("tokens", [], "x", "tokens"),
]
TABLE = [
    *[(ChatCompletionRequest, {"messages": [USER]}, *row) for row in GENERATION + CHAT],
    *[(CompletionRequest, {"prompt": "x"}, *row) for row in GENERATION + COMPLETION],
    *[(TokenizeRequest, {"prompt": "x"}, *row) for row in TOKENIZE],
    *[(DetokenizeRequest, {"tokens": []}, *row) for row in DETOKENIZE],
]
IDS = [f"{kind.__name__}-{field}-{number}" for number, (kind, _, field, *_) in enumerate(TABLE)]


@pytest.mark.parametrize(("kind", "base", "field", "good", "bad", "param"), TABLE, ids=IDS)
def test_bound_holds_when_at_the_cap_and_one_over(
    kind: type[Request], base: dict[str, Any], field: str, good: Any, bad: Any, param: str
) -> None:
    """At the cap a value is kept; one over is a 400 with the field's path as `param`."""
    decode(orjson.dumps(base | {field: good}), kind)
    # The stdlib's encoder, since orjson can write neither integers over 64 bits nor 254 levels.
    with pytest.raises(ApiError) as raised:
        decode(json.dumps(base | {field: bad}).encode(), kind)
    assert raised.value.status == 400
    assert raised.value.code == "invalid_request"
    assert raised.value.param == param
    assert param in raised.value.message


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest])
def test_table_covers_every_field_when_a_field_is_added(kind: type[Request]) -> None:
    """A field without a row in the table (or in the list of fields bounded by rules of their own) is noticed."""
    elsewhere = {"logprobs", "top_logprobs", "stream_options", "messages", "tools", "chat_template_kwargs"}
    assert {field for row_kind, _, field, *_ in TABLE if row_kind is kind} | elsewhere >= set(kind.__struct_fields__)
