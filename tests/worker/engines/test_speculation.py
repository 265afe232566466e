"""A draft model decides how fast answers come, never what they are."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest

from protocol.messages import GenerateJob, Grammar, TextPrompt, TokenPrompt
from tests.support.engine_runs import Outcome, job, note, run
from tests.support.tiny_adapters import make_adapter
from tests.support.tiny_drafts import make_draft
from worker.batch import caches
from worker.batch.speculation.group import DraftModelState, SpeculativeGroup, fitted
from worker.batch.speculation.policy import CHUNK, TRIAL
from worker.config import WorkerConfig
from worker.engines.base import EngineLoadError
from worker.engines.chat.engine import ChatEngine

PROMPT = TokenPrompt(list(range(100, 140)))
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "nucleus": {"temperature": 0.6, "top_p": 0.95, "seed": 77},
    "flat": {"temperature": 2.0, "top_p": 0.999, "seed": 3},
    "whole": {"temperature": 0.7, "seed": 5},
    "narrow": {"temperature": 0.8, "top_k": 20, "min_p": 0.02, "seed": 6},
    "penalised": {"repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": 0.2},
    "penalised and drawn": {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.2, "seed": 9},
    "biased": {"temperature": 0.7, "logit_bias": {7: 4.0, 300: -100.0}, "seed": 8},
}


def loaded(folder: Path, **config: Any) -> ChatEngine:
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="large", **config))
    engine.load()
    return engine


@pytest.fixture(scope="module")
def draft_folder(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_draft(model_folder("qwen3"), tmp_path_factory.mktemp("drafts") / "small")


@pytest.fixture(scope="module")
def plain(model_folder: Callable[[str], Path]) -> ChatEngine:
    """What answers are without a draft."""
    return loaded(model_folder("qwen3"), prefix_cache_bytes=0)


@pytest.fixture(scope="module")
def _speculation(model_folder: Callable[[str], Path], draft_folder: Path) -> ChatEngine:
    return loaded(model_folder("qwen3"), draft_model=str(draft_folder), draft_tokens=4)


@pytest.fixture
def engine(_speculation: ChatEngine) -> Iterator[ChatEngine]:
    """One that drafts whatever that costs here, where both models are tiny; idle."""
    always(_speculation)
    yield _speculation
    assert not _speculation.busy


def always(engine: ChatEngine, worth: float = 0.0) -> ChatEngine:
    assert engine.speculation is not None
    assert engine.speculation.break_even > 0
    engine.speculation.break_even = worth or 1e-9
    return engine


def counts(engine: ChatEngine) -> tuple[int, int]:
    gauges = engine.gauges()
    return gauges.draft_proposed, gauges.draft_accepted


def asked(number: int = 1, *, sampling: dict[str, Any] | None = None, **fields: Any) -> GenerateJob:
    given = {"prompt": PROMPT, "max_tokens": 60, **fields}
    return job(number, given.pop("prompt"), sampling={"ignore_eos": True, **(sampling or {})}, **given)


def only(engine: ChatEngine, one: GenerateJob) -> Outcome:
    return run(engine, [one])[one.job]


def same(found: Outcome, wanted: Outcome) -> None:
    assert (found.tokens, found.text, found.finish) == (wanted.tokens, wanted.text, wanted.finish)
    assert found.usage is not None
    assert wanted.usage is not None
    assert found.usage.completion_tokens == wanted.usage.completion_tokens


@pytest.mark.parametrize("name", SAMPLINGS)
def test_answer_is_the_same_with_a_draft(engine: ChatEngine, plain: ChatEngine, name: str) -> None:
    """Token for token, with every kind of sampling, log-probabilities too, while proposals are taken and refused."""
    one = asked(sampling=SAMPLINGS[name], logprobs=3, tenant=name)
    before = counts(engine)
    found, wanted = only(engine, one), only(plain, one)
    same(found, wanted)
    ours, theirs = ([token for delta in out.deltas for token in delta.logprobs] for out in (found, wanted))
    assert [token.token for token in ours] == [token.token for token in theirs]
    assert [[name for name, *_ in token.top] for token in ours] == [
        [name for name, *_ in token.top] for token in theirs
    ]
    assert [token.logprob for token in ours] == pytest.approx([token.logprob for token in theirs], abs=1e-3)
    proposed, accepted = (after - had for after, had in zip(counts(engine), before, strict=True))
    assert 0 < accepted < proposed


def test_proposals_of_the_model_itself_are_all_taken(model_folder: Callable[[str], Path]) -> None:
    """Drawn with the row's own numbers, so that sampling costs no acceptance; each round then gives one more."""
    folder = model_folder("qwen3")
    engine = always(loaded(folder, draft_model=str(folder)))
    for name, sampling in SAMPLINGS.items():
        only(engine, asked(sampling=sampling, tenant=name))
    proposed, accepted = counts(engine)
    # Nothing is certain of nuclei wider than the candidates: there a proposal is a guess.
    assert accepted > 0.95 * proposed
    assert proposed / len(SAMPLINGS) == pytest.approx(60 * 3 / 4, abs=4)


