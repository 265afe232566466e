"""What a grammar does to an answer, together with everything else that a request may ask for."""

import json
import re
from typing import Any

import pytest

from protocol.errors import Code, JobError
from protocol.messages import GenerateJob, Grammar, TextPrompt
from tests.support.engine_runs import Outcome, chat, job, run
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA), "response_format.json_schema.schema")
LIST = Grammar("json_schema", '{"type":"array","items":{"type":"integer"},"minItems":200}', "p")


def ask(number: int = 1, grammar: Grammar = JSON, *, think: bool = False, **fields: Any) -> GenerateJob:
    sampling = {"temperature": 1.0, **fields.pop("sampling", {})}
    prompt = fields.pop("prompt", None) or chat(f"hello {number}", enable_thinking=think)
    return job(number, prompt, sampling=sampling, **{"max_tokens": 600, "grammar": grammar, **fields})


def only(engine: ChatEngine, asked: GenerateJob) -> Outcome:
    return run(engine, [asked])[asked.job]


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", r"[a-c]{3}/\d+", "p"), r"[a-c]{3}/\d+"),
        (Grammar("regex", "a\\/b|c\nd", "p"), r"a/b|c\nd"),
        (Grammar("choice", '["yes", "no \\"x\\"", "ünï\\n"]', "p"), 'yes|no "x"|ünï\\n'),
        (Grammar("grammar", 'start: "a" /[0-9]{2}/', "p"), r"a[0-9]{2}"),
        (Grammar("grammar", 'root ::= "b" [0-9] "c"', "p"), r"b[0-9]c"),
    ],
)
@pytest.mark.parametrize("prompt", [None, TextPrompt("once")])
def test_answer_is_in_the_language_when_one_is_given(
    engine: ChatEngine, grammar: Grammar, pattern: str, prompt: TextPrompt | None
) -> None:
    """Expressions, choices, Lark and GBNF hold for chats and for plain completions."""
    outcome = only(engine, ask(grammar=grammar, prompt=prompt))
    assert outcome.finish == {0: "stop"}
    assert re.fullmatch(pattern, outcome.text[0]), outcome.text


def test_answer_is_an_object_when_any_will_do(engine: ChatEngine) -> None:
    """`json_object`: the answer is a JSON object, or was cut off."""
    outcomes = run(engine, [ask(number, Grammar("json_object"), max_tokens=200) for number in range(6)])
    for outcome in outcomes.values():
        assert outcome.finish[0] == "length" or isinstance(json.loads(outcome.text[0]), dict)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"top_k": 3},
        {"top_p": 0.3},
        {"min_p": 0.5},
        {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 1.0},
        {"logit_bias": dict.fromkeys(range(200, 300), 100.0)},
        {"temperature": 2.0, "ignore_eos": True},
    ],
    ids=str,
)
def test_grammar_holds_when_sampling_would_rather_not(engine: ChatEngine, sampling: dict[str, Any]) -> None:
    """The grammar is applied before anything selects, and behind whatever moves the logits."""
    grammar = Grammar("regex", "[a-z]{5,9}[0-9]{3}", "p")
    outcome = only(engine, ask(grammar=grammar, sampling=sampling))
    assert outcome.finish == {0: "stop"}
    assert re.fullmatch("[a-z]{5,9}[0-9]{3}", outcome.text[0])


def test_draws_are_the_same_alone_and_in_a_crowd_when_seeded(engine: ChatEngine) -> None:
    """Neither a neighbour's grammar nor having none changes what a row draws."""
    jobs = [ask(1), ask(2, Grammar("choice", '["yes","no"]', "p")), job(3, "free", max_tokens=40), ask(4, n=3)]
    crowd = run(engine, jobs)
    for one in jobs:
        assert only(engine, one).text == crowd[one.job].text


def test_choices_differ_when_there_are_several(engine: ChatEngine) -> None:
    """Each of `n` answers follows the grammar on its own."""
    outcome = only(engine, ask(n=4))
    values = [json.loads(text) for text in outcome.text.values()]
    assert len(values) == 4
    assert len({value["name"] for value in values}) > 1


@pytest.mark.parametrize("cut", [1, 3, 8])
def test_answer_goes_on_when_it_is_resumed(engine: ChatEngine, cut: int) -> None:
    """Behind the tokens that a client has, the same tokens follow as if nothing had happened."""
    whole = only(engine, ask(5))
    tokens = whole.tokens[0]
    assert len(tokens) > 8
    rest = only(engine, ask(5, delivered=[tokens[:cut]]))
    assert tokens[:cut] + rest.tokens[0] == tokens
    assert rest.finish == {0: "stop"}


