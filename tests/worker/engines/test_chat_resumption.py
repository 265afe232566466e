"""A job whose worker died goes on in another engine, as if nothing had been."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protocol.errors import Code, JobError
from protocol.messages import Accepted, Done, TextPrompt, TokenizeJob, TokenPrompt, Tokens
from protocol.parts import joined_calls
from tests.support.engine_runs import Outcome, chat, job, run
from worker.engines.chat.engine import ChatEngine

EngineOf = Callable[..., ChatEngine]
PROMPT = TokenPrompt(list(range(100, 140)))
GREEDY = {"ignore_eos": True}
SEEDED = {"ignore_eos": True, "temperature": 0.9, "top_p": 0.95, "seed": 77}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def engine(engine_of: EngineOf) -> Iterator[ChatEngine]:
    """A small one without a prefix cache, idle."""
    engine = engine_of("qwen3", prefix_cache_bytes=0)
    yield engine
    assert not engine.busy


def cut_at(outcome: Outcome, least: int) -> tuple[list[int], str, str]:
    """Tokens, text and reasoning of an answer's first deltas, up to at least so many tokens."""
    tokens: list[int] = []
    text = reasoning = ""
    for delta in outcome.deltas:
        if len(tokens) >= least:
            break
        tokens += delta.tokens
        text += delta.text
        reasoning += delta.reasoning
    return tokens, text, reasoning


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, {**SEEDED, "repetition_penalty": 1.3, "presence_penalty": 0.7}])
@pytest.mark.parametrize("least", [1, 17, 32])
@pytest.mark.parametrize("prompt", [PROMPT, chat("Tell me a story"), TextPrompt("Grüße: ")])
def test_resumed_job_goes_on_as_if_undisturbed(
    engine: ChatEngine, prompt: Any, least: int, sampling: dict[str, Any]
) -> None:
    """From its first tokens on, the same tokens, the same text, the same end: nothing twice, nothing missing."""
    whole = run(engine, [job(1, prompt, max_tokens=64, sampling=sampling)])[1]
    tokens, text, reasoning = cut_at(whole, least)
    assert least <= len(tokens) < 64
    resumed_job = job(1, prompt, max_tokens=64, sampling=sampling, delivered=[tokens])
    crowd = [job(i, TokenPrompt([30 + i] * i), max_tokens=70, sampling=SEEDED) for i in (2, 5)]
    rest = run(engine, [resumed_job, *crowd])[1]
    assert tokens + rest.tokens[0] == whole.tokens[0]
    assert text + rest.text[0] == whole.text[0]
    assert reasoning + rest.reasoning[0] == whole.reasoning[0]
    assert rest.finish == whole.finish
    assert rest.usage is not None
    assert whole.usage is not None
    assert rest.usage.completion_tokens == whole.usage.completion_tokens
    assert rest.usage.prompt_tokens == whole.usage.prompt_tokens


def test_choices_resume_each_behind_its_own_tokens(engine: ChatEngine) -> None:
    """Choices that came unequally far all go on as they would have."""
    whole = run(engine, [job(1, PROMPT, max_tokens=20, n=3, sampling=SEEDED)])[1]
    delivered = [whole.tokens[0][:5], [], whole.tokens[2][:19]]
    rest = run(engine, [job(1, PROMPT, max_tokens=20, n=3, sampling=SEEDED, delivered=delivered)])[1]
    assert {choice: delivered[choice] + rest.tokens[choice] for choice in range(3)} == whole.tokens


def test_resumption_that_lacks_a_choice_is_refused(engine: ChatEngine) -> None:
    """It must not end the process that it was meant to survive."""
    with pytest.raises(JobError) as caught:
        engine.prepare(job(1, PROMPT, n=2, delivered=[[1]]))
    assert caught.value.code == Code.INVALID_REQUEST


def ends(engine: ChatEngine) -> dict[str, dict[str, Any]]:
    """Fields of jobs that end for each reason that there is."""
    free = run(engine, [job(1, PROMPT, max_tokens=30, sampling=GREEDY)])[1]
    end = next(iter(engine.preprocessor.eos))
    return {
        "length": {"max_tokens": 12, "sampling": GREEDY},
        "stop string": {"max_tokens": 30, "sampling": GREEDY, "stop": [free.text[0].strip()[6:9]]},
        "end token": {"max_tokens": 30, "sampling": {"logit_bias": {end: 8.0}, "temperature": 1.5, "seed": 3}},
    }


@pytest.mark.parametrize("reason", ["length", "stop string", "end token"])
def test_finished_choice_is_left_alone_when_its_job_is_resumed(engine: ChatEngine, reason: str) -> None:
    """What its client has all of gets no token more, and counts as it would have."""
    fields = ends(engine)[reason]
    whole = run(engine, [job(1, PROMPT, n=2, **fields)])[1]
    assert set(whole.finish) == {0, 1}
    for half in (0, 1):
        delivered = [whole.tokens[choice] if choice == half else [] for choice in (0, 1)]
        rest = run(engine, [job(1, PROMPT, n=2, delivered=delivered, **fields)])[1]
        assert rest.tokens == {1 - half: whole.tokens[1 - half]}
        assert rest.finish == {1 - half: whole.finish[1 - half]}
        assert counts(rest) == counts(whole)


