"""Images in messages: where they stand, what a worker's template sees of them."""

from typing import Any

import orjson
import pytest

from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.decode import decode
from gateway.schema.errors import ApiError
from gateway.schema.parts.bounds import MAX_IMAGES
from gateway.schema.tokenize import TokenizeRequest
from protocol.messages import ChatPrompt
from tests.support.picture_files import data_url, image_part, picture, showing

URL = data_url(picture())
TEXT = {"type": "text", "text": "look"}


def read(*messages: dict[str, Any]) -> ChatCompletionRequest:
    return decode(orjson.dumps({"messages": messages}), ChatCompletionRequest)


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*parts]}


def rendered(request: ChatCompletionRequest) -> Any:
    prompt = request.make_job(None, request_id="r", tenant="").prompt
    assert isinstance(prompt, ChatPrompt)
    return orjson.loads(prompt.messages)


def test_images_are_found_in_order_wherever_they_stand() -> None:
    """With the name of the parameter that holds each URL, and the detail that was asked for."""
    request = read(
        user(image_part("a", detail="low"), TEXT, image_part("b", detail="original")),
        {"role": "assistant", "content": "nice"},
        {"role": "user", "content": "text"},
        user(TEXT, {"type": "image_url", "image_url": "c"}),
    )
    assert [(found.where, found.url, found.detail) for found in request.image_references] == [
        ("messages[0].content[0].image_url.url", "a", "low"),
        ("messages[0].content[2].image_url.url", "b", "high"),
        ("messages[3].content[1].image_url", "c", "auto"),
    ]


def test_the_template_sees_places_when_there_are_images() -> None:
    """Parts in their order, nothing of the URL; a content of texts alone stays one string."""
    request = read(user(TEXT, image_part(URL), TEXT, image_part(URL, detail="high")), user(TEXT, TEXT))
    image = {"type": "image"}
    assert rendered(request) == [
        {"role": "user", "content": [TEXT, image, TEXT, image]},
        {"role": "user", "content": "looklook"},
    ]


def test_sixteen_images_are_accepted_and_one_more_is_named() -> None:
    """Over all messages of a request."""
    half = [image_part("a")] * (MAX_IMAGES // 2)
    assert len(read(user(*half), user(*half)).image_references) == MAX_IMAGES
    with pytest.raises(ApiError, match="at most 16") as raised:
        _ = read(user(*half), user(TEXT, *half, image_part("b"))).image_references
    assert (raised.value.status, raised.value.param) == (400, "messages[1].content[9].image_url.url")


def test_images_of_a_result_are_in_order_when_a_tool_shows_some() -> None:
    """They count with the user's, each at its place, and keep their places among the texts of the result."""
    shown = {"role": "tool", "tool_call_id": "x", "content": [TEXT, image_part(URL), image_part(URL)]}
    wanted = read(user(image_part(URL)), shown, user(image_part(URL)))
    assert [image.where for image in wanted.image_references] == [
        f"messages[{at}].content[{part}].image_url.url" for at, part in ((0, 0), (1, 1), (1, 2), (2, 0))
    ]
    assert rendered(wanted)[1] == {
        "role": "tool",
        "tool_call_id": "x",
        "content": [TEXT, {"type": "image"}, {"type": "image"}],
    }


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "system", "content": [image_part(URL)]}, "messages[0].content[0].image_url"),
        ({"role": "developer", "content": [image_part(URL)]}, "messages[0].content[0].image_url"),
        ({"role": "assistant", "content": [image_part(URL)]}, "messages[0].content[0].image_url"),
        (user(image_part(URL, format="png")), "messages[0].content[0].image_url.format"),
        (user({**image_part(URL), "mood": 1}), "messages[0].content[0].mood"),
        (user({"type": "input_image", "image_url": URL}), "messages[0].content[0].type"),
        (user({"type": "image"}), "messages[0].content[0].type"),
        (user(image_part("")), "messages[0].content[0].image_url.url"),
        (user(image_part(URL, detail="enormous")), "messages[0].content[0].image_url.detail"),
        (user({"type": "image_url"}), "messages[0].content[0].image_url"),
        (user({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
        (user({"type": "image_url", "image_url": 5}), "messages[0].content[0].image_url"),
    ],
)
def test_a_part_is_named_when_it_can_not_be_taken(message: dict[str, Any], param: str) -> None:
    """Where OpenAI allows no image, and what is no image part."""
    with pytest.raises(ApiError) as raised:
        read(message)
    assert (raised.value.status, raised.value.param) == (400, param)


def test_tokenize_finds_the_same_images() -> None:
    """`messages` are what they are for chat; a `prompt` has none."""
    body = {"messages": showing(URL)["messages"]}
    [found] = decode(orjson.dumps(body), TokenizeRequest).image_references
    assert found.where == "messages[0].content[1].image_url.url"
    assert decode(b'{"prompt": "x"}', TokenizeRequest).image_references == []
