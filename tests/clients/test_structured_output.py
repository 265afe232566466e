"""Structured output through the unmodified clients of Python: `openai`'s own parser, and `instructor`."""

from typing import Any, Literal

import instructor
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, ConfigDict, Field
from stress.running_pool import RunningPool

from tests.support.picture_files import data_url, picture
from tests.support.pool_fixtures import QWEN_NAME, SIGHT_NAME

pytestmark = pytest.mark.mlx

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tell me about the sea"}]
IMAGE = data_url(picture(colour="red"))
QUICK: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
ASKED: dict[str, Any] = {"model": QWEN_NAME, "messages": HELLO, "temperature": 1.0, "seed": 3, "max_tokens": 600}


class Wave(BaseModel):
    """Of water."""

    model_config = ConfigDict(extra="forbid")
    height: int = Field(ge=0, le=30)
    shape: Literal["round", "flat"]


class Sea(BaseModel):
    """A lot of water."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=10)
    salty: bool
    waves: list[Wave] = Field(max_length=2)
    depth: int | None = Field(ge=0, le=11000)


TOOL: dict[str, Any] = openai.pydantic_function_tool(Sea, name="note_sea")


def test_parsed_answer_is_the_model_that_was_asked_for(client: OpenAI) -> None:
    """`chat.completions.parse` with a pydantic class gives an instance of it, for every choice."""
    answer = client.chat.completions.parse(**ASKED, response_format=Sea, n=2, extra_body=QUICK)
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Sea)
        assert choice.finish_reason == "stop"


def test_parsed_stream_ends_in_the_model_that_was_asked_for(client: OpenAI) -> None:
    """The streaming helper parses what has come so far, and the whole at the end."""
    with client.chat.completions.stream(**ASKED, response_format=Sea, extra_body=QUICK) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Sea)
    assert "".join(pieces) == final.choices[0].message.content


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "note_sea"}},
               {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                   {"type": "function", "function": {"name": "note_sea"}}]}}], ids=["required", "named", "allowed"],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_demanded_call_is_parsed(client: OpenAI, choice: Any, streamed: bool) -> None:
    """A strict tool, demanded in any of OpenAI's ways, comes as a call whose arguments are an instance."""
    other = {"type": "function", "function": {"name": "other", "strict": True, "parameters": {
        "type": "object", "properties": {}, "additionalProperties": False, "required": []}}}  # fmt: skip
    tools = [TOOL] if choice == "required" else [TOOL, other]
    asked: dict[str, Any] = {**ASKED, "tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
    if streamed:
        with client.chat.completions.stream(**asked, extra_body=QUICK) as stream:
            final: Any = stream.get_final_completion()
    else:
        final = client.chat.completions.parse(**asked, extra_body=QUICK)
    [call] = final.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Sea)
    assert final.choices[0].finish_reason == "tool_calls"


