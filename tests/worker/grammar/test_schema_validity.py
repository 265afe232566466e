"""Answers that are held to a JSON schema fit it, whatever the model would rather have said."""

import json
import re
from typing import Any

import jsonschema
import pytest

from protocol.messages import GenerateJob, Grammar
from tests.support.engine_runs import chat, job, run
from tests.support.schema_corpus import corpus
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

CHECKER = jsonschema.FormatChecker()
# jsonschema takes a bare HH:MM:SS for a time; RFC 3339 wants an offset, and knows leap seconds.
CHECKER.checkers.pop("time", None)
TIME = re.compile(r"[0-2]\d:[0-5]\d:[0-6]\d(\.\d+)?(Z|z|[+-][0-2]\d:[0-5]\d)")
CUTTABLE = ("format email", "format uri")
"""Nothing bounds their length."""


def asked(number: int, schema: dict[str, Any], **fields: Any) -> GenerateJob:
    grammar = Grammar("json_schema", json.dumps(schema), "response_format.json_schema.schema")
    prompt = chat(f"number {number}", enable_thinking=False)
    return job(number, prompt, sampling={"temperature": 1.0}, max_tokens=1200, grammar=grammar, **fields)


def check(name: str, schema: dict[str, Any], text: str) -> None:
    value = json.loads(text)
    jsonschema.validate(value, schema, format_checker=CHECKER)
    if name == "format time":
        assert TIME.fullmatch(value["value"])


@pytest.mark.parametrize("part", [0, 3, 4, *(pytest.param(part, marks=pytest.mark.long) for part in (1, 2, 5))])
def test_answer_fits_its_schema_when_the_model_draws_at_random(engine: ChatEngine, part: int) -> None:
    """At temperature 1, every answer is JSON that its schema accepts; one that was cut off says so."""
    schemas = [(name, schema) for name, schema in corpus().items()][part::6]
    outcomes = run(engine, [asked(number, schema) for number, (_, schema) in enumerate(schemas)])
    for number, (name, schema) in enumerate(schemas):
        outcome = outcomes[number]
        assert outcome.failed is None, name
        if outcome.finish[0] == "length" and name in CUTTABLE:
            continue
        assert outcome.finish[0] == "stop", (name, outcome.text[0][:200])
        check(name, schema, outcome.text[0])
