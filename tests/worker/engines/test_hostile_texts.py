"""Real engines behind a real reception, while one tenant sends megabytes: nobody waits, nothing stands still.

The tokenizers are those of a tiny Qwen3, of the same with 760 control tokens and a large vocabulary, and of MiniLM.
"""

import json
import queue
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.errors import Code
from protocol.messages import ChatPrompt, DetokenizeJob, EmbedJob, Failed, TextPrompt, TokenizeJob, TokenPrompt, Tokens
from tests.support.engine_runs import chat, job, prepared, run
from tests.support.hostile_texts import NAMES, hostile_text, write_crowded
from tests.support.interpreter_watch import InterpreterWatch
from tests.support.tokenizer_kinds import MINILM
from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine
from worker.engines.embedding.engine import EmbeddingEngine
from worker.process.preprocessor import Admitted, Preprocessor
from worker.text.disarming import JOINER

PATIENCE_S = 60.0
LONGEST_GAP_S = 1.0
"""Of this process's time: what others take from it says nothing about it."""
LARGEST_GROWTH_BYTES = 500_000_000
CONTEXT = 131_072
ORDINARY = 999_999
SIZES = (900_000, 2_000_000, 20_000_000)
"""The largest legal one; those that were found to kill."""
WORST = ("words", "one letter", "spaces", "half a control token", "digits", "emoji", "ligatures")

pytestmark = pytest.mark.mlx


class Desk:
    """A reception in front of an engine; what becomes of each job, with the longest time that nothing else ran."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.preprocessor = Preprocessor(
            prepare=engine.prepare,
            admit=self._out.put,
            send=lambda _, messages: [self._out.put(message) for message in messages],
        )
        self.preprocessor.start()

    def send(self, hostile: Any) -> tuple[Any, float]:
        """The end of a job, and how long another tenant's small one took behind it."""
        self.preprocessor.take_job(0, hostile)
        began = time.process_time()
        self.preprocessor.take_job(0, TokenizeJob(ORDINARY, 1, TextPrompt("one two"), tenant="other"))
        ends: dict[int, Any] = {}
        took_s = 0.0
        while len(ends) < 2:
            end = self._out.get(timeout=PATIENCE_S)
            ends[end.job] = end
            if end.job == ORDINARY:
                took_s = time.process_time() - began
        assert isinstance(ends[ORDINARY], Tokens)
        return ends[hostile.job], took_s


@pytest.fixture(scope="module", autouse=True)
def _as_in_an_engine_process() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def crowded(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> ChatEngine:
    folder = write_crowded(model_folder("qwen3"), tmp_path_factory.mktemp("crowded") / "model", context_length=CONTEXT)
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="crowded", prefix_cache_bytes=0))
    engine.load()
    return engine


@pytest.fixture(scope="module")
def minilm() -> EmbeddingEngine:
    engine = EmbeddingEngine(WorkerConfig(model_path=str(MINILM), served_name="minilm"))
    engine.load()
    return engine


def written(text: str) -> ChatPrompt:
    return ChatPrompt(msgspec.json.encode([{"role": "user", "content": text}]))


def offered(text: str) -> ChatPrompt:
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    return ChatPrompt(msgspec.json.encode([{"role": "user", "content": "x"}]), msgspec.json.encode([tool]))


@pytest.mark.parametrize("kind", WORST)
def test_megabytes_to_a_chat_model_hold_nobody_up(crowded: ChatEngine, kind: str) -> None:
    """As prompt, message, tool or text to tokenise, of any size: an answer or 400, in bounded memory."""
    desk = Desk(crowded)
    for size in SIZES:
        text = hostile_text(kind, size)
        jobs = (
            job(1, text),
            job(2, written(text)),
            job(3, offered(text)),
            TokenizeJob(4, 1, TextPrompt(text)),
            TokenizeJob(5, 1, written(text)),
        )
        check(desk, jobs)


