"""Images through the unmodified `openai` client, to a pool with a model that sees and one that does not."""

import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from stress.key_traces import CLIENT_KEY
from stress.running_pool import RunningPool

from tests.support.picture_files import data_url, picture

RED, BLUE = data_url(picture(colour="red")), data_url(picture(colour="blue", form="JPEG"), "image/jpeg")
TALK: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You see."},
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": RED, "detail": "low"}},
            {"type": "text", "text": "what is this?"},
        ],
    },
    {"role": "assistant", "content": "red"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "and this?"}, {"type": "image_url", "image_url": {"url": BLUE}}],
    },
]


def test_a_conversation_with_images_is_answered_when_streaming_and_not(seeing: RunningPool) -> None:
    """Images in several turns, by the SDK's own types."""
    with OpenAI(base_url=seeing.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        whole = client.chat.completions.create(model="eyes", messages=TALK, max_tokens=8)
        with client.chat.completions.create(model="eyes", messages=TALK, max_tokens=8, stream=True) as stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert whole.choices[0].message.content
    assert "".join(pieces) == whole.choices[0].message.content


def test_the_first_image_is_named_when_the_model_does_not_see(seeing: RunningPool) -> None:
    """The SDK's own error, with the parameter."""
    with (
        OpenAI(base_url=seeing.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
        pytest.raises(BadRequestError) as raised,
    ):
        client.chat.completions.create(model="words", messages=TALK)
    assert raised.value.param == "messages[1].content[0].image_url.url"
