"""DeepSeek V3, V3.1 and V3.2: the real tokenizer of V3, their ways to write calls, random weights that know neither."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from protocol.messages import ChatPrompt, GenerateJob, Grammar, ToolCall
from protocol.parts import joined_calls
from tests.support.deepseek_templates import V3_TEMPLATE, V31_TEMPLATE
from tests.support.engine_runs import Outcome, chat, job, run
from tests.support.real_tokenizers import fetch_tokenizer, make_tiny_model
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "note": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "note", "days"],
    "additionalProperties": False,
}
NOTE = {
    "type": "object",
    "properties": {"stars": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}},
    "required": ["stars"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "take.note-1": NOTE}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"Does {name}.", "parameters": schema, "strict": True},
    }
    for name, schema in SCHEMAS.items()
]
ARGUMENTS = [
    ("get_weather", {"city": "Oslo", "note": "< é 😀 日本\n", "days": 2}),
    ("take.note-1", {"stars": [True]}),
]
VERSIONS = ["v3", "v31", "v32"]
DSML_ID = 128815


def dsml_folder(folder: Path) -> Path:
    """A tokenizer of V3 with the token that V3.2 added; its template is a program of mlx-lm's."""
    shutil.copytree(fetch_tokenizer("deepseek"), folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for number, name in enumerate(("｜DSML｜", "<think>", "</think>")):
        content["added_tokens"].append({"id": DSML_ID + number, "content": name, **added})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ChatEngine]]:
    """Loaded engines, by version."""
    made: dict[str, ChatEngine] = {}

    def make(version: str) -> ChatEngine:
        if version not in made:
            folder = tmp_path_factory.mktemp(version)
            tokenizer = dsml_folder(folder / "tokenizer") if version == "v32" else fetch_tokenizer("deepseek")
            template = {"v3": V3_TEMPLATE, "v31": V31_TEMPLATE, "v32": None}[version]
            make_tiny_model(tokenizer, folder / "model", template=template)
            made[version] = ChatEngine(
                WorkerConfig(model_path=str(folder / "model"), served_name=version, prefix_cache_bytes=0)
            )
            made[version].load()
        return made[version]

    yield make
    for engine in made.values():
        engine.close(0.0)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def engine(version: str, engines: Callable[[str], ChatEngine]) -> Iterator[ChatEngine]:
    """Idle before and after."""
    engine = engines(version)
    yield engine
    while engine.busy:
        engine.step()


def ask(engine: ChatEngine, number: int, **fields: Any) -> GenerateJob:
    # Left to chance, calls would follow calls.
    tokenizer = engine.loaded.tokenizer
    names = ("<｜tool▁calls▁end｜>", "</", "</think>")
    ends = [token for name in names for token in tokenizer.encode(name, add_special_tokens=False)[:1]]
    bias = {**dict.fromkeys([*tokenizer.eos_token_ids, *ends], 9.0), **fields.pop("bias", {})}
    prompt = chat(f"hello {number}", tools=TOOLS, enable_thinking=fields.pop("think", False))
    return job(number, prompt, sampling={"temperature": 1.0, "logit_bias": bias}, **{"max_tokens": 300, **fields})


def calls(outcome: Outcome) -> list[ToolCall]:
    assert outcome.failed is None, outcome.failed
    return joined_calls(call for delta in outcome.deltas for call in delta.calls)