def test_arguments_come_in_pieces_while_they_are_written(client: OpenAI) -> None:
    """The name at once, then the arguments: most frames of the stream are pieces of them."""
    asked: dict[str, Any] = {**ASKED, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    said: list[str] = []
    names = []
    for chunk in client.chat.completions.create(**asked, stream=True, extra_body=QUICK):
        for call in chunk.choices[0].delta.tool_calls or ():
            if call.function is not None:
                names.append(call.function.name)
                said.append(call.function.arguments or "")
    assert (names[0], any(names[1:])) == ("note_sea", False)
    whole: Any = client.chat.completions.create(**asked, extra_body=QUICK)
    assert "".join(said) == whole.choices[0].message.tool_calls[0].function.arguments
    # Frames that a slow reader gets together are joined, so there may be fewer than tokens.
    assert len(said) > whole.usage.completion_tokens / 4


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(
    ("extra", "answers"),
    [
        ({"choice": ["aye", "nay"]}, {"aye", "nay"}),
        ({"regex": "(north|south)-[01]"}, {"north-0", "north-1", "south-0", "south-1"}),
        ({"grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
        ({"json": {"enum": [1, 2]}}, {"1", "2"}),
    ],
    ids=["choice", "regex", "grammar", "json"],
)
def test_extra_field_of_vllm_holds(client: OpenAI, endpoint: str, extra: dict[str, Any], answers: set[str]) -> None:
    """`structured_outputs` as vLLM's users send it, on both endpoints."""
    body = {"structured_outputs": extra}
    if endpoint == "chat":
        text = client.chat.completions.create(**ASKED, extra_body={**QUICK, **body}).choices[0].message.content
    else:
        text = client.completions.create(model=QWEN_NAME, prompt="so: ", max_tokens=60, extra_body=body).choices[0].text
    assert text in answers


def test_unusable_schema_is_refused_by_name(client: OpenAI) -> None:
    """Streamed or not, a schema that can't be enforced is a 400 that says where and why, and is not tried again."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ASKED, response_format=form, stream=stream)
        assert refused.value.param == "response_format.json_schema.schema"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert "an expression in it can't be followed: unclosed group" in refused.value.message


@pytest.mark.parametrize(
    "mode",
    [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA],
    ids=lambda mode: mode.name,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_instructor_gives_the_model_that_was_asked_for(client: OpenAI, mode: instructor.Mode) -> None:
    """Its modes with a schema need neither luck nor a second try."""
    patched = instructor.from_openai(client, mode=mode)
    made = patched.chat.completions.create(**ASKED, response_model=Sea, max_retries=0, extra_body=QUICK)
    assert isinstance(made, Sea)


class Anything(BaseModel):
    """Whatever came."""

    model_config = ConfigDict(extra="allow")


def test_instructor_reads_any_object_in_its_json_mode(client: OpenAI) -> None:
    """JSON mode promises an object, not which."""
    tokens: Any = client.post("/tokenize", body={"model": QWEN_NAME, "prompt": "{}"}, cast_to=object)
    asked = {**ASKED, "logit_bias": {str(token): 100 for token in tokens["tokens"]}}  # it would go on for ever
    patched = instructor.from_openai(client, mode=instructor.Mode.JSON)
    made = patched.chat.completions.create(**asked, response_model=Anything, max_retries=0, extra_body=QUICK)
    assert isinstance(made, Anything)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_clients_parse_what_a_model_sees(sight: RunningPool) -> None:
    """With an image: the client's own parser, its stream, a demanded call, and `instructor` in two modes."""
    shown: Any = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    asked = {**ASKED, "model": SIGHT_NAME, "messages": [{"role": "user", "content": shown}]}
    with OpenAI(base_url=sight.base_url, api_key="none", max_retries=0) as client:
        parsed = client.chat.completions.parse(**asked, response_format=Sea, extra_body=QUICK)
        assert isinstance(parsed.choices[0].message.parsed, Sea)
        with client.chat.completions.stream(**asked, response_format=Sea, extra_body=QUICK) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        assert final.choices[0].message.parsed == parsed.choices[0].message.parsed
        assert {"chunk", "content.delta", "content.done"} <= set(kinds)
        forced: dict[str, Any] = {**asked, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
        with client.chat.completions.stream(**forced, extra_body=QUICK) as stream:
            kinds = [event.type for event in stream]
            calls: Any = stream.get_final_completion().choices[0].message.tool_calls
        assert isinstance(calls[0].function.parsed_arguments, Sea)
        assert kinds.count("tool_calls.function.arguments.delta") > 1
        image = instructor.Image.from_base64(IMAGE)
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
            patched = instructor.from_openai(client, mode=mode)
            content: Any = ["what is this?", image]
            talk = {**asked, "messages": [{"role": "user", "content": content}]}
            made = patched.chat.completions.create(**talk, response_model=Sea, max_retries=0, extra_body=QUICK)
            assert isinstance(made, Sea)
