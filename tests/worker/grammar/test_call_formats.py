"""Every format of calls that can be enforced is, on a model that knows none of them: what it must call, parses."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from mlx_lm import tokenizer_utils
from models import bpe, corpus, tokenizer

from protocol.errors import Code, JobError
from protocol.parts import joined_calls
from tests.support.engine_runs import Outcome, chat, job, run
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine
from worker.grammar.compiling import compilers
from worker.text.tool_calls import deepseek_v3, deepseek_v31, deepseek_v32, llama3
from worker.text.tool_calls.formats import FORMATS, LiteralSyntax

pytestmark = pytest.mark.mlx

CONTROL = (
    "[TOOL_CALLS]", "[ARGS]", "<longcat_tool_call>", "</longcat_tool_call>", "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    "<|open|>", "<|close|>", "<|sep|>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<minimax:tool_call>",
    "</minimax:tool_call>", "</function>", "</atem:function_calls>", "<|tool_call_start|>", "<|tool_list_start|>",
    "<|tool_call>", "<tool_call|>", '<|"|>', "<start_function_call>", "<end_function_call>", "<escape>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    "｜DSML｜",
)  # fmt: skip
"""What tokenizers of these models have as single tokens."""
TRIP: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "New York"]},
        "note": {"type": "string", "minLength": 1, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
        "price": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 9}, {"type": "null"}]},
        "window": {"type": "boolean"},
    },
    "required": ["city", "note", "days"],
    "additionalProperties": False,
}
ROUTE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}, "minItems": 1, "maxItems": 2},
        "by": {"type": "object", "properties": {"train": {"type": "boolean"}}, "required": ["train"],
               "additionalProperties": False},
    },
    "required": ["stops", "by"],
    "additionalProperties": False,
    "$defs": {"stop": {"type": "string", "enum": ["a b", 'c"d', "e"]}},
}  # fmt: skip
SIGNS = {
    "llama3": llama3.SIGN,
    "deepseek_v3": deepseek_v31.SIGN + deepseek_v3.SIGN,
    "deepseek_v31": deepseek_v31.SIGN,
    "deepseek_v32": deepseek_v32.SIGN,
}
BLOCKS = [name for name, form in FORMATS.items() if not form.messages]
"""Formats whose calls stand between markers; for the other one see `tests/worker/engines/test_gpt_oss.py`."""
SCHEMAS = {"book_trip": TRIP, "plan_route": ROUTE}


def tool(name: str, schema: dict[str, Any], *, strict: bool = True) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, "strict": strict}}


@pytest.fixture(scope="module")
def _folders(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a parser to the folder of a model that has it."""
    folder = tmp_path_factory.mktemp("formats") / "qwen3"
    shutil.copytree(model_folder("qwen3"), folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    control = (*bpe.CONTROL, *CONTROL)
    trained = bpe.train(corpus.lines(0, 300), split=tokenizer._SPLIT, control=control, vocab_size=size)
    trained.save(str(folder / "tokenizer.json"))
    ends = [trained.token_to_id(text) for text in bpe.ENDS]
    for name in ("config.json", "generation_config.json"):
        described = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**described, "eos_token_id": ends}))

    def make(parser: str) -> Path:
        # Ours are no parsers of mlx-lm's: a template is what they are known by.
        found = folder if parser != "llama3" else model_folder("qwen3")
        made = tmp_path_factory.mktemp(parser) / "model"
        shutil.copytree(found, made)
        settings = json.loads((made / "tokenizer_config.json").read_text())
        if parser in SIGNS:
            template = (made / "chat_template.jinja").read_text().replace("<tool_call>", "")
            (made / "chat_template.jinja").write_text(f"{{# {SIGNS[parser]} #}}{template}")
        else:
            (made / "tokenizer_config.json").write_text(json.dumps({**settings, "tool_parser_type": parser}))
        return made

    return make


@pytest.fixture(scope="module")
def parser(request: pytest.FixtureRequest) -> str:
    """The parser that the test asks for; all tests of one come together."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def _loaded(parser: str, _folders: Callable[[str], Path]) -> Iterator[tuple[ChatEngine, Any]]:
    """An engine of a model with the parser, and its tokenizer."""
    folder = _folders(parser)
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="any", prefix_cache_bytes=0))
    engine.load()
    yield engine, tokenizer_utils.load(folder)
    engine.close(0.0)


@pytest.fixture
def engine(_loaded: tuple[ChatEngine, Any]) -> Iterator[ChatEngine]:
    """Idle before and after."""
    yield _loaded[0]
    while _loaded[0].busy:
        _loaded[0].step()


@pytest.fixture
def known(_loaded: tuple[ChatEngine, Any]) -> Any:
    """The engine's tokenizer."""
    return _loaded[1]


