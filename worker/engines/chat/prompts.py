"""From a prompt as it travels to token ids: template, tokenizer, checks. No MLX: the preprocessor's threads run it."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from protocol.errors import Code, JobError, context_message
from protocol.messages import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from protocol.template_names import is_reserved
from worker.engines.chat.arrangement import JsonMessage, arrange_messages
from worker.engines.chat.generic_tools import calls_generically, find_example, tell_tools
from worker.engines.chat.template_probe import probe_template, read_variables
from worker.engines.tokenizing import (
    MOST_COUNTED_TOKENS,
    TokenCoder,
    check_characters,
    ids_within,
    longest_name,
    most_characters,
)
from worker.text.disarming import Disarmer

log = logging.getLogger("worker")

END_MARK = "\ue000end\ue000"
"""What marks the end of a text in a rendered prompt, and is cut off: of private characters."""
JSON_SHARE = 2
"""Messages as JSON may be so many times longer than the text that is read: escapes and structure are no text."""


class Prompter:
    """Renders and tokenises for one model. Safe to call from several threads."""

    sees_images: ClassVar[bool] = False

    def __init__(self, tokenizer: Any, *, vocab_size: int, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._coder = TokenCoder(tokenizer)
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._longest_token = longest_name(tokenizer)
        self._disarmer = Disarmer(_control_tokens(tokenizer))
        traits = probe_template(self._render, read_variables(tokenizer))
        self._call_example = "" if traits.tools else find_example(tokenizer, self._render, traits)
        self.generic_tools = not traits.tools and not self._call_example and calls_generically(tokenizer)
        # Where a model is told to call in the generic form, earlier calls are shown so, too.
        self.traits = msgspec.structs.replace(traits, calls=traits.calls and not self.generic_tools)

    def tokenize_prompt(self, prompt: Prompt, *, counted: bool = False) -> list[int]:
        """Token ids of a prompt; where they are `counted` only, more than the context holds. Raises `JobError`."""
        match prompt:
            case TokenPrompt():
                self._check_prompt(prompt.tokens, counted=counted)
                return [*prompt.tokens]
            case TextPrompt():
                tokens = self.encode_text(prompt.text, "prompt", special=prompt.add_special_tokens, counted=counted)
                return self._begun_once(tokens) if prompt.add_special_tokens else tokens
            case ChatPrompt():
                return self.encode_text(self.render_chat(prompt), "messages", counted=counted)

    def _begun_once(self, tokens: list[int]) -> list[int]:
        """Return the tokens of a text that may have brought the token along that the tokenizer puts before it."""
        first: int | None = self._tokenizer.bos_token_id
        return tokens[1:] if first is not None and tokens[:2] == [first, first] else tokens

    def start_tokens(self) -> list[int]:
        """Something to start from where the prompt is empty. Raises `JobError` where the model has nothing."""
        first: int | None = self._tokenizer.bos_token_id
        if first is None:
            first = self._tokenizer.eos_token_id
        if first is None:
            raise JobError(Code.INVALID_REQUEST, "This model needs a prompt of at least one token.", "prompt")
        return [first]

    def render_chat(self, prompt: ChatPrompt) -> str:
        """Return a conversation as the model's chat template writes it. Raises `JobError`."""
        if not self._tokenizer.has_chat_template:
            raise JobError(
                Code.INVALID_REQUEST, "This model has no chat template: use /v1/completions instead.", "messages"
            )
        self._check_json(prompt.messages, "messages")
        self._check_json(prompt.tools or b"", "tools")
        tools: list[dict[str, Any]] | None = None
        try:
            messages = [self._disarmer.disarm_text(message) for message in json.loads(prompt.messages)]
            tools = self._disarmer.disarm_text(json.loads(prompt.tools)) if prompt.tools else None
            options = self._format_options(self._disarmer.disarm_text(prompt.template))
            # Those would reach parameters of transformers' own, or replace what is not the request's to say.
            options = {name: value for name, value in options.items() if not is_reserved(name)}
            options["add_generation_prompt"] = prompt.add_generation_prompt and not prompt.continue_final_message
            if prompt.continue_final_message:
                return self._continue(messages, lambda said: self._render_arranged(said, tools, options))
            return self._render_arranged(messages, tools, options)
        except JobError:
            raise
        except RecursionError:
            param = "tools" if prompt.tools else "messages"
            raise JobError(Code.INVALID_REQUEST, f"'{param}' is nested too deeply.", param) from None
        except Exception as error:
            # Templates are programs of others: they raise what they like.
            raise JobError(
                Code.INVALID_REQUEST, f"The model's chat template can't take these messages: {error}", "messages"
            ) from error

    def _render_arranged(
        self, messages: list[JsonMessage], tools: list[dict[str, Any]] | None, options: dict[str, Any]
    ) -> str:
        """Return a conversation as the template writes it; in plain turns where it does not take its own ones."""
        if tools and not self.traits.tools:
            if not self.calls_tools:
                raise JobError(Code.UNSUPPORTED, "This model's chat template takes no tools.", "tools")
            messages, tools = tell_tools(messages, tools, self._call_example), None
        try:
            return self._render(arrange_messages(messages, self.traits), tools=tools, **options)
        except (RecursionError, JobError):
            raise
        except Exception:
            try:
                return self._render(arrange_messages(messages, self.traits.in_plain_turns()), tools=tools, **options)
            except Exception:
                log.debug("a conversation was not taken in plain turns either", exc_info=True)
            raise

    def _continue(self, messages: list[JsonMessage], render: Callable[[list[JsonMessage]], str]) -> str:
        """Return a conversation up to the end of what its last message says: the assistant goes on from there."""
        last = messages[-1]
        if last["role"] != "assistant" or "tool_calls" in last or not last["content"]:
            message = (
                "'continue_final_message' needs a last message of the assistant with content and without tool calls."
            )
            raise JobError(Code.INVALID_REQUEST, message, "continue_final_message")
        text = render([*messages[:-1], {**last, "content": last["content"] + END_MARK}])
        end = text.rfind(END_MARK)
        if end < 0:
            message = "This model's chat template can't leave the last message open."
            raise JobError(Code.UNSUPPORTED, message, "continue_final_message")
        return text[:end]

    def _render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        """Return what the template makes of messages in its own form. Raises whatever the template raises."""
        formed = self._format_messages(messages)
        if any(message["content"] is None for message in formed):
            return render_nulls(
                self._tokenizer, formed, tools=tools, add_generation_prompt=add_generation_prompt, options=options
            )
        text: str = self._tokenizer.apply_chat_template(
            formed, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False, **options
        )
        return text

    @property
    def calls_tools(self) -> bool:
        """Whether the model is told of tools, by its template or by the pool."""
        return self.traits.tools or bool(self._call_example) or self.generic_tools

    def list_capabilities(self) -> list[str]:
        """List what the chat template takes as it comes; what it does not is brought into another form."""
        if not self._tokenizer.has_chat_template:
            return []
        traits = self.traits
        takes = {
            "generic_tools": self.generic_tools,
            "tool_results": traits.calls,
            "parallel_tool_calls": traits.calls and traits.parallel_calls,
            "images_in_results": self.sees_images and traits.images_in_results,
            "system_anywhere": traits.system and traits.system_anywhere,
            "roles_in_any_order": traits.users_in_row and traits.assistants_in_row and traits.assistant_first,
        }
        return [name for name, taken in takes.items() if taken]

    def encode_text(
        self, text: str, param: str = "messages", *, special: bool = False, counted: bool = False
    ) -> list[int]:
        """Token ids of a rendered conversation, or of any text. Raises `JobError`."""
        self._check_length(text, param, counted=counted)
        return self._coder.encode_text(text, special=special)

    def decode_tokens(self, tokens: list[int]) -> str:
        """Text of token ids, control tokens included. Raises `JobError`."""
        self._coder.check_count(len(tokens), self._context_length, "tokens")
        self.check_ids(tokens, "tokens")
        return self._coder.decode_tokens(tokens)

    def _format_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages in the form that the template expects."""
        return messages

    def _format_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options in the form that the template expects."""
        if "enable_thinking" in options and {"enable_thinking", "thinking"} & self.traits.variables == {"thinking"}:
            return {"thinking": options["enable_thinking"], **options}
        return options

    def _check_prompt(self, tokens: list[int], *, counted: bool) -> None:
        if len(tokens) > self._context_length and not counted:
            raise self._too_long(f"{len(tokens)}", "prompt")
        self._coder.check_count(len(tokens), self._context_length, "prompt")
        self.check_ids(tokens, "prompt")

    def check_ids(self, tokens: Sequence[int], param: str) -> None:
        """Refuse an id outside the vocabulary: in MLX it is an out-of-bounds access, which ends the process."""
        if not ids_within(tokens, self._vocab_size):
            message = f"Token ids of this model are 0 to {self._vocab_size - 1}."
            raise JobError(Code.INVALID_REQUEST, message, param)

    def _check_json(self, content: bytes, param: str) -> None:
        """Refuse messages that can't possibly fit before they are parsed, disarmed and rendered."""
        most = JSON_SHARE * most_characters(self._context_length)
        # No text has more characters than bytes.
        if len(content) > most and len(content.decode(errors="replace")) > most:
            raise JobError(
                Code.CONTEXT_LENGTH,
                context_message(self._context_length, f"'{param}' takes more than {most} characters of JSON"),
                param,
            )

    def _check_length(self, text: str, param: str, *, counted: bool) -> None:
        """Refuse what can't possibly fit before seconds go into tokenising it."""
        least = len(text) // self._longest_token
        if least > self._context_length:
            raise self._too_long(f"at least {least}", param)
        check_characters(text, self._context_length, param, "the prompt")
        most = max(self._context_length, MOST_COUNTED_TOKENS) if counted else self._context_length
        if least := self._coder.least_tokens(text, most):
            if counted:
                raise JobError(
                    Code.CONTEXT_LENGTH, f"The prompt has at least {least} tokens, more than are counted.", param
                )
            raise self._too_long(f"at least {least}", param)

    def _too_long(self, count: str, param: str) -> JobError:
        message = context_message(self._context_length, f"the prompt has {count} tokens")
        return JobError(Code.CONTEXT_LENGTH, message, param)


def render_nulls(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    *,
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    options: dict[str, Any],
) -> str:
    """Render messages whose content is null, for templates that look for that: transformers leaves out such keys."""
    # Here, because only some templates need it.
    from transformers.utils.chat_template_utils import render_jinja_template

    [text], _ = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=tokenizer.get_chat_template(tools=tools),
        add_generation_prompt=add_generation_prompt,
        **{**tokenizer.special_tokens_map, "enable_thinking": tokenizer.has_thinking, **options},
    )
    return str(text)


def _control_tokens(tokenizer: Any) -> set[str]:
    """Texts that the tokenizer would turn into a control token wherever they stand.

    What a tokenizer names (`all_special_tokens`) are a few of them only: the markers of roles are often mere added
    tokens. Some models do not even mark those as special (DeepSeek's `<｜User｜>`), so their usual look counts as well.
    Not `<think>` and the like: templates look for them in earlier answers.
    """
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or token.content.startswith(("<|", "<｜"))}
    names.update(str(name) for name in tokenizer.all_special_tokens)
    return {name for name in names if len(name) > 1}