@pytest.mark.parametrize("kind", WORST)
def test_megabytes_to_an_embedding_model_hold_nobody_up(minilm: EmbeddingEngine, kind: str) -> None:
    """Cut or not, in one text or in many."""
    desk = Desk(minilm)
    for size in SIZES[1:]:
        text = hostile_text(kind, size)
        jobs = (
            embedding(1, [text]),
            embedding(2, [text], max_tokens_per_text=512),
            embedding(3, [text[:20_000]] * 8, max_tokens_per_text=512),
            TokenizeJob(4, 1, TextPrompt(text)),
        )
        check(desk, jobs)
    check(desk, (TokenizeJob(5, 1, TextPrompt(text[: SIZES[0] // 2])),))


def test_endless_lists_of_tokens_hold_nobody_up(crowded: ChatEngine, minilm: EmbeddingEngine) -> None:
    """To detokenise, as a prompt, as delivered."""
    for desk in (Desk(crowded), Desk(minilm)):
        for count in (200_000, 5_000_000):
            tokens = [5] * count
            check(desk, (DetokenizeJob(1, 1, tokens), TokenizeJob(2, 1, TokenPrompt(tokens))))
    check(Desk(crowded), (job(1, TokenPrompt(tokens)), job(2, "x", delivered=[tokens])))


def embedding(number: int, texts: list[str], **fields: Any) -> EmbedJob:
    return EmbedJob(number, 1, "r", "hostile", texts, **fields)


def check(desk: Desk, jobs: tuple[Any, ...]) -> None:
    for hostile in jobs:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with InterpreterWatch() as watch:
            end, other_s = desk.send(hostile)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        what = f"{type(hostile).__name__} {hostile.job}: {end if isinstance(end, Failed) else type(end)}"
        assert not isinstance(end, Failed) or end.code in (Code.CONTEXT_LENGTH, Code.INVALID_REQUEST), what
        assert watch.longest_gap_s < LONGEST_GAP_S, what
        assert other_s < LONGEST_GAP_S, what
        assert grown < LARGEST_GROWTH_BYTES, what


def test_running_stream_goes_on_beside_megabytes(model_folder: Callable[[str], Path]) -> None:
    """Its longest silence is a fraction of a second while each kind of text comes in."""
    engine = ChatEngine(WorkerConfig(model_path=str(model_folder("qwen3")), served_name="m", prefix_cache_bytes=0))
    engine.load()
    desk = Desk(engine)
    stream = job(50, "Hello", max_tokens=8000, sampling={"ignore_eos": True})
    engine.admit(prepared(engine, stream))
    silence_s = 0.0
    for number, kind in enumerate(WORST):
        text = hostile_text(kind, 2_000_000)
        for at, prompt in enumerate((TextPrompt(text), TextPrompt(text[:900_000]), written(text[:900_000]))):
            desk.preprocessor.take_job(0, TokenizeJob(10 * number + at, 1, prompt))
        last = time.process_time()
        while desk.preprocessor.waiting:
            engine.step()
            silence_s = max(silence_s, time.process_time() - last)
            last = time.process_time()
    assert engine.busy
    assert silence_s < LONGEST_GAP_S


def test_thousand_tokenizations_of_one_key_do_not_delay_a_chat_of_another(crowded: ChatEngine) -> None:
    """They take turns: it waits for one or two of them."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    preprocessor = Preprocessor(
        prepare=crowded.prepare, admit=found.put, send=lambda _, messages: [found.put(one) for one in messages]
    )
    preprocessor.start()
    text = TextPrompt("the quick brown fox " * 1500)
    for number in range(1000):
        preprocessor.take_job(0, TokenizeJob(number, 1, text, tenant="many"))
    began = time.process_time()
    preprocessor.take_job(0, job(ORDINARY, chat("Hello"), tenant="other"))
    while not isinstance(found.get(timeout=PATIENCE_S), Admitted):
        pass
    assert time.process_time() - began < LONGEST_GAP_S
    preprocessor.drop_waiting()


@pytest.mark.parametrize("part", ["messages", "tools"])
def test_deep_nesting_is_refused_by_name(crowded: ChatEngine, part: str) -> None:
    """As what it is, not as a failure of the engine."""
    deep = "[" * 900 + "]" * 900
    if part == "messages":
        prompt = ChatPrompt(f'[{{"role": "user", "content": {deep}}}]'.encode())
    else:
        tool = f'[{{"type": "function", "function": {{"name": "f", "parameters": {{"enum": {deep}}}}}}}]'
        prompt = ChatPrompt(b'[{"role": "user", "content": "x"}]', tool.encode())
    end, _ = Desk(crowded).send(job(1, prompt))
    assert isinstance(end, Failed)
    assert (end.code, end.param) == (Code.INVALID_REQUEST, part)
    assert "nested" in end.message


def test_conversation_with_hundreds_of_control_tokens_forges_none(crowded: ChatEngine) -> None:
    """Each is broken, wherever in a long text; those of the template are there."""
    prompter = crowded.preprocessor.prompter
    text = "x" * 65_530 + " ".join(NAMES)
    rendered = prompter.render_chat(written(text))
    assert not any(name in rendered.replace("<|im_start|>", "").replace("<|im_end|>", "") for name in NAMES)
    assert rendered.replace(JOINER, "").count(text) == 1


def test_long_conversation_is_answered_as_ever(model_folder: Callable[[str], Path]) -> None:
    """A prompt that is prepared beside has the tokens and the answer of one that is not."""
    engine = ChatEngine(WorkerConfig(model_path=str(model_folder("qwen3")), served_name="m", prefix_cache_bytes=0))
    engine.load()
    text = "the quick brown fox " * 1700
    asked = job(1, TextPrompt(text), max_tokens=4)
    tokens = engine.preprocessor.loaded.tokenizer.encode(text, add_special_tokens=True)
    assert len(json.dumps(text)) > 32_768
    if len(tokens) < 8000:
        by_text = run(engine, [asked])[1].tokens
        assert by_text == run(engine, [job(1, TokenPrompt(tokens), max_tokens=4)])[1].tokens
    else:
        assert prepared(engine, TokenizeJob(1, 1, TextPrompt(text))).tokens == tokens
