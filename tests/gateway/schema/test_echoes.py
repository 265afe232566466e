"""What other servers and clients leave in a history, and what a request tells the chat template."""

from typing import Any

import orjson
import pytest

from gateway.schema.chat import ChatCompletionRequest, chat_prompt
from gateway.schema.decode import decode
from gateway.schema.errors import ApiError
from gateway.schema.parts.template_options import name_unread
from gateway.schema.tokenize import TokenizeRequest
from protocol.messages import ChatPrompt, Ready

Json = dict[str, Any]

USER = {"role": "user", "content": "q"}
CALL: Json = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(messages: list[Json], **fields: Any) -> tuple[ChatCompletionRequest, set[str]]:
    ignored: set[str] = set()
    request = decode(orjson.dumps({"messages": messages, **fields}), ChatCompletionRequest, ignored=ignored)
    return request, ignored


def template(messages: list[Json]) -> Any:
    return orjson.loads(chat_prompt(read(messages)[0].messages, tools=None, template={}).messages)


def refusal(messages: list[Json], **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        read(messages, **fields)
    return raised.value


def said(**more: Any) -> Json:
    return {"role": "assistant", "content": "a", **more}


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (said(id="msg_1"), ["messages.id"]),
        (said(reasoning_details=[{"type": "reasoning.text", "text": "t"}]), ["messages.reasoning_details"]),
        (said(provider_specific_fields={"x": None}, thinking_blocks=[{"type": "thinking"}]),
         ["messages.provider_specific_fields", "messages.thinking_blocks"]),
        (said(annotations=[{"type": "url_citation", "url_citation": {}}], refusal=None, audio=None, function_call=None),
         ["messages.annotations"]),
        (said(annotations=[]), ["messages.annotations"]),
        (said(parsed={"a": 1}, finish_reason="stop", images=[]),
         ["messages.finish_reason", "messages.images", "messages.parsed"]),
        (said(prefix=False), ["messages.prefix"]),
        (said(anything=None, **{"a b": None}), []),
        ({**USER, "cache_control": {"type": "ephemeral"}}, ["messages.cache_control"]),
        ({**USER, "id": "m", "createdAt": "2026", "tool_calls": None, "images": []},
         ["messages.createdAt", "messages.id", "messages.images"]),
        ({"role": "system", "content": "s", "cache_control": {}}, ["messages.cache_control"]),
        ({"role": "developer", "content": "s", "provider_options": {"p": {}}}, ["messages.provider_options"]),
        ({"role": "tool", "content": "r", "tool_call_id": "c", "status": "success", "id": None},
         ["messages.status"]),
        ({"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]},
         ["messages.content.cache_control"]),
        (said(content=[{"type": "text", "text": "a", "annotations": [], "logprobs": []}]),
         ["messages.content.annotations", "messages.content.logprobs"]),
        (said(tool_calls=[{**CALL, "extra_content": {"google": {"thought_signature": "x"}}, "index": 0}]),
         ["messages.tool_calls.extra_content"]),
        (said(tool_calls=[{**CALL, "function": {**CALL["function"], "parsed_arguments": {}}}]),
         ["messages.tool_calls.function.parsed_arguments"]),
        (said(tool_calls=[{**CALL, "provider_specific_fields": None}]), []),
    ],
)  # fmt: skip
def test_echo_is_taken_and_named_when_it_changes_nothing(message: Json, names: list[str]) -> None:
    """The history is the same as without it; what is null is not even said."""
    request, ignored = read([USER, message])
    assert sorted(ignored) == names
    known = {"role", "content", "tool_calls", "tool_call_id", "name"}
    plain = template([USER, message])
    assert plain[1].keys() <= known
    assert request.messages[1].content


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({**USER, "mood": "sad"}, "messages[1].mood"),
        ({**USER, "images": ["iVBORw0KGgo="]}, "messages[1].images"),
        ({"role": "system", "content": "s", "priority": 1}, "messages[1].priority"),
        ({"role": "tool", "content": "r", "tool_call_id": "c", "is_error": True}, "messages[1].is_error"),
        ({"role": "user", "content": [{"type": "text", "text": "q", "weight": 2}]}, "messages[1].content[0].weight"),
        (said(prefix=True), "messages[1].prefix"),
        (said(partial=True), "messages[1].partial"),
        (said(audio={"id": "a"}), "messages[1].audio"),
        (said(function_call={"name": "f", "arguments": "{}"}), "messages[1].function_call"),
        (said(**{"x\r\nSet-Cookie: a": 1}), "messages[1].x\r\nSet-Cookie: a"),
        (said(**{"n" * 65: 1}), "messages[1]." + "n" * 65),
    ],
)
def test_field_is_refused_when_it_would_change_the_answer(message: Json, param: str) -> None:
    """Or when nobody can say that it would not, or no header could name it."""
    error = refusal([USER, message])
    assert (error.code, error.param) == ("unsupported_parameter", param)