@pytest.mark.parametrize("most", range(1, 9))
def test_answer_ends_at_its_limit(engine: ChatEngine, plain: ChatEngine, most: int) -> None:
    """Wherever in a round that falls."""
    one = asked(max_tokens=most)
    same(only(engine, one), only(plain, one))


def test_answer_ends_at_its_stop_text(engine: ChatEngine, plain: ChatEngine) -> None:
    """What a round knew beyond it is never told, counted or kept."""
    text = only(plain, asked()).text[0]
    for start in range(20, 60, 7):
        one = asked(stop=[text[start : start + 5]], tenant=f"stop {start}")
        same(only(engine, one), only(plain, one))
        again = only(engine, one)
        same(again, only(plain, one))
        assert again.usage is not None
        assert again.usage.cached_tokens == len(PROMPT.tokens) - 1


@pytest.mark.parametrize("steps", [*range(10), 23])
def test_job_joins_a_drafted_one_at_any_step(engine: ChatEngine, plain: ChatEngine, steps: int) -> None:
    """Both go on together, plainly; the one that is left is drafted again. Each gets its own answer."""
    first = asked(1, sampling=SAMPLINGS["penalised and drawn"], logprobs=2, max_tokens=48, tenant=f"first {steps}")
    second = asked(2, prompt=TokenPrompt(list(range(200, 230))), max_tokens=12, tenant=f"second {steps}")
    outcomes = {one.job: Outcome() for one in (first, second)}

    def take(one: GenerateJob) -> None:
        for message in engine.admit(engine.prepare(one)):
            note(outcomes, message)

    take(first)
    for _ in range(steps):
        for message in engine.step():
            note(outcomes, message)
    take(second)
    before = None
    while engine.busy:
        for message in engine.step():
            note(outcomes, message)
        if before is None and outcomes[2].usage is not None:
            before = counts(engine)
    for one in (first, second):
        same(outcomes[one.job], only(plain, one))
    assert before is not None
    assert counts(engine)[0] > before[0]


def test_choices_are_drafted_once_one_is_left(engine: ChatEngine, plain: ChatEngine) -> None:
    """Several rows share passes, which is what a draft would save; each choice is what it is anyway."""
    one = asked(n=2, sampling={**SAMPLINGS["nucleus"], "ignore_eos": False}, max_tokens=40)
    same(only(engine, one), only(plain, one))


def test_resumed_job_goes_on_as_if_undisturbed(engine: ChatEngine, plain: ChatEngine) -> None:
    """Behind tokens that an engine without a draft has delivered, and the other way round."""
    one = asked(sampling=SAMPLINGS["penalised and drawn"])
    whole = only(plain, one).tokens[0]
    for cut, other in ((1, engine), (17, engine), (18, plain)):
        resumed = msgspec.structs.replace(one, delivered=[whole[:cut]], tenant=f"cut {cut}")
        assert only(other, resumed).tokens[0] == whole[cut:]


def test_cancelled_job_leaves_at_once(engine: ChatEngine, plain: ChatEngine) -> None:
    """In the middle of a round; the next job is not disturbed."""
    for steps in (1, 2, 3, 9):
        engine.admit(engine.prepare(asked(7, tenant="cancelled")))
        for _ in range(steps):
            engine.step()
        assert engine.cancel(7)
        assert not engine.busy
        one = asked(8, tenant=f"after {steps}")
        same(only(engine, one), only(plain, one))


