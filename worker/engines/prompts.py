"""From a prompt as it travels to token ids: template, tokenizer, checks. No MLX: it runs on the reception thread."""

import json
import re
from typing import Any

from jinja2 import TemplateError

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, Prompt, TextPrompt, TokenPrompt

JOINER = "\u2060"
"""Word joiner, invisible. Put into control tokens that a message spells out: text must not forge a role."""


class Prompter:
    """Renders and tokenises for one model."""

    def __init__(self, tokenizer: Any, *, vocab_size: int, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        vocabulary = tokenizer.get_vocab()
        self._longest_token = max((len(name) for name in vocabulary), default=1)
        special = sorted(_control_tokens(tokenizer), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises `JobError`."""
        match prompt:
            case TokenPrompt():
                tokens = prompt.tokens
                if any(not 0 <= token < self._vocab_size for token in tokens):
                    raise JobError(Code.INVALID_REQUEST, f"Token ids are 0 to {self._vocab_size - 1}.", "prompt")
            case TextPrompt():
                self._check_length(prompt.text, "prompt")
                tokens = self._tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
            case ChatPrompt():
                tokens = self.encode(self.render(prompt))
        return list(tokens)

    def start(self) -> list[int]:
        """Something to start from where the prompt is empty. Raises `JobError` where the model has nothing."""
        first: int | None = self._tokenizer.bos_token_id
        if first is None:
            first = self._tokenizer.eos_token_id
        if first is None:
            raise JobError(Code.INVALID_REQUEST, "This model needs a prompt of at least one token.", "prompt")
        return [first]

    def render(self, prompt: ChatPrompt) -> str:
        """A conversation as the model's chat template writes it. Raises `JobError`."""
        if not self._tokenizer.has_chat_template:
            raise JobError(
                Code.INVALID_REQUEST, "This model has no chat template: use /v1/completions instead.", "messages"
            )
        messages = self._form([self._disarm(message) for message in json.loads(prompt.messages)])
        tools = self._disarm(json.loads(prompt.tools)) if prompt.tools else None
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False, **self._disarm(prompt.template)
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise JobError(
                Code.INVALID_REQUEST, f"The model's chat template can't take these messages: {error}", "messages"
            ) from error
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered conversation. Raises `JobError`."""
        self._check_length(text, "messages")
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _form(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages in the form that the template expects."""
        return messages

    def _disarm(self, value: Any) -> Any:
        """The same message, with control tokens in its texts broken by a joiner."""
        if self._special is None:
            return value
        match value:
            case str():
                return self._special.sub(lambda found: found[0][0] + JOINER + found[0][1:], value)
            case dict():
                return {self._disarm(key): self._disarm(part) for key, part in value.items()}
            case list():
                return [self._disarm(part) for part in value]
            case _:
                return value

    def _check_length(self, text: str, param: str) -> None:
        """Refuse what can't possibly fit before seconds go into tokenising it."""
        least = len(text) // self._longest_token
        if least > self._context_length:
            raise JobError(
                Code.CONTEXT_LENGTH,
                f"The prompt has at least {least} tokens; this model's context holds {self._context_length}.",
                param,
            )


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
