"""Conversations for chat templates that write Harmony (gpt-oss), which take less than others and know other names."""

import secrets
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from worker.engines.chat.prompts import Prompter
from worker.text.harmony import ASSISTANT, CHANNEL, END, MESSAGE, START, THOUGHTS

EFFORTS: Mapping[Any, str] = MappingProxyType(
    {
        "none": "low",
        "minimal": "low",
        "low": "low",
        "medium": "medium",
        "high": "high",
        "xhigh": "high",
        "max": "high",
    }
)
"""How much to think: what clients may ask for, and the three that the model was taught. It always thinks."""


PREAMBLE = f"\ue000{secrets.token_hex(8)}\ue000"
"""What stands before a preamble until the template has been rendered; nobody else can write it."""
_COMMENTARY = f"{CHANNEL}commentary{MESSAGE}"


class HarmonyPrompter(Prompter):
    """Renders conversations of models that write Harmony."""

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return name_preambles(super()._render(messages, **options))

    def _format_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return harmony_messages(messages)

    def _format_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return harmony_options(options)


def harmony_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's options with an effort that the model knows."""
    found = dict(options)
    effort = found.get("reasoning_effort")
    if effort is None and any(found.get(switch) is False for switch in ("enable_thinking", "thinking")):
        effort = "none"
    if effort is not None:
        found["reasoning_effort"] = EFFORTS.get(effort, effort)
    return found


def harmony_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation in which each call stands by itself, with its result right behind it.

    The template writes one call of a message, calls every result after the last function before it, and takes either
    thoughts or content beside a call. So further calls get messages of their own; what was said before the first is
    marked as a preamble.
    """
    answers = [at for at, message in enumerate(messages) if _is_answer(message)]
    found: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if message["role"] != "assistant":
            found.append(message)
            continue
        message = _with_thoughts(message)
        if not message.get("tool_calls"):
            found.append({key: value for key, value in message.items() if key != "tool_calls"})
            continue
        results = []
        while at < len(messages) and messages[at]["role"] == "tool":
            results.append(messages[at])
            at += 1
        found += _calling(message, results, pending=not answers or answers[-1] < at)
    return found


def name_preambles(text: str) -> str:
    """Return a rendered conversation with preambles in the channel of their own, which the template does not know."""
    for channel in (THOUGHTS, "final"):
        text = text.replace(f"{CHANNEL}{channel}{MESSAGE}{PREAMBLE}", _COMMENTARY)
    return text.replace(PREAMBLE, f"{END}{START}{ASSISTANT}{_COMMENTARY}")


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


def _with_thoughts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of the assistant with its thoughts under the template's name for them."""
    plain = {key: value for key, value in message.items() if key not in ("reasoning_content", "reasoning")}
    thoughts = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    return {**plain, "thinking": thoughts} if thoughts else plain


def _calling(message: Mapping[str, Any], results: list[dict[str, Any]], *, pending: bool) -> Iterator[dict[str, Any]]:
    """Yield the calls of a message one by one, each followed by its results; those of no call come last.

    `pending`: no answer has followed yet. Then the template keeps thoughts, and a message without calls before the
    calls would be an answer to it; later on it keeps nothing else of a message with calls.
    """
    thoughts, preamble = message.get("thinking") or "", message.get("content") or ""
    if preamble and pending:
        thoughts += PREAMBLE + preamble
    elif preamble:
        yield {"role": "assistant", "content": PREAMBLE + preamble}
    calls = message["tool_calls"]
    for number, call in enumerate(calls):
        first = {"thinking": thoughts} if thoughts and number == 0 else {}
        yield {"role": "assistant", "content": "", **first, "tool_calls": [call]}
        yield from (result for result in results if result.get("tool_call_id") == call.get("id"))
    ids = {call.get("id") for call in calls}
    yield from (result for result in results if result.get("tool_call_id") not in ids)
