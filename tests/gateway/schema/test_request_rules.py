"""What a request may not say: unknown names, what this server does not do, contradictions, hostile JSON."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.schema.base import Request
from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.completion import CompletionRequest
from gateway.schema.decode import decode, depth
from gateway.schema.errors import ApiError
from gateway.schema.parts.bounds import MAX_JSON_DEPTH
from gateway.schema.parts.sampling import Generation
from gateway.schema.tokenize import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}}
KINDS: list[type[Request]] = [ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest]
SMALLEST: dict[type[Request], dict[str, Any]] = {
    ChatCompletionRequest: {"messages": [USER]},
    CompletionRequest: {"prompt": "x"},
    TokenizeRequest: {"prompt": "x"},
    DetokenizeRequest: {"tokens": [1]},
}


def refusal(kind: type[Request], body: dict[str, Any] | bytes) -> ApiError:
    with pytest.raises(ApiError) as raised:
        decode(body if isinstance(body, bytes) else orjson.dumps(body), kind)
    assert raised.value.status == 400
    assert raised.value.headers()["x-should-retry"] == "false"
    return raised.value


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER], **fields}


def assistant_call(arguments: str) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def part(kind: str, value: Any) -> dict[str, Any]:
    return chat(
        messages=[USER, {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: value}]}]
    )


UNSUPPORTED = [
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"best_of": 2}, "best_of"),
    ({"no_such_thing": 1}, "no_such_thing"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"service_tier": "scale"}, "service_tier"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"foo": True}}, "stream_options.foo"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].custom"),
    ({"messages": [{**USER, "mood": "sad"}]}, "messages[0].mood"),
    ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[0].audio"),
    ({"messages": [{"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}}]},
     "messages[0].function_call"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED, ids=[param for _, param in UNSUPPORTED])
def test_unsupported_parameter_is_named_when_it_is_sent(fields: dict[str, Any], param: str) -> None:
    """What OpenAI defines or anyone invents, and this server does not do, is refused by name."""
    error = refusal(ChatCompletionRequest, chat(**fields))
    assert (error.code, error.param) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (part("input_audio", {"data": "", "format": "wav"}), "messages[1].content[1].input_audio"),
        (part("file", {"file_id": "f"}), "messages[1].content[1].file"),
    ],
)
def test_media_part_is_named_when_the_pool_has_no_model_for_it(body: dict[str, Any], param: str) -> None:
    """A part of another medium is refused with its path, and the message says which medium."""
    error = refusal(ChatCompletionRequest, body)
    assert (error.code, error.param) == ("unsupported_parameter", param)
    assert "not supported by any model" in error.message


@pytest.mark.parametrize("kind", KINDS)
def test_null_means_absent_when_any_field_is_null(kind: type[Request]) -> None:
    """Every optional field, known or not, may be null, and the request is the same as without it."""
    least = SMALLEST[kind]
    nulls = {name: None for name in kind.__struct_fields__ if name not in least} | {"functions": None, "zzz": None}
    assert decode(orjson.dumps(least | nulls), kind) == decode(orjson.dumps(least), kind)


def test_nested_null_means_absent_when_a_message_carries_it() -> None:
    """What an SDK sends back from an earlier answer, nulls included, is accepted."""
    earlier = {
        "role": "assistant", "content": "x", "refusal": None, "audio": None, "function_call": None, "tool_calls": None,
        "name": None, "annotations": [], "reasoning_content": None, "reasoning": None,
    }  # fmt: skip
    body = chat(messages=[USER, earlier, USER], stream=True, stream_options={"include_usage": None})
    assert decode(orjson.dumps(body), ChatCompletionRequest).include_usage is False


CONTRADICTIONS: list[tuple[type[Request], dict[str, Any], str, str]] = [
    (ChatCompletionRequest, chat(max_tokens=5, max_completion_tokens=6), "invalid_request", "max_tokens"),
    (ChatCompletionRequest, chat(top_logprobs=1), "invalid_request", "top_logprobs"),
    (ChatCompletionRequest, chat(max_tokens=5, n_predict=6), "invalid_request", "max_tokens"),
    (ChatCompletionRequest, chat(num_predict=5, max_new_tokens=6), "invalid_request", "num_predict"),
    (ChatCompletionRequest, chat(min_tokens=6, max_completion_tokens=5), "invalid_request", "min_tokens"),
    (CompletionRequest, {"prompt": "x", "min_tokens": 17}, "invalid_request", "min_tokens"),
    (CompletionRequest, {"prompt": "x", "repetition_penalty": 1.2, "repeat_penalty": 1.1}, "invalid_request",
     "repetition_penalty"),
    (ChatCompletionRequest, chat(enable_thinking=True, thinking={"type": "disabled"}), "invalid_request",
     "enable_thinking"),
    (ChatCompletionRequest, chat(reasoning={"enabled": False}, chat_template_kwargs={"enable_thinking": True}),
     "invalid_request", "chat_template_kwargs.enable_thinking"),
    (ChatCompletionRequest, chat(reasoning={"effort": "low"}, reasoning_effort="high"), "invalid_request",
     "reasoning_effort"),
    (ChatCompletionRequest, chat(reasoning={"max_tokens": 5}, thinking_budget=6), "invalid_request", "thinking_budget"),
    (ChatCompletionRequest, chat(top_logprobs=21, logprobs=True), "invalid_request", "top_logprobs"),
    (ChatCompletionRequest, chat(stream_options={}), "invalid_request", "stream_options"),
    (ChatCompletionRequest, chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"}),
     "invalid_request", "reasoning_effort"),
    (ChatCompletionRequest, chat(tool_choice="required"), "invalid_request", "tool_choice"),
    (ChatCompletionRequest, chat(tool_choice={"type": "function", "function": {"name": "f"}}), "invalid_request",
     "tool_choice"),
    (ChatCompletionRequest, chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
     "invalid_request", "tool_choice"),
    (ChatCompletionRequest, chat(response_format={"type": "json_object"}, structured_outputs={"regex": "a"}),
     "invalid_request", "structured_outputs"),
    (CompletionRequest, {"prompt": "x", "suffix": "y"}, "unsupported_parameter", "suffix"),
    (CompletionRequest, {"prompt": "x", "best_of": 2, "n": 3}, "invalid_request", "best_of"),
    (CompletionRequest, {"prompt": "x", "best_of": 2, "stream": True}, "invalid_request", "best_of"),
    (CompletionRequest, {"prompt": "x", "max_tokens": 0}, "invalid_request", "max_tokens"),
    (TokenizeRequest, {}, "invalid_request", "prompt"),
    (TokenizeRequest, {"prompt": "x", "messages": [USER]}, "invalid_request", "prompt"),
    (TokenizeRequest, {"messages": [USER], "add_special_tokens": True}, "unsupported_parameter", "add_special_tokens"),
    (TokenizeRequest, {"prompt": "x", "tools": []}, "invalid_request", "tools"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "code", "param"), CONTRADICTIONS)
def test_contradiction_is_refused_when_fields_exclude_each_other(
    kind: type[Request], body: dict[str, Any], code: str, param: str
) -> None:
    """Fields that can't be honoured together are a 400 that names one of them."""
    error = refusal(kind, body)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatCompletionRequest, chat(max_tokens=5, max_completion_tokens=5)),
        (ChatCompletionRequest, chat(top_logprobs=20, logprobs=True)),
        (
            ChatCompletionRequest,
            chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}),
        ),
        (ChatCompletionRequest, chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "low"})),
        (ChatCompletionRequest, chat(top_logprobs=0, logprobs=False)),
        (ChatCompletionRequest, chat(top_logprobs=0)),
        (ChatCompletionRequest, chat(max_tokens=5, max_completion_tokens=5, n_predict=5, num_predict=-1)),
        (ChatCompletionRequest, chat(min_tokens=5, max_tokens=5)),
        (ChatCompletionRequest, chat(enable_thinking=True, thinking={"type": "enabled"}, reasoning={"enabled": True})),
        (ChatCompletionRequest, chat(reasoning={"effort": "low"}, reasoning_effort="low")),
        (CompletionRequest, {"prompt": "x", "repetition_penalty": 1.2, "repeat_penalty": 1.2}),
        (CompletionRequest, {"prompt": "x", "best_of": 3, "n": 3}),
        (CompletionRequest, {"prompt": "x", "best_of": 3, "n": 3, "stream": True}),
        (CompletionRequest, {"prompt": "x", "best_of": 3, "n": 2}),
        (CompletionRequest, {"prompt": "x", "echo": True, "logprobs": 0, "max_tokens": 0}),
        (TokenizeRequest, {"messages": [USER], "add_special_tokens": False, "tools": []}),
    ],
)
def test_agreement_is_accepted_when_fields_say_the_same(kind: type[Request], body: dict[str, Any]) -> None:
    """The near side of each contradiction."""
    decode(orjson.dumps(body), kind)