def test_header_stays_short_when_a_history_has_many_echoes() -> None:
    """All of them are taken; so many are named."""
    _, ignored = read([USER, *(said(**{f"echo_{number}": number}) for number in range(500))])
    assert len(ignored) == 64


@pytest.mark.parametrize(
    "message",
    [
        said(reasoning="hm"),
        said(thinking="hm"),
        said(reasoning_text="hm"),
        said(content=[{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}]),
        said(
            content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
        ),
        said(content=[{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a"}]),
        said(reasoning_content="hm", thinking="other"),
    ],
)
def test_thoughts_are_read_when_another_server_told_them(message: Json) -> None:
    """Under every name, and as parts of the content."""
    assert template([USER, message])[1] == {"role": "assistant", "content": "a", "reasoning_content": "hm"}


@pytest.mark.parametrize("messages", [5, [5], [None], [{"role": 5}], [{"role": ["user"]}], [{}], [{"role": "x"}]])
def test_shape_is_refused_when_messages_are_none(messages: Any) -> None:
    """Echoes are looked for in whatever comes; what is no message is named by the types."""
    error = refusal(messages)
    assert error.status == 400
    assert (error.param or "").startswith("messages")


@pytest.mark.parametrize(
    "message",
    [
        said(content=[5]),
        said(content=[{"type": 5}]),
        said(tool_calls=[5]),
        said(tool_calls=[{**CALL, "function": 5}]),
        said(tool_calls=5),
    ],
)
def test_shape_is_refused_when_what_holds_echoes_is_none(message: Json) -> None:
    """The same inside a message."""
    assert (refusal([USER, message]).param or "").startswith("messages[1]")


def test_conversation_to_tokenize_has_echoes_too() -> None:
    """Clients count the very history that they send."""
    ignored: set[str] = set()
    body = orjson.dumps({"messages": [USER, said(id="x")]})
    decode(body, TokenizeRequest, ignored=ignored)
    assert ignored == {"messages.id"}


# -- chat_template_kwargs


def ready(*names: str, known: bool = True) -> Ready:
    return Ready(10, 100, "", "", [], [], 0, 0, True, 0, template_names=[*names] if known else None)


@pytest.mark.parametrize(
    ("kwargs", "names", "unread"),
    [
        ({"enable_thinking": False}, ["enable_thinking"], []),
        ({"enable_thinking": False}, ["thinking"], []),
        ({"enable_thinking": False}, [], ["enable_thinking"]),
        ({"thinking": True, "preserve_thinking": True}, ["thinking"], ["preserve_thinking"]),
        ({"clear_thinking": 1, "date": "today", "x": None, "y": 1.5}, ["date"], ["clear_thinking", "y"]),
    ],
)
def test_option_is_named_when_the_template_does_not_read_it(kwargs: Json, names: list[str], unread: list[str]) -> None:
    """It can't change the answer; null is not given at all."""
    request, _ = read([USER], chat_template_kwargs=kwargs)
    prompt = request.make_job(None, request_id="r", tenant="t").prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.template == {name: value for name, value in kwargs.items() if value is not None}
    found = name_unread(request.chat_template_kwargs, ready(*names))
    assert sorted(found) == [f"chat_template_kwargs.{name}" for name in unread]
    for unknown in (None, ready(known=False)):
        assert name_unread(request.chat_template_kwargs, unknown) == set()


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "documents", "return_dict"]
)
def test_option_is_refused_when_its_name_is_reserved(name: str) -> None:
    """What the server gives a template is no request's to say."""
    error = refusal([USER], chat_template_kwargs={name: True})
    assert (error.code, error.param) == ("unsupported_parameter", f"chat_template_kwargs.{name}")


# -- how a prompt ends


@pytest.mark.parametrize(
    ("fields", "opened", "continued"),
    [
        ({}, True, False),
        ({"add_generation_prompt": True}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": False}, True, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
    ],
)
@pytest.mark.parametrize("kind", [ChatCompletionRequest, TokenizeRequest])
def test_end_of_the_prompt_travels_when_asked_for(kind: Any, fields: Json, opened: bool, continued: bool) -> None:
    """Either an answer is opened, or the last one goes on, or neither."""
    request = decode(orjson.dumps({"messages": [USER, said()], **fields}), kind)
    more = {"tenant": "t"} if kind is TokenizeRequest else {"ready": None, "request_id": "r", "tenant": "t"}
    prompt = request.make_job(**more).prompt
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (opened, continued)


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([USER, said()], {"add_generation_prompt": True}),
        ([USER], {}),
        ([USER, said(content=None)], {}),
        ([USER, said(content=[])], {}),
        ([USER, said(tool_calls=[CALL])], {}),
        ([USER, said(tool_calls=[CALL]), {"role": "tool", "content": "r", "tool_call_id": "c"}], {}),
    ],
)
def test_continuation_is_refused_when_it_can_not_be(messages: list[Json], fields: Json) -> None:
    """Both ends at once, or no last message to go on with."""
    error = refusal(messages, continue_final_message=True, **fields)
    assert (error.code, error.param) == ("invalid_request", "continue_final_message")
