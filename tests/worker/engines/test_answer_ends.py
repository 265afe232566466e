"""What ends an answer, and what does not yet: tokens of the request, `min_tokens`, the room that the context has."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protocol.errors import Code, JobError
from protocol.messages import Accepted, Grammar, TokenPrompt
from tests.support.engine_runs import Outcome, chat, job, prepared, run
from worker.engines.chat.engine import ChatEngine

PROMPT = TokenPrompt(list(range(100, 140)))
SAMPLED = {"temperature": 1.0, "top_p": 0.9, "seed": 5}


@pytest.fixture
def engine(engine_of: Callable[..., ChatEngine]) -> Iterator[ChatEngine]:
    engine = engine_of("qwen3", prefix_cache_bytes=0)
    yield engine
    for number in list(engine.running):
        engine.cancel(number)


def end_of(engine: ChatEngine) -> int:
    return min(engine.preprocessor.eos)


def only(engine: ChatEngine, *, prompt: Any = PROMPT, **fields: Any) -> Outcome:
    return run(engine, [job(1, prompt, **fields)])[1]


@pytest.mark.parametrize("sampling", [{}, SAMPLED])
@pytest.mark.parametrize("least", [1, 2, 7])
def test_end_is_not_chosen_when_the_answer_is_too_short(
    engine: ChatEngine, least: int, sampling: dict[str, Any]
) -> None:
    """With an end that is certain otherwise, an answer has exactly as many tokens as it must, then its end."""
    certain = {**sampling, "logit_bias": {end_of(engine): 100.0}}
    assert len(only(engine, max_tokens=30, sampling=certain).tokens[0]) == 1
    outcome = only(engine, max_tokens=30, sampling={**certain, "min_tokens": least})
    assert [token == end_of(engine) for token in outcome.tokens[0]] == [False] * least + [True]
    assert outcome.finish == {0: "stop"}


def test_rows_end_on_their_own_when_some_of_a_batch_must_go_on(engine: ChatEngine) -> None:
    """Rows beside each other, choices of one job, and rows that join later each have their own least length."""
    certain = {"logit_bias": {end_of(engine): 100.0}}
    jobs = [
        job(number, PROMPT, max_tokens=20, n=1 + number % 2, sampling={**certain, "min_tokens": number})
        for number in range(6)
    ]
    for number, outcome in run(engine, jobs).items():
        assert {len(tokens) for tokens in outcome.tokens.values()} == {number + 1}


def test_least_length_counts_from_the_beginning_when_a_job_is_resumed(engine: ChatEngine) -> None:
    """What an earlier attempt delivered counts."""
    sampling = {"logit_bias": {end_of(engine): 100.0}, "min_tokens": 5}
    whole = only(engine, max_tokens=20, sampling=sampling).tokens[0]
    rest = only(engine, max_tokens=20, sampling=sampling, delivered=[whole[:3]]).tokens[0]
    assert whole[:3] + rest == whole
    assert len(whole) == 6


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_answer_ends_when_a_token_of_the_request_comes(engine: ChatEngine, ignore_eos: bool) -> None:
    """It counts as generated, but has no text; the model's own ends may be ignored all the same."""
    free = only(engine, max_tokens=12, sampling={"ignore_eos": True})
    stop = free.tokens[0][5]
    first = free.tokens[0].index(stop)
    ended = only(engine, max_tokens=12, sampling={"ignore_eos": ignore_eos, "stop_token_ids": [3, stop]})
    assert ended.tokens[0] == free.tokens[0][: first + 1]
    assert ended.finish == {0: "stop"}
    before = only(engine, max_tokens=first, sampling={"ignore_eos": True}) if first else None
    assert ended.text.get(0, "") == (before.text.get(0, "") if before else "")


def test_token_of_the_request_is_not_chosen_when_the_answer_is_too_short(engine: ChatEngine) -> None:
    """`min_tokens` holds for `stop_token_ids` as for the model's own."""
    sampling = {"logit_bias": {7: 100.0}, "stop_token_ids": [7], "min_tokens": 4}
    tokens = only(engine, max_tokens=20, sampling=sampling).tokens[0]
    assert (len(tokens), tokens.index(7)) == (5, 4)