def test_arguments_are_bounded_when_history_holds_nested_ones() -> None:
    """Tool arguments in the history: 64 levels pass, 65 are refused with their path, and so are 100,000."""
    for levels, ok in ((64, True), (65, False), (1000, False)):
        body = chat(messages=[USER, assistant_call('{"a":' * levels + "1" + "}" * levels)])
        if ok:
            decode(orjson.dumps(body), ChatCompletionRequest)
        else:
            error = refusal(ChatCompletionRequest, body)
            assert error.param == "messages[1].tool_calls[0].function.arguments"
    body = chat(messages=[USER, assistant_call('{"a":' * 100_000)])
    decode(orjson.dumps(body), ChatCompletionRequest)  # not JSON at all: it stays the text it is


HOSTILE = [
    b"",
    b" ",
    b"null",
    b"[]",
    b"5",
    b'"x"',
    b"{",
    b"{}garbage",
    b"\xff\xfe",
    b'{"messages": NaN}',
    b'{"prompt":"x","temperature":NaN}',
    b'{"prompt":"x","temperature":Infinity}',
    b'{"prompt":"x","temperature":1e400}',
    b'{"prompt":"x","temperature":-1e400}',
    b'{"prompt":"x","seed":' + b"9" * 5000 + b"}",
    b'{"prompt":"x","n":' + b"9" * 25 + b"}",
    b'{"prompt":"\\ud800"}',
    b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"[" * 1_000_000,
    b'{"prompt":' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"a":' * 1000 + b"1" + b"}" * 1000,
    b'{"' + b"k" * 10_000 + b'":1}',
    b'{"x - at `$.y`":1,"prompt":"x"}',
    b'{"prompt":"x","stream_options":{"` - at `":1}}',
    b'{"\\u0000":1}',
    b'{"prompt":{"$ref":"x"}}',
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_hostile_body_is_a_400_when_read(kind: type[Request], body: bytes) -> None:
    """No bytes whatever raise anything but a short 400."""
    error = refusal(kind, body)
    assert len(error.body()) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", 16.0), ("n", 2.0), ("top_k", -1.0), ("seed", 0.0), ("seed", float(2**52))]
)
def test_number_is_an_integer_when_it_has_no_fraction(field: str, value: float) -> None:
    """As JSON Schema counts them; a float stays one where floats are asked for."""
    body = orjson.dumps(chat(**{field: value, "temperature": 1.0}))
    request = decode(body, ChatCompletionRequest)
    assert (getattr(request, field), type(getattr(request, field))) == (int(value), int)
    assert type(request.temperature) is float


