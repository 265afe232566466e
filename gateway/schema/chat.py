"""`POST /v1/chat/completions`: the request, and the job it becomes."""

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from gateway.schema.errors import invalid, unsupported
from gateway.schema.parts.bounds import CONVERSATION, Bookkeeping, Effort, MaxTokens, Metadata, TopLogprobs
from gateway.schema.parts.echoes import take_echoes
from gateway.schema.parts.image_references import ImageReference, list_images
from gateway.schema.parts.messages import Message, Messages
from gateway.schema.parts.sampling import Generation
from gateway.schema.parts.structured import ResponseFormat, format_grammar, unenforced_format
from gateway.schema.parts.template import check_continuation, check_messages, inner_arguments, template_messages
from gateway.schema.parts.template_options import (
    TemplateKwargs,
    check_options,
    given_options,
    name_unread,
    read_known,
    reads_switches,
)
from gateway.schema.parts.thinking import (
    ReasoningOptions,
    Thinking,
    ThinkingBudget,
    ThinkingOptions,
    agree_on,
    bounded,
)
from gateway.schema.parts.tools import (
    NamedTool,
    Tool,
    ToolChoice,
    Tools,
    call_demanded,
    called_names,
    check_tools,
    unenforced_tools,
)
from gateway.schema.structure import Bounds
from protocol.messages import ChatPrompt, GenerateJob, Grammar, Image, Ready

PRIORITIES = MappingProxyType({"priority": 1, "flex": -1})
"""Of those service tiers that are not served in the middle."""