@pytest.mark.parametrize("reason", ["length", "stop string", "end token"])
def test_finished_job_ends_at_once_when_only_its_end_was_lost(engine: ChatEngine, reason: str) -> None:
    """Nothing is computed for it."""
    fields = ends(engine)[reason]
    whole = run(engine, [job(1, PROMPT, **fields)])[1]
    messages = engine.admit(engine.prepare(job(1, PROMPT, delivered=[whole.tokens[0]], **fields)))
    assert [type(message) for message in messages] == [Accepted, Done]
    assert isinstance(messages[1], Done)
    assert messages[1].usage.completion_tokens == len(whole.tokens[0])
    assert min(messages[1].usage.prefill_s, messages[1].usage.decode_s) >= 0
    assert (engine.busy, engine.cancel(1)) == (False, False)


def test_usage_is_that_of_the_undisturbed_run_when_tokens_were_thoughts(engine: ChatEngine) -> None:
    """Reasoning that the client already has counts as reasoning."""
    tokenizer = engine.loaded.tokenizer
    think = [*tokenizer.encode("<think>", add_special_tokens=False), 40, 41, 42]
    rest = run(engine, [job(1, chat("hm"), max_tokens=8, sampling=GREEDY, delivered=[think])])[1]
    assert rest.usage is not None
    assert rest.usage.completion_tokens == 8
    assert rest.usage.reasoning_tokens >= 3


def test_cached_tokens_stay_within_the_prompt_when_a_job_is_resumed(engine_of: EngineOf) -> None:
    """A prefix cache may know the delivered tokens too; they are no part of the prompt."""
    engine = engine_of("qwen3", prefix_cache_bytes=1 << 26, max_concurrency=3)
    whole = run(engine, [job(1, PROMPT, max_tokens=40, sampling=GREEDY)])[1]
    rest = run(engine, [job(2, PROMPT, max_tokens=40, sampling=GREEDY, delivered=[whole.tokens[0][:30]])])[2]
    assert whole.tokens[0][30:] == rest.tokens[0]
    assert rest.usage is not None
    assert 0 < rest.usage.cached_tokens <= rest.usage.prompt_tokens == 40


def test_logprobs_of_new_tokens_only_come_when_a_job_is_resumed(engine: ChatEngine) -> None:
    """The client has the others."""
    whole = run(engine, [job(1, PROMPT, max_tokens=10, logprobs=2, sampling=GREEDY)])[1]
    entries = [entry for delta in whole.deltas for entry in delta.logprobs]
    rest = run(engine, [job(1, PROMPT, max_tokens=10, logprobs=2, sampling=GREEDY, delivered=[whole.tokens[0][:6]])])[1]
    again = [entry for delta in rest.deltas for entry in delta.logprobs]
    assert [entry.token for entry in again] == [entry.token for entry in entries[-len(again) :]]
    assert len(again) == len(rest.tokens[0]) == 4
    assert [entry.logprob for entry in again] == pytest.approx([entry.logprob for entry in entries[6:]], abs=1e-4)


def test_echo_comes_once_when_it_is_all_that_was_sent(engine: ChatEngine) -> None:
    """Lists of no tokens: the client has the echo and nothing behind it."""
    prompt = TextPrompt("Echo, grüß dich")
    plain = run(engine, [job(1, prompt, max_tokens=6, n=2, sampling=SEEDED)])[1]
    rest = run(engine, [job(1, prompt, max_tokens=6, n=2, sampling=SEEDED, echo=True, delivered=[[], []])])[1]
    assert rest.text == plain.text


def test_tool_calls_and_half_characters_survive_when_a_job_is_cut_anywhere(engine: ChatEngine) -> None:
    """Whatever the cut goes through, both halves together say what the whole says, with the same call ids."""
    said = 'Grüße 🦊! <tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    found = engine.prepare(TokenizeJob(1, 0, TextPrompt(said, add_special_tokens=False)))
    assert isinstance(found, Tokens)
    offered = chat("What is the weather?", tools=[WEATHER])

    def pieces(delivered: list[int], fed: list[int], *, finish: bool) -> tuple[str, list[Any], str | None]:
        text = engine.prepare(job(1, offered, delivered=[delivered] if delivered else [])).texts[0]
        parts = []
        for token in fed:
            text.feed_token(token)
            parts.append(text.take_pieces())
        parts.append(text.finish_text("stop") if finish else None)
        took = [part for part in parts if part is not None]
        calls = joined_calls(call for part in took for call in part.calls)
        return "".join(part.text for part in took), calls, took[-1].finish if took else None

    whole = pieces([], found.tokens, finish=True)
    assert len(whole[1]) == 1
    assert whole[2] == "tool_calls"
    for cut in range(1, len(found.tokens)):
        text, calls, _ = pieces([], found.tokens[:cut], finish=False)
        rest = pieces(found.tokens[:cut], found.tokens[cut:], finish=True)
        assert (text + rest[0], joined_calls(calls + rest[1]), rest[2]) == whole


def counts(outcome: Outcome) -> tuple[int, int, int]:
    """What a job is charged for."""
    assert outcome.usage is not None
    return outcome.usage.prompt_tokens, outcome.usage.completion_tokens, outcome.usage.reasoning_tokens
