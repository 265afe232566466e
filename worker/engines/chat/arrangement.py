"""Conversations brought into the form that a chat template takes, in the order in which they were held. Pure.

Nothing is left out, and nothing moves in front of what was said before it.
"""

import hashlib
import json
from typing import Any

from worker.engines.chat.template_traits import NAMED_ID, PLAIN_ID, TemplateTraits

JsonMessage = dict[str, Any]
JsonPart = dict[str, Any]

GAP = "\n\n"
"""Between two messages that become one."""
ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


def arrange_messages(messages: list[JsonMessage], traits: TemplateTraits) -> list[JsonMessage]:
    """Return a conversation of system, user, assistant and tool as a template with such traits takes it."""
    messages = _name_results([_whole(message) for message in messages])
    if traits.call_ids != "any":
        messages = _map_ids(messages, traits)
    messages = _place_systems(messages, traits)
    if not traits.images_in_results:
        messages = _move_images(messages)
    if not traits.calls:
        messages = [_as_text(message) for message in messages]
    elif not traits.lone_results:
        messages = _mark_lone_results(messages)
    if not traits.assistants_in_row:
        messages = _merge_rows(messages, "assistant")
    messages = _place_calls(messages, traits)
    if not traits.users_in_row:
        messages = _merge_rows(messages, "user")
    messages = _open_with_user(messages, traits)
    return [_finish_message(message, traits) for message in messages]


def mark_system(text: str) -> str:
    """Return the text of a system message for where a template has no place for one."""
    return f"<system>\n{text}\n</system>"


def mark_result(text: str) -> str:
    """Return the text of a tool's result for where a template has no place for one."""
    return f"<tool_response>\n{text}\n</tool_response>"


def mark_call(name: str, arguments: Any) -> str:
    """Return a call as text. `arguments`: a mapping, or text that is none."""
    return f'<tool_call>\n{{"name": {_json(name)}, "arguments": {_json(arguments)}}}\n</tool_call>'


def _whole(message: JsonMessage) -> JsonMessage:
    """Return a message with all that its role has."""
    whole = {**message, "content": message.get("content") or ""}
    if message["role"] == "tool":
        whole.setdefault("tool_call_id", "")
    if calls := whole.pop("tool_calls", None):
        whole["tool_calls"] = [{"id": "", "type": "function", **call} for call in calls]
    return whole


# -- roles


def _place_systems(messages: list[JsonMessage], traits: TemplateTraits) -> list[JsonMessage]:
    leading = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    first, rest = messages[:leading], messages[leading:]
    if len(first) > 1 and not traits.systems_in_row:
        first = [{**first[0], "content": GAP.join(message["content"] for message in first)}]
    if not traits.system:
        first = [_marked(message) for message in first]
    if not traits.system_anywhere:
        rest = [_marked(message) if message["role"] == "system" else message for message in rest]
    return [*first, *rest]


def _marked(message: JsonMessage) -> JsonMessage:
    return {**message, "role": "user", "content": mark_system(message["content"])}


def _open_with_user(messages: list[JsonMessage], traits: TemplateTraits) -> list[JsonMessage]:
    """Put an empty user message in front of the conversation where a template must find one."""
    start = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    late = start < len(messages) and messages[start]["role"] != "user" and not traits.assistant_first
    absent = not traits.user_absent and all(message["role"] != "user" for message in messages)
    return [*messages[:start], _empty("user"), *messages[start:]] if late or absent else messages


def _merge_rows(messages: list[JsonMessage], role: str) -> list[JsonMessage]:
    """Join messages of one role that follow each other; not what follows a call."""
    merged: list[JsonMessage] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is not None and last["role"] == message["role"] == role and not last.get("tool_calls"):
            merged[-1] = _joined(last, message)
        else:
            merged.append(message)
    return merged


def _joined(one: JsonMessage, other: JsonMessage) -> JsonMessage:
    joined = {**one, **other, "content": _joined_contents(one["content"], other["content"])}
    if one.get("name") != other.get("name"):
        joined.pop("name", None)
    thoughts = [message["reasoning_content"] for message in (one, other) if message.get("reasoning_content")]
    if thoughts:
        joined["reasoning_content"] = GAP.join(thoughts)
    return joined


def _joined_contents(one: str | list[JsonPart], other: str | list[JsonPart]) -> str | list[JsonPart]:
    if isinstance(one, str) and isinstance(other, str):
        return GAP.join(text for text in (one, other) if text)
    return [*_parts(one), {"type": "text", "text": GAP}, *_parts(other)]


def _parts(content: str | list[JsonPart]) -> list[JsonPart]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _empty(role: str) -> JsonMessage:
    return {"role": role, "content": ""}


# -- calls and results