class ChatCompletionRequest(Generation, frozen=True, kw_only=True):
    """A conversation to continue. Anything else that OpenAI defines is refused as `unsupported_parameter`."""

    bounds: ClassVar[Bounds] = CONVERSATION
    idle: ClassVar[frozenset[str]] = frozenset({"user", "metadata", "store", "safety_identifier", "verbosity"})
    messages: Messages
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    thinking: ThinkingOptions | bool | None = None
    thinking_budget: ThinkingBudget | None = None
    reasoning: ReasoningOptions | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    modalities: Annotated[list[Literal["text"]], Meta(min_length=1, max_length=1)] | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    prompt_cache_key: Bookkeeping | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    safety_identifier: Bookkeeping | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @classmethod
    def read_dialect(cls, raw: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
        """Return a body's fields without what changes nothing, in messages, too; see `Request.read_dialect`."""
        raw = super().read_dialect(raw, ignored)
        if raw.get("top_logprobs") == 0 and not raw.get("logprobs"):
            # Two ways to ask for no log-probabilities.
            ignored.add("top_logprobs")
            raw = {name: value for name, value in raw.items() if name != "top_logprobs"}
        return {**raw, "messages": take_echoes(raw.get("messages"), ignored)} if "messages" in raw else raw

    @classmethod
    def refuse_unsupported(cls, raw: dict[str, Any]) -> None:
        """Refuse values that OpenAI defines and that this server does not implement. Raises `ApiError`."""
        super().refuse_unsupported(raw)
        modalities = raw.get("modalities")
        if isinstance(modalities, list) and "audio" in modalities:
            raise unsupported("modalities", "must be ['text'].")
        if raw.get("service_tier") in ("scale", "fast"):
            raise unsupported("service_tier", "must be 'auto', 'default', 'flex' or 'priority'.")

    def inner_json(self) -> Iterator[tuple[str, str]]:
        """Yield the arguments of calls."""
        return inner_arguments(self.messages)

    def check_values(self) -> None:
        """Check rules between fields, and the bounds inside messages and tools. Raises `ApiError`."""
        super().check_values()
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs")
        check_options(self.chat_template_kwargs)
        self.read_thinking()
        check_messages(self.messages)
        check_continuation(self.messages, opened=self.add_generation_prompt, continued=self.continue_final_message)
        check_tools(self.tools or [], self.tool_choice)

    def list_unenforced(self) -> list[str]:
        """Return what `response_format`, `structured_outputs` and the schemas of a demanded call leave to the model."""
        own = [*super().list_unenforced(), *unenforced_format(self.response_format)]
        return [*own, *unenforced_tools(self.tools or [], self.tool_choice)]

    def read_thinking(self) -> Thinking:
        """Return what all fields say of thinking. Raises `ApiError` where they contradict each other."""
        thinking = self.thinking if isinstance(self.thinking, ThinkingOptions) else ThinkingOptions(type="adaptive")
        reasoning = self.reasoning or ReasoningOptions()
        switched = self.thinking if isinstance(self.thinking, bool) else None
        if thinking.type != "adaptive":
            switched = thinking.type == "enabled"
        own = read_known(self.chat_template_kwargs)
        return Thinking(
            enabled=agree_on(
                {
                    "enable_thinking": self.enable_thinking,
                    "chat_template_kwargs.enable_thinking": own.enable_thinking,
                    "thinking": switched,
                    "reasoning.enabled": reasoning.enabled,
                }
            ),
            effort=agree_on(
                {
                    "reasoning_effort": self.reasoning_effort,
                    "chat_template_kwargs.reasoning_effort": own.reasoning_effort,
                    "reasoning.effort": reasoning.effort,
                }
            ),
            budget=bounded(
                agree_on(
                    {
                        "thinking_budget": self.thinking_budget,
                        "chat_template_kwargs.thinking_budget": own.thinking_budget,
                        "thinking.budget_tokens": thinking.budget_tokens,
                        "reasoning.max_tokens": reasoning.max_tokens,
                    }
                )
            ),
            clear=thinking.clear_thinking,
        )

    def list_unread(self, ready: Ready | None) -> set[str]:
        """Return the parameters that change nothing, since the model's chat template does not read them."""
        unread = name_unread(self.chat_template_kwargs, ready)
        if reads_switches(ready):
            return unread
        given = {
            "enable_thinking": self.enable_thinking is not None,
            "reasoning_effort": self.reasoning_effort is not None,
            "thinking": isinstance(self.thinking, bool)
            or (self.thinking is not None and self.thinking.budget_tokens is None),
            "reasoning": self.reasoning is not None
            and self.reasoning.max_tokens is None
            and not self.reasoning.exclude,
        }
        return unread | {name for name, is_given in given.items() if is_given}

    @property
    def tells_reasoning(self) -> bool:
        """Whether the answer has its reasoning in it."""
        return self.include_reasoning is not False and not (self.reasoning and self.reasoning.exclude)

    def make_grammar(self) -> Grammar | None:
        """Return what the text of an answer must be. Raises `ApiError`."""
        extra = super().make_grammar()
        own = format_grammar(self.response_format)
        if extra is not None and own is not None:
            raise invalid("'structured_outputs' and 'response_format' exclude each other.", "structured_outputs")
        return extra or own

    @property
    def image_references(self) -> list[ImageReference]:
        """The images of the conversation, in order. Raises `ApiError` if there are too many."""
        return list_images(self.messages)

    def make_job(
        self, ready: Ready | None, *, request_id: str, tenant: str, images: Sequence[Image] = ()
    ) -> GenerateJob:
        """Make the job for a worker; the pool fills in its numbers. `images`: what its references became.

        `ready`: see `Generation.sampling`.
        """
        thinking = self.read_thinking()
        return GenerateJob(
            job=0,
            attempt=0,
            request_id=request_id,
            tenant=tenant,
            prompt=chat_prompt(
                self.messages,
                tools=None if self.tool_choice == "none" else self.tools,
                template={**template_options(self.chat_template_kwargs, None), **thinking.template},
                opened=self.add_generation_prompt is not False,
                continued=bool(self.continue_final_message),
            ),
            sampling=self.make_sampling(ready),
            max_tokens=self.ceiling,
            stop=self.list_stops(),
            n=self.n or 1,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            # A function that is named is called once, as OpenAI does it.
            parallel_tool_calls=self.parallel_tool_calls is not False and not isinstance(self.tool_choice, NamedTool),
            images=[*images],
            priority=PRIORITIES.get(self.service_tier or "default", 0),
            grammar=self.make_grammar(),
            tool_choice="required" if call_demanded(self.tool_choice) else "auto",
            tool_names=called_names(self.tool_choice),
            thinking_budget=thinking.budget,
            tell_prompt=bool(self.return_token_ids),
            number_tokens=bool(self.return_tokens_as_token_ids),
        )


def chat_prompt(
    messages: list[Message],
    *,
    tools: list[Tool] | None,
    template: dict[str, bool | int | float | str],
    opened: bool = True,
    continued: bool = False,
) -> ChatPrompt:
    """Return a conversation as workers take it; see `ChatPrompt` for how it ends."""
    return ChatPrompt(
        messages=template_messages(messages),
        tools=msgspec.json.encode(tools) if tools else None,
        template=template,
        add_generation_prompt=opened and not continued,
        continue_final_message=continued,
    )


def template_options(kwargs: TemplateKwargs | None, effort: str | None) -> dict[str, bool | int | float | str]:
    """Return the given options by name. Effort `none` turns thinking off, for templates that only know that switch."""
    found = given_options(kwargs)
    if effort is not None:
        found["reasoning_effort"] = effort
    if found.get("reasoning_effort") == "none":
        found.setdefault("enable_thinking", False)
    return found