def of_format(*parsers: str) -> pytest.MarkDecorator:
    """Have a test run with an engine of each parser."""
    return pytest.mark.parametrize("parser", parsers, indirect=True)


def bias_towards(known: Any, characters: str) -> dict[int, float]:
    """A bias towards all tokens that hold one of these characters."""
    texts = {number: known.decode([number]) for number in range(len(known.get_vocab()))}
    return {number: 6.0 for number, text in texts.items() if any(one in text for one in characters)}


def ask(number: int, tools: list[dict[str, Any]], **fields: Any) -> Any:
    prompt = chat(f"go {number}", tools=tools, enable_thinking=False)
    fields = {"max_tokens": 500, "tool_choice": "required", "sampling": {"temperature": 1.0}, **fields}
    return job(number, prompt, **fields)


def calls(outcome: Outcome) -> list[Any]:
    assert outcome.failed is None, outcome.failed
    return joined_calls(call for delta in outcome.deltas for call in delta.calls)


@of_format(*BLOCKS)
def test_forced_call_parses_and_fits_whatever_the_format(engine: ChatEngine, parser: str) -> None:
    """One call of a strict tool, drawn at random: nothing but a call, with arguments that fit its schema."""
    names = ["book_trip"] if parser == "function_gemma" else list(SCHEMAS)
    tools = [tool(name, SCHEMAS[name]) for name in names]
    wanted = [names[number % len(names)] for number in range(6)]
    jobs = [ask(at, tools, parallel_tool_calls=False, tool_names=[name]) for at, name in enumerate(wanted)]
    outcomes = run(engine, jobs)
    for name, outcome in zip(wanted, outcomes.values(), strict=True):
        [call] = calls(outcome)
        assert call.name == name
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[name])
        assert (outcome.finish, outcome.text) == ({0: "tool_calls"}, {0: ""})
        pieces = [one for delta in outcome.deltas for one in delta.calls]
        # JSON comes piece by piece, typed literals do, too; else the name comes at once, the arguments at the end.
        form = FORMATS[parser]
        if form.json_head is not None or (isinstance(form.syntax, LiteralSyntax) and not form.untyped):
            assert len(pieces) > (3 if name == "book_trip" else 1)
        else:
            assert [(piece.name, bool(piece.arguments)) for piece in pieces] == [(name, False), ("", True)]


@of_format("qwen3_coder", "pythonic")
def test_call_goes_on_in_another_engine_where_it_was_cut(engine: ChatEngine) -> None:
    """Pieces of a call that a client has are not sent again, and none is lost."""
    asked = ask(3, [tool("book_trip", TRIP)], parallel_tool_calls=False)
    whole = run(engine, [asked])[3]
    for border in range(1, len(whole.deltas), 4):
        before = whole.deltas[:border]
        tokens = [token for delta in before for token in delta.tokens]
        rest = run(engine, [msgspec.structs.replace(asked, delivered=[tokens])])[3]
        pieces = (call for delta in [*before, *rest.deltas] for call in delta.calls)
        assert (joined_calls(pieces), rest.finish) == (calls(whole), whole.finish)