@pytest.mark.parametrize(("field", "value"), [("max_tokens", 16.5), ("max_tokens", -3.0), ("n", 1e300), ("seed", 0.1)])
def test_number_is_refused_by_its_name_when_it_is_no_integer_in_range(field: str, value: float) -> None:
    """A fraction, or an integer out of bounds that is written as a float."""
    assert refusal(ChatCompletionRequest, chat(**{field: value})).param == field


def test_body_is_read_when_it_begins_with_a_byte_order_mark() -> None:
    """One is skipped; a second one is no JSON."""
    body = orjson.dumps(chat())
    assert decode(b"\xef\xbb\xbf" + body, ChatCompletionRequest) == decode(body, ChatCompletionRequest)
    assert "not valid JSON" in refusal(ChatCompletionRequest, b"\xef\xbb\xbf" * 2 + body).message


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_body_is_accepted_or_a_400_when_fields_hold_any_json(data: st.DataObject, kind: type[Request]) -> None:
    """Any JSON in any field is accepted, or refused by an `ApiError`; what is accepted becomes a job."""
    fields = data.draw(st.dictionaries(st.sampled_from(kind.__struct_fields__), JSON, max_size=4))
    body = orjson.dumps(SMALLEST[kind] | fields)
    try:
        request = decode(body, kind)
    except ApiError as error:
        assert error.status == 400
        return
    if isinstance(request, Generation):
        request.make_sampling(None)


@settings(max_examples=200, deadline=None)
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
            optional={
                "content": JSON | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})),
                "tool_calls": JSON,
                "tool_call_id": st.text(max_size=3),
                "reasoning_content": st.text(max_size=3) | st.none(),
            },
        ),
        max_size=3,
    )
)
def test_messages_become_a_job_or_a_400_when_they_hold_any_json(messages: list[dict[str, Any]]) -> None:
    """Whatever messages hold, they are refused or rendered as a list of the same length with string contents."""
    try:
        request = decode(orjson.dumps({"messages": messages}), ChatCompletionRequest)
    except ApiError as error:
        assert error.status == 400
        return
    plain = orjson.loads(request.make_job(None, request_id="r", tenant="").prompt.messages)
    assert len(plain) == len(messages)
    assert all(isinstance(message["content"], str) for message in plain)


def test_depth_counts_containers_when_they_nest() -> None:
    """A scalar has depth 0, a container one more than its deepest child, and counting stops above the limit."""
    assert [depth(value, MAX_JSON_DEPTH) for value in (1, [], {}, [[]], {"a": [1, {"b": 2}]})] == [0, 1, 1, 2, 3]
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert depth(deep, 10) == 11