def test_stop_text_is_not_looked_for_when_the_answer_is_too_short(engine: ChatEngine) -> None:
    """One that comes within the first tokens is text; the next one ends the answer."""
    free = only(engine, max_tokens=24, sampling={"ignore_eos": True})
    texts = [delta.text for delta in free.deltas]
    stop = next(text for text in texts[:6] if text.strip())
    first = free.text[0].index(stop)
    sampling = {"ignore_eos": True}
    assert only(engine, max_tokens=24, sampling=sampling, stop=[stop]).text.get(0, "") == free.text[0][:first]
    outcome = only(engine, max_tokens=24, sampling={**sampling, "min_tokens": 8}, stop=[stop])
    early = only(engine, max_tokens=8, sampling=sampling).text[0]
    assert outcome.text[0].startswith(early)
    assert stop in outcome.text[0][: len(early)]
    assert stop not in outcome.text[0][len(early) :]


def test_answer_is_longer_when_a_grammar_would_let_it_end(engine: ChatEngine) -> None:
    """Under a grammar the least length holds as long as the grammar lets anything else through."""
    grammar = Grammar("regex", "a+", "structured_outputs.regex")
    certain = {"logit_bias": {end_of(engine): 100.0}, "min_tokens": 9}
    prompt = chat("hello", enable_thinking=False)
    outcome = only(engine, prompt=prompt, max_tokens=40, grammar=grammar, sampling=certain)
    assert len(outcome.tokens[0]) == 10
    assert set(outcome.text[0]) == {"a"}
    short = Grammar("regex", "aa", "structured_outputs.regex")
    assert only(engine, prompt=prompt, max_tokens=40, grammar=short, sampling=certain).text[0] == "aa"


@pytest.mark.parametrize("asked", [5000, 10**6, 2**31 - 1, None])
def test_answer_ends_with_the_context_when_more_is_asked_for(
    engine_of: Callable[..., ChatEngine], asked: int | None
) -> None:
    """`max_tokens` is a ceiling; what does not fit is not refused, and the answer tells that it was cut."""
    engine = engine_of("qwen3", prefix_cache_bytes=0, context_length=64)
    outcome = run(engine, [job(1, PROMPT, max_tokens=asked, sampling={"ignore_eos": True})])[1]
    assert (len(outcome.tokens[0]), outcome.finish) == (24, {0: "length"})


def test_prompt_is_refused_when_it_leaves_no_room(engine_of: Callable[..., ChatEngine]) -> None:
    """One that fills the context is told so in the words that clients look for."""
    engine = engine_of("qwen3", prefix_cache_bytes=0, context_length=64)
    full = TokenPrompt([5] * 64)
    with pytest.raises(JobError) as caught:
        prepared(engine, job(1, full, max_tokens=1))
    assert (caught.value.code, caught.value.param) == (Code.CONTEXT_LENGTH, "prompt")
    assert caught.value.message.startswith("This model's maximum context length is 64 tokens.")
    assert "64 tokens, which leave no room" in caught.value.message
    assert run(engine, [job(1, TokenPrompt([5] * 63), max_tokens=9)])[1].usage is not None


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"logit_bias": {5: 1.0, 50_000_000: 1.0}}, "logit_bias.50000000"),
        ({"stop_token_ids": [1, 2, 50_000_000]}, "stop_token_ids[2]"),
    ],
)
def test_token_is_named_when_the_model_has_none_such(engine: ChatEngine, sampling: dict[str, Any], param: str) -> None:
    """The error says which of many it is."""
    with pytest.raises(JobError) as caught:
        prepared(engine, job(1, PROMPT, max_tokens=1, sampling=sampling))
    assert (caught.value.code, caught.value.param) == (Code.INVALID_REQUEST, param)


def test_prompt_is_told_when_it_is_asked_for(engine: ChatEngine) -> None:
    """The ids of the prompt come with the job's acceptance, and not without being asked."""
    for wanted, told in ((True, PROMPT.tokens), (False, [])):
        accepted = engine.admit(prepared(engine, job(1, PROMPT, max_tokens=1, tell_prompt=wanted)))[0]
        assert isinstance(accepted, Accepted)
        assert accepted.prompt == told
        assert engine.cancel(1)


def test_log_probabilities_name_ids_when_numbers_are_asked_for(engine: ChatEngine) -> None:
    """As vLLM writes them; the bytes stay those of the text."""
    plain = only(engine, max_tokens=4, logprobs=2, sampling={"ignore_eos": True})
    numbered = only(engine, max_tokens=4, logprobs=2, number_tokens=True, sampling={"ignore_eos": True})
    found = [entry for delta in numbered.deltas for entry in delta.logprobs]
    assert [entry.token for entry in found] == [f"token_id:{token}" for token in plain.tokens[0]]
    assert all(text.startswith("token_id:") for entry in found for text, _, _ in entry.top)
    assert [entry.raw for entry in found] == [entry.raw for delta in plain.deltas for entry in delta.logprobs]
