"""Tool calls, one or two at once, and the answer that a tool's result makes possible.

The right function among those offered, with arguments copied from the question.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training import vocabulary
from training.draw import Draw
from training.sample import Message, Sample, assistant, draw, user
from training.skills import facts, talk


@dataclass(frozen=True, kw_only=True)
class ToolRecipe:
    """A function, how it is asked for, and how its result `r` is told. `kinds` says what each parameter is."""

    name: str
    description: str
    kinds: Mapping[str, str]
    asks: tuple[str, ...]
    tells: str
    both: str = ""


_KNOWN = (
    ToolRecipe(
        name="get_weather",
        description="Get the weather in a city.",
        kinds={"city": "city"},
        asks=(
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Weather in {city}?",
            "What's the weather like in {city}?",
            "Tell me the weather in {city}.",
            "Is it warm in {city}?",
        ),
        tells="The weather in {city}: {r}.",
        both="What is the weather in {0} and in {1}?",
    ),
    ToolRecipe(
        name="get_time",
        description="Get the time in a city.",
        kinds={"city": "city"},
        asks=("What time is it in {city}?", "Tell me the time in {city}.", "What is the time in {city}?"),
        tells="The time in {city}: {r}.",
        both="What time is it in {0} and in {1}?",
    ),
    ToolRecipe(
        name="add",
        description="Add two numbers.",
        kinds={"a": "number", "b": "number"},
        asks=("Use the tool to add {a} and {b}.", "Add {a} and {b} with the tool.", "What is {a} + {b}? Use the tool."),
        tells="The sum of {a} and {b}: {r}.",
    ),
    ToolRecipe(
        name="multiply",
        description="Multiply two numbers.",
        kinds={"a": "number", "b": "number"},
        asks=("Multiply {a} by {b}.", "What is {a} times {b}?", "How much is {a} times {b}?"),
        tells="{a} times {b}: {r}.",
    ),
    ToolRecipe(
        name="get_price",
        description="Get the price of a stock.",
        kinds={"symbol": "code"},
        asks=("What is the price of {symbol}?", "How much is {symbol}?", "Price of {symbol}?"),
        tells="The price of {symbol}: {r}.",
        both="What is the price of {0} and of {1}?",
    ),
    ToolRecipe(
        name="send_mail",
        description="Send a mail to a person.",
        kinds={"to": "name", "text": "phrase"},
        asks=("Send a mail to {to}: {text}", "Mail {to}: {text}", "Write a mail to {to}: {text}"),
        tells="The mail to {to}: {r}.",
    ),
    ToolRecipe(
        name="set_timer",
        description="Set a timer.",
        kinds={"minutes": "number"},
        asks=(
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Timer for {minutes} minutes, please.",
        ),
        tells="The timer of {minutes} minutes: {r}.",
    ),
    ToolRecipe(
        name="search",
        description="Search the web.",
        kinds={"query": "phrase"},
        asks=("Search for {query}", "Search the web for {query}", "Look up {query}", "Google {query}"),
        tells="I found this: {r}.",
    ),
    ToolRecipe(
        name="translate",
        description="Translate a text.",
        kinds={"text": "phrase", "language": "language"},
        asks=("Translate {text} into {language}.", "How do you say {text} in {language}?"),
        tells="In {language}: {r}.",
    ),
    ToolRecipe(
        name="play_song",
        description="Play a song.",
        kinds={"title": "phrase"},
        asks=("Play {title}", "Play the song {title}", "I want to hear {title}"),
        tells="Playing {title}: {r}.",
    ),
    ToolRecipe(
        name="book_table",
        description="Book a table in a restaurant.",
        kinds={"city": "city", "people": "number"},
        asks=("Book a table in {city} for {people} people.", "A table for {people} in {city}, please."),
        tells="The table in {city}: {r}.",
    ),
    ToolRecipe(
        name="turn_on",
        description="Turn on a device.",
        kinds={"device": "word"},
        asks=("Turn on the {device}.", "Switch on the {device}.", "Please turn on the {device}."),
        tells="The {device}: {r}.",
        both="Turn on the {0} and the {1}.",
    ),
)
_VERBS = (
    "find",
    "open",
    "close",
    "delete",
    "show",
    "check",
    "start",
    "stop",
    "order",
    "count",
    "move",
    "read",
    "get",
    "load",
    "save",
    "buy",
)
_NOUNS = (
    "ticket",
    "file",
    "bill",
    "list",
    "note",
    "room",
    "flight",
    "book",
    "car",
    "house",
    "photo",
    "page",
    "game",
    "mail",
    "task",
    "disk",
    "song",
    "train",
    "letter",
    "film",
)
_PARAMETERS = (
    ("id", "number"),
    ("name", "word"),
    ("city", "city"),
    ("owner", "name"),
    ("code", "code"),
    ("number", "number"),
    ("title", "word"),
)
_FIELDS = (
    "temperature",
    "sky",
    "time",
    "price",
    "count",
    "status",
    "name",
    "city",
    "state",
    "color",
    "wind",
    "sum",
    "id",
    "size",
)
_LANGUAGES = ("French", "German", "Spanish", "Italian", "Greek", "Dutch", "Polish", "Turkish", "Japanese", "Latin")


def _invented(source: Draw) -> ToolRecipe:
    """Draw a function of a program that nobody knows: only its name says what it does."""
    verb, noun = source.pick(_VERBS), source.pick(_NOUNS)
    kinds = dict(source.some(_PARAMETERS, source.pick((1, 1, 2))))
    where = " and ".join(f"{parameter} {{{parameter}}}" for parameter in kinds)
    return ToolRecipe(
        name=f"{verb}_{noun}",
        description=f"{verb.capitalize()} a {noun}.",
        kinds=kinds,
        asks=(
            f"{verb.capitalize()} the {noun} with {where}.",
            f"Please {verb} the {noun} with {where}.",
            f"Use {verb}_{noun} with {where}.",
            f"Call {verb}_{noun} for {where}.",
            f"Can you {verb} the {noun} with {where}?",
        ),
        tells=f"The {noun}: {{r}}.",
    )


def _value(source: Draw, kind: str) -> str | int:
    match kind:
        case "city":
            return source.city()
        case "number":
            return source.number()
        case "name":
            return source.name()
        case "code":
            return source.letters(source.between(2, 4)).upper()
        case "language":
            return source.pick(_LANGUAGES)
        case "word":
            return source.word()
        case _:
            return " ".join(source.word() for _ in range(source.between(1, 4)))


def _result(source: Draw) -> str:
    match source.below(5):
        case 0:
            return f"{source.number()} degrees and {source.pick(vocabulary.WORDS)}"
        case 1:
            return str(source.number())
        case 2:
            return source.word()
        case 3:
            return f"{source.between(0, 23)}:{source.below(60):02}"
        case _:
            return " ".join(source.word() for _ in range(source.between(2, 4)))


def schema(tool: ToolRecipe) -> dict[str, Any]:
    """Return the tool as a client of the API describes it."""
    types = {name: {"type": "integer" if kind == "number" else "string"} for name, kind in tool.kinds.items()}
    parameters = {"type": "object", "properties": types, "required": list(types)}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _call(name: str, arguments: Mapping[str, str | int], place: int) -> dict[str, Any]:
    return {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _told(source: Draw) -> tuple[str, str]:
    """Draw a result as the tool returns it, and as it is told."""
    if source.chance(0.25):
        fields: dict[str, str | int] = {}
        for field in source.some(_FIELDS, source.between(1, 3)):
            fields[field] = source.number() if source.chance(0.5) else source.word()
        return json.dumps(fields), ", ".join(f"{field} {value}" for field, value in fields.items())
    result = _result(source)
    return (json.dumps({source.pick(("result", "value", "answer")): result}) if source.chance(0.35) else result), result


_Round = tuple[str, Message, tuple[Message, ...], Message]


def _ask(source: Draw, tool: ToolRecipe) -> tuple[str, list[dict[str, str | int]]]:
    if tool.both and source.chance(0.4):
        (parameter, kind), *_ = tool.kinds.items()
        first, second = _value(source, kind), _value(source, kind)
        return tool.both.format(first, second), [{parameter: first}, {parameter: second}]
    arguments = {parameter: _value(source, kind) for parameter, kind in tool.kinds.items()}
    return source.pick(tool.asks).format(**arguments), [arguments]


def _round(source: Draw, tools: list[ToolRecipe]) -> _Round:
    """Draw a question, the calls, their results, the answer; sometimes one question asks for two functions."""
    wanted = source.some(tools, 2) if len(tools) > 1 and source.chance(0.12) else [source.pick(tools)]
    questions: list[str] = []
    calls: list[dict[str, Any]] = []
    tells: list[str] = []
    results: list[Message] = []
    for tool in wanted:
        question, arguments = _ask(source, tool)
        questions.append(question)
        for values in arguments:
            content, result = _told(source)
            calls.append(_call(tool.name, values, len(calls) + 1))
            tells.append(tool.tells.format(**values, r=result))
            results.append({"role": "tool", "tool_call_id": f"call_{len(calls)}", "content": content})
    calling = {"role": "assistant", "content": None, "tool_calls": calls}
    return " ".join(questions), calling, tuple(results), assistant(" ".join(tells))


def _known_round(source: Draw, tools: list[ToolRecipe]) -> _Round:
    """Draw a round whose call is not the case of a held-out sample."""
    while True:
        found = _round(source, tools)
        if not Sample(skill="tool_call", key=found[0]).is_held_out:
            return found


def _offer(source: Draw) -> list[ToolRecipe]:
    offered: dict[str, ToolRecipe] = {}
    for _ in range(source.pick((1, 2, 2, 3))):
        tool = source.pick(_KNOWN) if source.chance(0.6) else _invented(source)
        offered[tool.name] = tool
    return list(offered.values())


def _earlier(source: Draw, tools: list[ToolRecipe]) -> list[Message]:
    """Draw a turn before, so that one list of tools teaches more than one call."""
    if source.chance(0.5):
        return []
    if source.chance(0.3):
        return list(draw(_plain, source, held_out=False).messages)
    question, calling, results, told = _known_round(source, tools)
    return [user(question), calling, *results, told]


def _plain(source: Draw) -> Sample:
    """Draw a question for which no function is of use."""
    while (sample := source.pick((facts.sample, talk.sample))(source)).raw:
        pass
    return sample


def call(source: Draw) -> Sample:
    """Draw a sample that ends in one call or two; now and then in plain words, where no function fits."""
    tools = _offer(source)
    schemas = tuple(schema(tool) for tool in tools)
    if source.chance(0.08):
        plain = _plain(source)
        return Sample(
            skill="tool_call", key=plain.key, messages=(*_earlier(source, tools), *plain.messages), tools=schemas
        )
    earlier = _earlier(source, tools)
    question, calling, _, _ = _round(source, tools)
    return Sample(skill="tool_call", key=question, messages=(*earlier, user(question), calling), tools=schemas)


def answer(source: Draw) -> Sample:
    """Draw a sample that ends in the sentence that tells the results."""
    tools = _offer(source)
    question, calling, results, told = _known_round(source, tools)
    messages = (*_earlier(source, tools), user(question), calling, *results, told)
    key = question + json.dumps([result["content"] for result in results])
    return Sample(skill="tool_answer", key=key, messages=messages, tools=tuple(schema(tool) for tool in tools))
