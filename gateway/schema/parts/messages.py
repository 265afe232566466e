"""Messages of a conversation as clients send them."""

from typing import Annotated, Literal

from msgspec import Meta

from gateway.schema.base import ContentPart
from gateway.schema.parts.bounds import MAX_MESSAGES, ImageAddress

Name = Annotated[str, Meta(max_length=256)]


class TextPart(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class RefusalPart(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """A refusal that an assistant gave earlier."""

    refusal: str


class ImageUrl(ContentPart, frozen=True, kw_only=True):
    """Where an image is, and how closely to look at it: `low` is cheap, `original` is taken as `high`."""

    url: ImageAddress
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image, for models that can see."""

    image_url: ImageUrl | ImageAddress


class ThinkingPart(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """Thoughts of an assistant's earlier answer, as Anthropic's and Mistral's servers tell them."""

    thinking: str | list[TextPart]


class ReasoningPart(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """The same, as some clients keep them."""

    text: str


TextParts = Annotated[list[TextPart], Meta(min_length=1)]
ResultParts = list[TextPart | ImagePart]
"""A tool may have nothing to say, and an assistant that calls one has not."""
UserParts = Annotated[list[TextPart | ImagePart], Meta(min_length=1)]
AssistantPart = TextPart | RefusalPart | ThinkingPart | ReasoningPart
AssistantParts = list[AssistantPart]


class CalledFunction(ContentPart, frozen=True, kw_only=True):
    """What an assistant called. `arguments` is JSON text, as the model wrote it; none at all are no arguments."""

    name: str
    arguments: str


class CalledTool(ContentPart, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A tool call in the history. `index` is left over where a client joined streamed deltas."""

    id: str
    function: CalledFunction
    index: int | None = None


class SystemMessage(ContentPart, frozen=True, kw_only=True, tag_field="role", tag="system"):
    """Instructions."""

    content: str | TextParts
    name: Name | None = None


class DeveloperMessage(ContentPart, frozen=True, kw_only=True, tag_field="role", tag="developer"):
    """Instructions; the model sees them as a system message."""

    content: str | TextParts
    name: Name | None = None


class UserMessage(ContentPart, frozen=True, kw_only=True, tag_field="role", tag="user"):
    """What the user said and showed."""

    content: str | UserParts
    name: Name | None = None


class AssistantMessage(ContentPart, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    """What the assistant answered: content, tool calls, both, or nothing (it was cut off, or only thought).

    `reasoning` is read where `reasoning_content` is absent; answers carry the same text under both names.
    Thoughts among parts of the content are read where neither is given.
    """

    content: str | AssistantParts | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CalledTool] | None = None
    name: Name | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(ContentPart, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """What a tool answered, and showed."""

    content: str | ResultParts | None = None
    tool_call_id: str
    name: Name | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