def _name_results(messages: list[JsonMessage]) -> list[JsonMessage]:
    """Give results the name of the function, which some templates show, and mark those whose call is missing."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and "name" not in message and message["tool_call_id"] in names:
            message = {**message, "name": names[message["tool_call_id"]]}
        named.append(message)
    return named


def _map_ids(messages: list[JsonMessage], traits: TemplateTraits) -> list[JsonMessage]:
    """Give calls, and their results, ids in the form that the template takes; an id that has it stays."""
    mapped = []
    current: dict[str, str] = {}
    number = 0
    for message in messages:
        if "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                name = NAMED_ID.format(name=call["function"]["name"], number=number)
                current[call["id"]] = _plain_id(call["id"]) if traits.call_ids == "plain" else name
                calls.append({**call, "id": current[call["id"]]})
                number += 1
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            own = message["tool_call_id"]
            message = {**message, "tool_call_id": current.get(own) or _plain_id(own)}
        mapped.append(message)
    return mapped


def _move_images(messages: list[JsonMessage]) -> list[JsonMessage]:
    """Move images of tools into a user message behind the results, which says what they are."""
    moved: list[JsonMessage] = []
    waiting: list[JsonPart] = []
    for message in messages:
        if message["role"] != "tool" and waiting:
            moved.append({"role": "user", "content": waiting})
            waiting = []
        if message["role"] == "tool" and isinstance(message["content"], list):
            images = [part for part in message["content"] if part["type"] == "image"]
            text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
            source = f" of {message['name']}" if "name" in message else ""
            waiting += [{"type": "text", "text": f"Images in the result{source}:"}, *images]
            message = {**message, "content": text}
        moved.append(message)
    return [*moved, {"role": "user", "content": waiting}] if waiting else moved


def _as_text(message: JsonMessage) -> JsonMessage:
    """Return a message whose calls or result are text."""
    if message["role"] == "tool":
        content = message["content"]
        if isinstance(content, list):
            before, behind = mark_result("\0").split("\0")
            content = [{"type": "text", "text": before}, *content, {"type": "text", "text": behind}]
        else:
            content = mark_result(content)
        return {"role": "user", "content": content}
    if "tool_calls" not in message:
        return message
    calls = [mark_call(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    text = "\n".join([*([message["content"]] if message["content"] else []), *calls])
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": text}


def _place_calls(messages: list[JsonMessage], traits: TemplateTraits) -> list[JsonMessage]:
    """Give calls the messages that the template takes them in; there are none left where they are text."""
    if traits.call_text != "beside":
        messages = [part for message in messages for part in _apart(message, with_user=traits.call_text == "apart")]
    if not traits.parallel_calls:
        messages = _one_call_each(messages)
    if not traits.user_after_calls:
        messages = _answer_calls(messages)
    return messages


def _mark_lone_results(messages: list[JsonMessage]) -> list[JsonMessage]:
    """Turn results into text that do not follow their call directly, or after other results of its message."""
    placed = []
    known: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            placed.append(message if message["tool_call_id"] in known else _as_text(message))
            continue
        known = {call["id"] for call in message.get("tool_calls", ())}
        placed.append(message)
    return placed


def _apart(message: JsonMessage, *, with_user: bool) -> list[JsonMessage]:
    if not message.get("tool_calls") or not message["content"]:
        return [message]
    said = {key: value for key, value in message.items() if key not in ("tool_calls", "reasoning_content")}
    return [said, *([_empty("user")] if with_user else []), {**message, "content": ""}]


def _one_call_each(messages: list[JsonMessage]) -> list[JsonMessage]:
    """Give each call a message of its own, with its result behind it; results keep their order."""
    placed: list[JsonMessage] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            placed.append(message)
            continue
        end = at
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        placed += _with_results(message, messages[at:end])
        at = end
    return placed


def _with_results(message: JsonMessage, results: list[JsonMessage]) -> list[JsonMessage]:
    waiting = list(message["tool_calls"])
    kept = {key: value for key, value in message.items() if key != "reasoning_content"} | {"content": ""}
    placed: list[JsonMessage] = []
    for result in results:
        if call := next((call for call in waiting if call["id"] == result["tool_call_id"]), None):
            waiting.remove(call)
            placed.append({**(kept if placed else message), "tool_calls": [call]})
        placed.append(result)
    return [
        *placed,
        *({**(kept if placed or number else message), "tool_calls": [call]} for number, call in enumerate(waiting)),
    ]


def _answer_calls(messages: list[JsonMessage]) -> list[JsonMessage]:
    """Put an empty answer of the assistant between calls, or results, and the user who speaks next."""
    placed: list[JsonMessage] = []
    for message in messages:
        if message["role"] == "user" and placed and (placed[-1]["role"] == "tool" or placed[-1].get("tool_calls")):
            placed.append(_empty("assistant"))
        placed.append(message)
    return placed


# -- one message


def _finish_message(message: JsonMessage, traits: TemplateTraits) -> JsonMessage:
    finished = dict(message)
    if not traits.thoughts:
        finished.pop("reasoning_content", None)
    if calls := message.get("tool_calls"):
        finished["content"] = message["content"] or traits.call_content
        finished["tool_calls"] = [_finish_call(call, traits) for call in calls]
    elif not message["content"]:
        finished["content"] = traits.filler
    return finished


def _finish_call(call: dict[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str) and not traits.text_arguments:
        # What a model wrote that is no object, on a template that lists arguments by name.
        arguments = {"arguments": arguments}
    if isinstance(arguments, dict) and not traits.mapped_arguments:
        arguments = _json(arguments)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _plain_id(call_id: str) -> str:
    """Return an id in the form of nine letters and digits: itself, or always the same one in its place."""
    if PLAIN_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest()[:8])
    letters = []
    for _ in range(9):
        number, digit = divmod(number, len(ID_LETTERS))
        letters.append(ID_LETTERS[digit])
    return "".join(letters)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