def check(found: list[ToolCall]) -> None:
    for call in found:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def written(version: str, *, several: bool = True) -> str:
    """What a model of that version writes to make the calls of `ARGUMENTS`."""
    wanted = ARGUMENTS if several else ARGUMENTS[:1]
    if version == "v32":
        inside = "".join(f'<｜DSML｜invoke name="{name}">\n{_tags(given)}</｜DSML｜invoke>\n' for name, given in wanted)
        return f"<｜DSML｜function_calls>\n{inside}</｜DSML｜function_calls>"
    texts = [(name, json.dumps(given, ensure_ascii=False)) for name, given in wanted]
    if version == "v31":
        inside = "".join(f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{text}<｜tool▁call▁end｜>" for name, text in texts)
    else:
        inside = "\n".join(
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{text}\n```<｜tool▁call▁end｜>"
            for name, text in texts
        )
    return f"<｜tool▁calls▁begin｜>{inside}<｜tool▁calls▁end｜>"


def _tags(given: dict[str, Any]) -> str:
    return "".join(
        f'<｜DSML｜parameter name="{name}" string="{"true" if isinstance(value, str) else "false"}">'
        f"{value if isinstance(value, str) else json.dumps(value)}</｜DSML｜parameter>\n"
        for name, value in given.items()
    )


def test_kind_of_answers_is_told(engine: ChatEngine) -> None:
    """Calls and grammars work, whatever the version."""
    assert {"chat", "tools", "structured_outputs"} <= set(engine.describe().capabilities)


def test_call_comes_when_one_is_demanded(engine: ChatEngine) -> None:
    """Nothing but a call, whose arguments fit."""
    asked = [ask(engine, number, tool_choice="required", parallel_tool_calls=False) for number in range(6)]
    for outcome in run(engine, asked).values():
        [call] = calls(outcome)
        check([call])
        assert (outcome.finish, outcome.text) == ({0: "tool_calls"}, {0: ""})


def test_named_function_is_called_when_one_is_named(engine: ChatEngine) -> None:
    """And no other."""
    asked = {"tool_choice": "required", "parallel_tool_calls": False, "tool_names": ["take.note-1"]}
    for outcome in run(engine, [ask(engine, number, **asked) for number in range(3)]).values():
        assert [call.name for call in calls(outcome)] == ["take.note-1"]
        check(calls(outcome))


def test_calls_are_several_when_the_model_may_make_several(engine: ChatEngine) -> None:
    """All of them fit."""
    encode = engine.loaded.tokenizer.encode
    more = {token: 60.0 for name in ("<｜tool▁call▁begin｜>", "<") for token in encode(name, add_special_tokens=False)}
    outcomes = run(engine, [ask(engine, number, tool_choice="required", bias=more) for number in range(4)])
    # An answer that was cut may end within a call.
    found = [calls(one)[: None if one.finish[0] == "tool_calls" else -1] for one in outcomes.values()]
    for each in found:
        check(each)
    assert max(map(len, found)) > 1


def test_form_holds_when_one_is_asked_for(engine: ChatEngine) -> None:
    """The answer is of that form, or calls."""
    grammar = Grammar("json_schema", json.dumps(NOTE), "response_format")
    for outcome in run(engine, [ask(engine, number, grammar=grammar) for number in range(4)]).values():
        check(calls(outcome) if outcome.finish[0] == "tool_calls" else [])
        if outcome.finish[0] == "stop":
            jsonschema.validate(json.loads(outcome.text[0]), NOTE)


@pytest.mark.parametrize("several", [True, False])
def test_calls_of_the_model_are_read_as_they_come(engine: ChatEngine, version: str, several: bool) -> None:
    """Text before them is content; as one and token by token."""
    tokens = engine.loaded.tokenizer.encode("I look.\n\n" + written(version, several=several), add_special_tokens=False)
    for steps in (1, 3, len(tokens)):
        asked = job(1, chat("hello", tools=TOOLS, enable_thinking=False), tool_choice="auto")
        [text] = engine.prepare(asked).texts
        pieces = []
        for at, token in enumerate(tokens):
            text.feed_token(token)
            if at % steps == steps - 1:
                pieces.append(text.take_pieces())
        pieces = [piece for piece in [*pieces, text.finish_text("stop")] if piece is not None]
        assert "".join(piece.text for piece in pieces).rstrip() == "I look."
        found = joined_calls(call for piece in pieces for call in piece.calls)
        expected = ARGUMENTS if several else ARGUMENTS[:1]
        assert [(call.name, json.loads(call.arguments)) for call in found] == expected
        assert pieces[-1].finish == "tool_calls"


def test_call_fits_when_the_model_begins_it_of_its_own(engine: ChatEngine, version: str) -> None:
    """With `auto` and strict functions text is free up to a call, which is held to its schema from there on."""
    marker = written(version)[: len("<｜tool▁calls▁begin｜>" if version != "v32" else "<｜DSML｜function_calls>")]
    delivered = engine.loaded.tokenizer.encode("So: " + marker, add_special_tokens=False)
    asked = [
        ask(engine, number, parallel_tool_calls=False, delivered=[delivered], max_tokens=300) for number in range(4)
    ]
    for outcome in run(engine, asked).values():
        [call] = calls(outcome)
        check([call])
        assert outcome.finish == {0: "tool_calls"}


def test_answer_goes_on_in_another_engine_where_it_was_cut(engine: ChatEngine) -> None:
    """Whatever a client has is not sent again, and nothing is missing."""
    asked = ask(engine, 3, tool_choice="required")
    whole = run(engine, [asked])[3]
    for border in range(1, len(whole.deltas), 3):
        before = whole.deltas[:border]
        delivered = [token for delta in before for token in delta.tokens]
        rest = run(engine, [msgspec.structs.replace(asked, delivered=[delivered])])[3]
        pieces = [*before, *rest.deltas]
        assert joined_calls(call for delta in pieces for call in delta.calls) == calls(whole)


def render(engine: ChatEngine, *messages: dict[str, Any], tools: Any = TOOLS, **template: Any) -> str:
    prompt = ChatPrompt(msgspec.json.encode(messages), msgspec.json.encode(tools) if tools else None, template)
    return engine.preprocessor.prompter.render_chat(prompt)


def history() -> list[dict[str, Any]]:
    made = [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": given}}
        for number, (name, given) in enumerate(ARGUMENTS)
    ]
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": made},
        {"role": "tool", "tool_call_id": "c0", "content": "5 degrees"},
        {"role": "tool", "tool_call_id": "c1", "content": "noted"},
    ]


@pytest.mark.parametrize("version", ["v32"], indirect=True)
@pytest.mark.parametrize("thinking", [True, False])
def test_history_of_v32_holds_tools_calls_and_results(engine: ChatEngine, thinking: bool) -> None:
    """Its program writes tools into system messages alone, and reads arguments as text."""
    text = render(engine, *history(), enable_thinking=thinking, reasoning_effort="high")
    assert text.count('{"name": "get_weather"') == 1
    assert written("v32") in text
    assert "<result>5 degrees</result>\n<result>noted</result>" in text
    assert text.endswith("<think>" if thinking else "</think>")
    described = render(engine, {"role": "system", "content": "Be brief."}, *history())
    assert described.count('{"name": "get_weather"') == 1
    assert "Be brief." in described


@pytest.mark.parametrize("version", ["v32"], indirect=True)
@pytest.mark.parametrize("thinking", [True, False])
def test_last_answer_without_a_thought_is_shown_by_v32(engine: ChatEngine, thinking: bool) -> None:
    """Its program wants one behind the last question."""
    text = render(
        engine, {"role": "user", "content": "?"}, {"role": "assistant", "content": "Hi"}, enable_thinking=thinking
    )
    assert text.endswith("<think>\n</think>Hi<｜end▁of▁sentence｜>" if thinking else "</think>Hi<｜end▁of▁sentence｜>")


@pytest.mark.parametrize("version", ["v32"], indirect=True)
def test_program_of_v32_says_what_it_refuses(engine: ChatEngine) -> None:
    """As templates do: it is the messages' fault, and none of the engine's."""
    with pytest.raises(ValueError, match=r"tool output|Invalid messages"):
        engine.loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}, {"role": "tool", "tool_call_id": "c", "content": "x"}], tokenize=False
        )


@pytest.mark.parametrize("version", ["v32"], indirect=True)
def test_result_without_its_call_is_words_of_the_user_on_v32(engine: ChatEngine) -> None:
    """Its program refuses one; what it says is no failure of the engine."""
    text = render(engine, {"role": "user", "content": "?"}, {"role": "tool", "tool_call_id": "c", "content": "x"})
    assert "<｜User｜>?" in text
    assert "<tool_response>\nx\n</tool_response>" in text


@pytest.mark.parametrize("version", ["v3", "v31"], indirect=True)
def test_history_of_calls_is_what_the_model_writes(engine: ChatEngine, version: str) -> None:
    """The rebuilt templates and the parsers mean the same."""
    assert written(version).replace("\n<｜tool▁call▁begin｜>", "<｜tool▁call▁begin｜>") in render(engine, *history())