@of_format(*BLOCKS)
def test_several_calls_parse_whatever_the_format(engine: ChatEngine, known: Any, parser: str) -> None:
    """As many as the model likes: all parse."""
    none: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    one = {**none, "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["x"]}
    tools = [tool("f", one, strict=False), tool("g", none, strict=False)]
    # Left to chance, calls would follow calls until tokens run out.
    ends = [*known.eos_token_ids, *known.encode(FORMATS[parser].end, add_special_tokens=False)[:1]]
    sampling = {"temperature": 1.0, "logit_bias": dict.fromkeys(ends, 5.0)}
    outcomes = run(engine, [ask(number, tools, max_tokens=150, sampling=sampling) for number in range(5)])
    found = [call for outcome in outcomes.values() for call in calls(outcome) if outcome.finish[0] == "tool_calls"]
    assert found
    for call in found:
        assert call.name in ("f", "g")
        assert isinstance(json.loads(call.arguments), dict)
    assert {outcome.finish[0] for outcome in outcomes.values()} <= {"tool_calls", "length"}


@pytest.mark.parametrize(
    ("parser", "characters"),
    [("function_gemma", "}"), ("gemma4", '}"'), ("pythonic", ")'\""), ("qwen3_coder", "<\n")],
    indirect=["parser"],
)
def test_forced_call_parses_when_the_model_likes_to_end_it(engine: ChatEngine, known: Any, characters: str) -> None:
    """What ends a call for its parser can't stand within a string, however much a model wants it there."""
    text = {"type": "string", "minLength": 20, "maxLength": 60}
    note = {"type": "object", "properties": {"note": text}, "required": ["note"]}
    sampling = {"temperature": 1.0, "logit_bias": bias_towards(known, characters)}
    jobs = [ask(at, [tool("keep", note)], parallel_tool_calls=False, sampling=sampling) for at in range(4)]
    for outcome in run(engine, jobs).values():
        (call,) = calls(outcome)
        assert outcome.finish == {0: "tool_calls"}
        assert len(json.loads(call.arguments)["note"]) >= 20


@of_format("qwen3_coder", "gemma4", "function_gemma", "glm47")
def test_strict_schema_is_refused_by_name_when_the_format_has_no_place_for_it(engine: ChatEngine) -> None:
    """What can't be said in a notation is refused where it was promised, and left out where it was not."""
    odd = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^a+$"}}, "required": ["x"]}
    with pytest.raises(JobError) as refused:
        engine.prepare(ask(1, [tool("f", TRIP), tool("g", odd)]))
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "tools[1].function.parameters")
    limited = {**odd, "properties": {"x": {**odd["properties"]["x"], "maxLength": 5}}}
    outcome = run(engine, [ask(1, [tool("g", limited, strict=False)], parallel_tool_calls=False)])[1]
    [call] = calls(outcome)
    assert isinstance(json.loads(call.arguments), dict)


@of_format("qwen3_coder")
def test_call_in_free_text_is_constrained_from_its_marker_on(engine: ChatEngine, known: Any) -> None:
    """With `auto` and a strict tool, in a notation of tags as in JSON."""
    begin = known.get_vocab()["<tool_call>"]
    sampling = {"temperature": 1.0, "logit_bias": {begin: 9.0}}
    tools = [tool("book_trip", TRIP)]
    asked = [ask(number, tools, tool_choice="auto", sampling=sampling, max_tokens=300) for number in range(4)]
    outcomes = run(engine, asked).values()
    # An answer that was cut may end within a call.
    found = [call for one in outcomes for call in calls(one)[: -1 if one.finish[0] == "length" else None]]
    assert found
    for call in found:
        jsonschema.validate(json.loads(call.arguments), TRIP)


@of_format("llama3")
def test_answer_or_call_when_llama_may_give_either(engine: ChatEngine, known: Any) -> None:
    """Its calls are objects without a marker; an answer that begins like one stays an answer."""
    asked = ask(1, [tool("f", {"type": "object"}, strict=False)], tool_choice="auto")
    [text] = engine.prepare(asked).texts
    for token in known.encode('{"name": "Ada", "parameters": {}} is who'):
        text.feed_token(token)
    piece = text.finish_text("stop")
    assert (piece.text, piece.calls) == ('{"name": "Ada", "parameters": {}} is who', [])


@of_format("gemma4")
def test_schema_that_is_endless_to_write_down_takes_no_more_than_its_time(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema of a few hundred bytes may stand for millions of rules: not even these are written by the engine."""
    monkeypatch.setattr(compilers, "COMPILE_S", 0.5)
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(9):
        schema = {"type": ["object"] * 20, "properties": {"a": schema}, "required": ["a"]}
    with pytest.raises(JobError) as refused:
        engine.prepare(ask(1, [tool("endless", {"type": "object", "properties": {"a": schema}})], tenant="endless"))
    assert refused.value.code in (Code.INVALID_REQUEST, Code.UNSUPPORTED)
    loose = ask(1, [tool("endless", {"type": "object", "properties": {"a": schema}}, strict=False)], tenant="endless")
    assert engine.prepare(loose).constraints
