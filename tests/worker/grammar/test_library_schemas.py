"""Schemas that pydantic and zod write for their common types: all are compiled, and answers are what the types read."""

import json
from typing import Any

import jsonschema
import pydantic
import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from protocol.messages import Grammar
from protocol.schemas.enforceable import make_enforceable
from tests.support.engine_runs import chat, job, run
from tests.support.library_schemas import TYPES, pydantic_schemas, zod_schemas
from worker.engines.chat.engine import ChatEngine
from worker.grammar.refusals import name_refusal
from worker.grammar.specs import schema_grammar

pytestmark = pytest.mark.mlx

LEFT = {
    "set", "frozenset", "set of enum", "pattern", "any network", "whole",
}  # fmt: skip
"""Types of pydantic's of which something is left to the model: that items are unique, above all."""
DRAWN = (
    "dict of enum", "dict of literal", "dict of short", "tagged union", "list of tagged", "union of models", "tree",
    "set of enum", "decimal", "uuid4", "network", "any address", "multiple", "bounds", "literal", "timedelta", "whole",
    "constrained", "dict of date",
)  # fmt: skip
"""Types whose answers come to an end by themselves, mostly."""


@pytest.fixture(scope="module")
def matcher_tokenizer(tokenizer: Any) -> LLTokenizer:
    """The tiny model's, as grammars take it."""
    return from_tokenizer(tokenizer._tokenizer)


def refusals(schemas: dict[str, dict[str, Any]], tokenizer: LLTokenizer) -> dict[str, str]:
    """Return what is said of schemas that can't be compiled."""
    found = {}
    for name, schema in schemas.items():
        made = LLMatcher(tokenizer, schema_grammar(make_enforceable(schema).schema), log_level=0)
        if made.is_error():
            found[name] = made.get_error()
    return found


def test_schema_is_compiled_when_pydantic_wrote_it(matcher_tokenizer: LLTokenizer) -> None:
    """Of each common type, read and written; what is left to the model is little, and known here."""
    schemas = pydantic_schemas()
    assert refusals(schemas, matcher_tokenizer) == {}
    assert {name.split(",")[0] for name, schema in schemas.items() if make_enforceable(schema).left} == LEFT


def test_schema_is_compiled_when_zod_wrote_it(matcher_tokenizer: LLTokenizer) -> None:
    """Of each common type, in three drafts; nothing is left to the model, so they pass under `strict` as well."""
    schemas = zod_schemas()
    assert refusals(schemas, matcher_tokenizer) == {}
    assert {name: left for name, schema in schemas.items() if (left := make_enforceable(schema).left)} == {}


def test_answer_is_read_by_its_type_when_the_model_draws_at_random(engine: ChatEngine) -> None:
    """Pydantic reads what a model that knows no JSON writes; one that was cut off says so."""
    schemas = {name: pydantic.TypeAdapter(TYPES[name]).json_schema() for name in DRAWN}
    jobs = [
        job(
            number,
            chat(f"number {number}", enable_thinking=False),
            sampling={"temperature": 1.0},
            max_tokens=700,
            grammar=Grammar("json_schema", json.dumps(schema), "where"),
        )
        for number, schema in enumerate(schemas.values())
    ]
    ended = 0
    for number, outcome in run(engine, jobs).items():
        name = DRAWN[number]
        assert outcome.failed is None, name
        if outcome.finish[0] == "length":
            continue
        ended += 1
        value = json.loads(outcome.text[0])
        lowered = make_enforceable(schemas[name]).schema
        jsonschema.validate(value, lowered)
        if name not in ("decimal", "dict of date", "timedelta", "network", "whole"):
            # Texts of these may say a date or a number that there is not.
            pydantic.TypeAdapter(TYPES[name]).validate_json(outcome.text[0])
    assert ended >= len(DRAWN) * 2 // 3


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate", "no grammar can say all"),
        ('Unimplemented keys: ["not", "if"]', 'no grammar can say ["not", "if"]'),
        ("Unsatisfiable schema: minimum (5) is greater than maximum (1)", "no answer would fit it (minimum (5)"),
        ("Pointer '/$defs/N' does not exist", "it names '/$defs/N', which is not there"),
        ("lookarounds not supported yet; WordUnicode in regex", "an expression in it can't be followed: it looks"),
        ("regex parse error:\n  (\n  ^\nerror: unclosed group", "can't be followed: unclosed group"),
        ("at 1(8): unknown name: \"x\"", "unknown name"),
    ],
)  # fmt: skip
def test_hint_of_a_library_is_not_passed_on(said: str, told: str) -> None:
    """Callers can't set its options; what concerns their own text is told."""
    assert told in name_refusal(said)
    assert "Enable" not in name_refusal(said)