def test_log_probabilities_are_the_models_own_when_a_grammar_rules(engine: ChatEngine) -> None:
    """They say what the model thought of a token, not that it had no choice."""
    outcome = only(engine, ask(grammar=Grammar("regex", "abc", "p"), logprobs=3))
    entries = [entry for delta in outcome.deltas for entry in delta.logprobs]
    assert "".join(entry.token for entry in entries) == "abc"
    assert all(entry.logprob < -0.5 for entry in entries)
    assert all(entry.top[0][2] >= entry.logprob for entry in entries)


def test_answer_says_length_when_tokens_run_out(engine: ChatEngine) -> None:
    """An answer that the grammar would have let go on was cut; one that was complete with its last token was not."""
    cut = only(engine, ask(grammar=LIST, max_tokens=20))
    assert cut.finish == {0: "length"}
    assert len(cut.tokens[0]) == 20
    whole = only(engine, ask(6))
    exactly = only(engine, ask(6, max_tokens=len(whole.tokens[0])))
    assert (exactly.finish, exactly.text) == ({0: "stop"}, whole.text)


def test_stop_text_ends_an_answer_when_it_follows_a_grammar(engine: ChatEngine) -> None:
    """A stop text cuts as it does elsewhere: the caller asked for both."""
    outcome = only(engine, ask(stop=['"age']))
    assert outcome.finish == {0: "stop"}
    assert outcome.text[0].lstrip().startswith("{")
    assert '"age' not in outcome.text[0]


def test_echo_comes_first_when_a_completion_follows_a_grammar(engine: ChatEngine) -> None:
    """The prompt is repeated as it is; what follows it is constrained."""
    outcome = only(engine, ask(grammar=Grammar("choice", '["yes","no"]', "p"), prompt=TextPrompt("Well? "), echo=True))
    assert outcome.text[0] in ("Well? yes", "Well? no")


def test_reasoning_is_free_when_the_answer_is_constrained(engine: ChatEngine, tokenizer: Any) -> None:
    """The grammar begins behind the model's own end of reasoning, and an answer can't end before it."""
    end = tokenizer.convert_tokens_to_ids("</think>")
    start = tokenizer.convert_tokens_to_ids("<think>")
    eos = max(tokenizer.eos_token_ids)
    bias = {start: 30.0, end: 30.0, eos: 35.0}
    outcomes = run(engine, [ask(number, think=True, sampling={"logit_bias": bias}) for number in range(4)])
    for outcome in outcomes.values():
        assert outcome.finish == {0: "stop"}
        assert json.loads(outcome.text[0]).keys() == {"name", "age"}
    assert any(outcome.reasoning[0] for outcome in outcomes.values())


def test_thinking_is_left_out_when_it_is_turned_off(engine: ChatEngine, tokenizer: Any) -> None:
    """Where the template has closed the block, the first token belongs to the answer."""
    start = tokenizer.convert_tokens_to_ids("<think>")
    outcome = only(engine, ask(think=False, sampling={"logit_bias": {start: 100.0}}))
    assert outcome.reasoning == {0: ""}
    assert outcome.finish == {0: "stop"}


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("json_schema", '{"type":"obj"}', "where"), "type is 'obj', which is no type of JSON"),
        (Grammar("json_schema", '{"type":"integer","minimum":5,"maximum":1}', "where"), "no answer would fit it"),
        (Grammar("json_schema", '{"enum":[]}', "where"), "no answer would fit it"),
        (Grammar("json_schema", '{"$ref":"#/$defs/x"}', "where"), "names '#/$defs/x', which is not there"),
        (Grammar("json_schema", '{"type":"string","pattern":"("}', "where"), "an expression in it can't be followed"),
        (Grammar("regex", "(", "where"), "unclosed group"),
        (Grammar("regex", "(?=a)b", "where"), "look"),
        (Grammar("grammar", "start: nothing_here", "where"), "nothing_here"),
    ],
    ids=lambda value: value.text if isinstance(value, Grammar) else None,
)
def test_grammar_is_refused_when_it_can_not_be_enforced(engine: ChatEngine, grammar: Grammar, said: str) -> None:
    """What is wrong is said, with the request's own field, and is said again without a second look."""
    for _ in range(2):
        with pytest.raises(JobError) as refused:
            engine.prepare(ask(grammar=grammar))
        assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "where")
        assert said in refused.value.message
        assert not engine.compile_job(ask(grammar=grammar), lambda _: None)
        engine.drop_job(ask(grammar=grammar))


def test_cancelled_row_leaves_no_trace_when_it_followed_a_grammar(engine: ChatEngine) -> None:
    """Its place is free for others: more jobs than there are places, one after the other."""
    for number in range(60):
        engine.admit(engine.prepare(ask(number, LIST)))
        engine.step()
        engine.step()
        engine.cancel(number)
    assert only(engine, ask(99)).finish == {0: "stop"}