def test_next_turn_finds_what_both_models_have_read(
    engine: ChatEngine, plain: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation goes on from the prefix caches of both, with the same answer."""
    first = asked(prompt=TokenPrompt(list(range(300, 700))), tenant="turns")
    answer = only(engine, first).tokens[0]
    assert isinstance(first.prompt, TokenPrompt)
    second = asked(2, prompt=TokenPrompt([*first.prompt.tokens, *answer, 5, 6, 7]), tenant="turns")
    speculation = engine.speculation
    assert speculation is not None
    nearest, lengths = speculation.prefixes.find_nearest, []

    def noted(tenant: str, tokens: Sequence[int]) -> tuple[Any, int]:
        cache, length = nearest(tenant, tokens)
        lengths.append(length)
        return cache, length

    monkeypatch.setattr(speculation.prefixes, "find_nearest", noted)
    found = only(engine, second)
    same(found, only(plain, second))
    assert found.usage is not None
    assert found.usage.cached_tokens >= 400 + len(answer) - 1
    assert max(lengths) >= 400 + len(answer) - 2


def test_long_prompt_is_read_beside_the_steps(engine: ChatEngine, plain: ChatEngine) -> None:
    """The small model reads it in chunks; until it is through, the answer comes plainly."""
    one = asked(prompt=TokenPrompt([token % 900 + 100 for token in range(3 * CHUNK)]), tenant="long")
    before = counts(engine)[0]
    outcomes = {1: Outcome()}
    for message in engine.admit(engine.prepare(one)):
        note(outcomes, message)
    seen = []
    while engine.busy:
        for message in engine.step():
            note(outcomes, message)
        batch = engine.batch
        seen.append([isinstance(cohort, SpeculativeGroup) for cohort in batch.groups])
    same(outcomes[1], only(plain, one))
    # The row has joined at the end of the first step; three chunks follow.
    assert seen.index([True]) - seen.index([False]) == 3
    assert counts(engine)[0] > before


def test_row_under_a_grammar_is_not_drafted(engine: ChatEngine, plain: ChatEngine) -> None:
    """What may come next depends on the token before; such rows take plain steps."""
    grammar = Grammar("regex", r"[a-f]{30}", "p")
    one = job(1, TextPrompt("once"), grammar=grammar, max_tokens=60, sampling={"temperature": 1.0})
    before = counts(engine)
    same(only(engine, one), only(plain, one))
    assert counts(engine) == before


def test_draft_that_does_not_pay_is_left_alone(engine: ChatEngine, plain: ChatEngine) -> None:
    """Where rounds give too little a row is tried, then goes on plainly; where none can give enough, not even that."""
    one = asked(max_tokens=100, tenant="poor", sampling=SAMPLINGS["flat"])
    always(engine, worth=4.9)
    before = counts(engine)[0]
    same(only(engine, one), only(plain, one))
    assert counts(engine)[0] - before == TRIAL * 4
    always(engine, worth=5.1)
    same(only(engine, msgspec.structs.replace(one, tenant="none")), only(plain, one))
    assert counts(engine)[0] - before == TRIAL * 4


def test_sliding_window_is_drafted_until_it_comes_round(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """A window that has come round can't take tokens back: from then on plain steps, and the same answer."""
    folder = model_folder("gemma3")
    plain = loaded(folder)
    engine = always(loaded(folder, draft_model=str(make_draft(folder, tmp_path / "draft"))))
    one = asked(max_tokens=80, prompt=TokenPrompt(list(range(100, 120))))
    same(only(engine, one), only(plain, one))
    proposed, _ = counts(engine)
    assert 0 < proposed < 64 * 3
    engine.admit(engine.prepare(asked(2, prompt=TokenPrompt(list(range(100, 200))))))
    while engine.busy:
        engine.step()
    assert counts(engine)[0] == proposed


def test_adapter_is_drafted_by_the_same_draft(
    model_folder: Callable[[str], Path], draft_folder: Path, tmp_path: Path
) -> None:
    """The adapted model decides; the draft only guesses less well."""
    adapters = {"sql": str(make_adapter(model_folder("qwen3"), tmp_path / "sql", seed=1))}
    engine = always(loaded(model_folder("qwen3"), draft_model=str(draft_folder), adapters=adapters))
    plain = loaded(model_folder("qwen3"), adapters=adapters)
    for adapter in ("sql", ""):
        same(only(engine, asked(adapter=adapter)), only(plain, asked(adapter=adapter)))
    assert counts(engine)[0] > 0


@pytest.mark.parametrize(
    ("target", "draft", "says"),
    [
        ("qwen3", "bench-qwen3", "bench-qwen3 has another vocabulary: .* is .*, not"),
        ("qwen3", "mamba2", "the draft model can't take tokens back"),
        ("granitemoehybrid", "qwen3", "the model can't take tokens back"),
        ("qwen3", "nowhere", "--draft-model: "),
    ],
)
def test_draft_that_cannot_serve_is_a_load_error(
    model_folder: Callable[[str], Path], tmp_path: Path, target: str, draft: str, says: str
) -> None:
    """Said when the worker starts, with the reason."""
    (tmp_path / "nowhere").mkdir()
    folder = tmp_path / draft if draft == "nowhere" else model_folder(draft)
    with pytest.raises(EngineLoadError, match=says):
        loaded(model_folder(target), draft_model=str(folder))


def test_tokens_that_the_draft_lacks_are_guesses(plain: ChatEngine) -> None:
    """Families pad their tables of tokens differently: what is beyond the small one is neither fed nor proposed."""
    model = plain.loaded.model

    def behind(token: int) -> list[float]:
        draft = DraftModelState(model, 50, caches.new(model), 0)
        logits: list[float] = draft.feed_tokens(mx.array([token], dtype=mx.uint32))[0].tolist()
        return logits

    assert behind(2000) == behind(49) != behind(48)
    narrow = fitted(mx.array([[1.0, 2.0, 3.0]]), 5)
    assert narrow.tolist() == [[1.0, 2.0, 3.0, -float("inf"), -float("inf")]]
    assert fitted(narrow, 2).tolist() == [[1.0, 2.0]]
