"""Grammars that take too long, and processes that die: the engine and the other rows go on."""

import os
import signal
import time
from typing import Any

import pytest
from engine_runs import chat, job, run

from protocol.errors import Code, JobError
from protocol.messages import GenerateJob, Grammar
from worker.engines.chat import ChatEngine
from worker.grammar import grammars, masks

pytestmark = pytest.mark.mlx

LIST = Grammar("json_schema", '{"type":"array","items":{"type":"integer"},"minItems":30,"maxItems":30}', "p")


def ask(number: int, grammar: Grammar, **fields: Any) -> GenerateJob:
    prompt = chat(f"hello {number}", enable_thinking=False)
    return job(number, prompt, sampling={"temperature": 1.0}, **{"max_tokens": 600, "grammar": grammar, **fields})


def stop(pid: int) -> None:
    """Halt a child for good; on a busy machine its threads run on for a while."""
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)


def test_rows_go_on_when_the_process_of_their_masks_is_killed(engine: ChatEngine) -> None:
    """Another process takes over in mid-answer; the answers are those of an undisturbed run."""
    jobs = [ask(number, LIST) for number in range(3)]
    undisturbed = {number: outcome.text for number, outcome in run(engine, jobs).items()}
    server = engine._grammars._server
    assert server is not None
    # Nothing is at work when it dies, so nobody is to blame.
    outcomes = run(engine, jobs, between=lambda step: os.kill(server.pid, signal.SIGKILL) if step == 10 else None)
    assert {number: outcome.text for number, outcome in outcomes.items()} == undisturbed
    assert engine._grammars._server is not server


def test_row_fails_alone_when_its_mask_has_no_end(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs is killed; the row it hung at ends in an error, its neighbours in their answers."""
    monkeypatch.setattr(masks, "STEP_S", 0.3)
    hung = Grammar("json_schema", LIST.text.replace("30", "31"), "p")
    jobs = [ask(number, hung if number == 1 else LIST) for number in range(3)]
    undisturbed = {number: outcome.text for number, outcome in run(engine, jobs).items()}
    server = engine._grammars._server
    assert server is not None

    def hang(step: int) -> None:
        if step == 10:
            server._at_work[0] = engine._running[1].choices[0].row.constraint.slot
            stop(server.pid)

    outcomes = run(engine, jobs, between=hang)
    assert outcomes[1].failed is not None
    assert (outcomes[1].failed.code, outcomes[1].failed.param) == (Code.INVALID_REQUEST, "p")
    assert {number: outcomes[number].text for number in (0, 2)} == {n: undisturbed[n] for n in (0, 2)}
    assert not server.alive
    with pytest.raises(JobError, match="time to follow"):
        engine.prepare(jobs[1])


@pytest.mark.timed
def test_grammar_is_refused_when_compiling_takes_too_long(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that compiles is killed in time, the refusal says why, and the next grammar is compiled as ever."""
    run(engine, [ask(1, LIST)])
    prover = engine._grammars._prover
    assert prover is not None
    monkeypatch.setattr(grammars, "COMPILE_S", 0.2)
    stop(prover.pid)
    began = time.monotonic()
    with pytest.raises(JobError) as refused:
        engine.prepare(ask(1, Grammar("regex", "never[0-9]", "where")))
    assert time.monotonic() - began < 5
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "where")
    assert "seconds" in refused.value.message
    assert not prover.alive
    monkeypatch.undo()
    assert run(engine, [ask(2, Grammar("regex", "ab[0-9]", "p"))])[2].finish == {0: "stop"}


def test_process_ends_with_its_engine_when_it_is_in_the_middle_of_a_mask() -> None:
    """Its lifeline is watched by a thread that a mask does not hold up: closing it ends the process."""
    from worker.grammar.process import GrammarProcess
    from worker.grammar.wire import Vocabulary

    tokenizer = (
        '{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]},'
        '"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},'
        '"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}}'
    )
    process = GrammarProcess(Vocabulary(tokenizer, 2, [1], []), slots=1)
    assert process.error == ""
    detached = process._end.detach()
    assert detached is not None
    child, lifeline = detached[2]
    os.close(lifeline)
    assert child.wait(10) == 0
