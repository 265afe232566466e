"""`POST /v1/tokenize` and `/v1/detokenize`, in vLLM's shapes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from gateway.schema import ignored
from gateway.schema.base import Answer, Request
from gateway.schema.chat import chat_prompt, template_options
from gateway.schema.errors import invalid, unsupported
from gateway.schema.parts.bounds import CONVERSATION, NUMBERS, ModelName, TokenId
from gateway.schema.parts.echoes import take_echoes
from gateway.schema.parts.image_references import ImageReference, list_images
from gateway.schema.parts.messages import Messages
from gateway.schema.parts.sampling import check_tokens
from gateway.schema.parts.template import check_continuation, check_messages, inner_arguments
from gateway.schema.parts.template_options import TemplateKwargs, check_options
from gateway.schema.parts.tools import Tools, check_tools
from gateway.schema.structure import Bounds
from protocol.messages import DetokenizeJob, Image, Ready, TextPrompt, TokenizeJob


class TokenizeRequest(Request, frozen=True, kw_only=True):
    """Either `prompt` or `messages`; the latter are rendered by the model's chat template first.

    `add_special_tokens` (default true) goes with `prompt`; a chat template brings its own.
    """

    bounds: ClassVar[Bounds] = CONVERSATION
    ignorable: ClassVar[Mapping[str, ignored.Rule]] = ignored.TOKENS
    model: ModelName | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None

    @classmethod
    def read_dialect(cls, raw: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
        """Return a body's fields without what changes nothing, in messages, too; see `Request.read_dialect`."""
        raw = super().read_dialect(raw, ignored)
        return {**raw, "messages": take_echoes(raw.get("messages"), ignored)} if "messages" in raw else raw

    def inner_json(self) -> Iterator[tuple[str, str]]:
        """Yield the arguments of calls."""
        return inner_arguments(self.messages or [])

    def check_values(self) -> None:
        """Check that one of the two shapes is there, whole. Raises `ApiError`."""
        if (self.prompt is None) == (self.messages is None):
            raise invalid("Give either 'prompt' or 'messages'.", "prompt")
        if self.messages is None:
            for name in ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"):
                if getattr(self, name) is not None:
                    raise invalid(f"'{name}' is only allowed with 'messages'.", name)
            return
        if self.add_special_tokens:
            raise unsupported("add_special_tokens", "can't be true with 'messages': the chat template adds its own.")
        check_messages(self.messages)
        check_continuation(self.messages, opened=self.add_generation_prompt, continued=self.continue_final_message)
        check_options(self.chat_template_kwargs)
        check_tools(self.tools or [], None)

    @property
    def image_references(self) -> list[ImageReference]:
        """The images of the conversation, in order. Raises `ApiError` if there are too many."""
        return list_images(self.messages or [])

    def make_job(self, images: Sequence[Image] = (), *, tenant: str) -> TokenizeJob:
        """Make the job for a worker; the pool fills in its numbers. `images`: what its references became."""
        if self.messages is not None:
            template = template_options(self.chat_template_kwargs, None)
            prompt = chat_prompt(
                self.messages,
                tools=self.tools,
                template=template,
                opened=self.add_generation_prompt is not False,
                continued=bool(self.continue_final_message),
            )
            return TokenizeJob(job=0, attempt=0, prompt=prompt, images=[*images], tenant=tenant)
        return TokenizeJob(
            job=0,
            attempt=0,
            prompt=TextPrompt(text=self.prompt or "", add_special_tokens=self.add_special_tokens is not False),
            tenant=tenant,
        )


class TokenizeAnswer(Answer, frozen=True, kw_only=True):
    """Token ids, how many they are, and how many the model takes."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(Request, frozen=True, kw_only=True):
    """Token ids to turn into text."""

    bounds: ClassVar[Bounds] = NUMBERS
    ignorable: ClassVar[Mapping[str, ignored.Rule]] = ignored.TOKENS
    tokens: Annotated[list[TokenId], Meta(description="Ids of the model's vocabulary.")]
    model: ModelName | None = None

    def make_job(self, ready: Ready | None, *, tenant: str) -> DetokenizeJob:
        """Make the job for a worker; the pool fills in its numbers. Raises `ApiError` for ids out of the vocabulary."""
        check_tokens(self.tokens, ready, "tokens")
        return DetokenizeJob(job=0, attempt=0, tokens=self.tokens, tenant=tenant)


class DetokenizeAnswer(Answer, frozen=True, kw_only=True):
    """The text."""

    prompt: str


class TokenizerInfo(Answer, frozen=True, kw_only=True):
    """What a model's tokenizer says of itself, by the names of `tokenizer_config.json`.

    `chat_template` is a text, or several by their names. `additional_special_tokens` are all of them.
    """

    tokenizer_class: str
    chat_template: Any
    model_max_length: int
    add_bos_token: bool
    add_eos_token: bool
    additional_special_tokens: list[str]
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
