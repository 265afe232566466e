"""Grammars that take too much, and processes that die or stand still: the engine and the other rows go on."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from protocol.errors import Code, JobError
from protocol.messages import GenerateJob, Grammar
from tests.support.engine_runs import chat, job, run
from worker.engines.chat.engine import ChatEngine
from worker.grammar.compiling import compilers, process
from worker.grammar.compiling.footprint import footprint_bytes
from worker.grammar.compiling.fork_server import with_head
from worker.grammar.compiling.process import ForkServerHandle, GrammarProcess
from worker.grammar.compiling.process_source import ProcessSource
from worker.grammar.compiling.wire import TokenTable

pytestmark = pytest.mark.mlx

LIST = Grammar("json_schema", '{"type":"array","items":{"type":"integer"},"minItems":30,"maxItems":30}', "p")
SLOW = "(((a{400}){400}){40})x"
"""Takes a second of processor time before its first mask."""
PATIENCE_S = 60.0


def ask(number: int, grammar: Grammar, **fields: Any) -> GenerateJob:
    prompt = chat(f"hello {number}", enable_thinking=False)
    return job(number, prompt, sampling={"temperature": 1.0}, **{"max_tokens": 600, "grammar": grammar, **fields})


def server_of(engine: ChatEngine) -> ForkServerHandle:
    server = engine.grammars._processes.server
    assert server is not None
    return server


def process_of(engine: ChatEngine, number: int) -> GrammarProcess:
    constraint = engine.running[number].choices[0].row.constraint
    assert constraint is not None and constraint.source.process is not None
    found: GrammarProcess = constraint.source.process
    return found


def children(pid: int) -> set[int]:
    """Processes that a process has forked and that have not ended."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in lines.splitlines()]
    return {int(row[0]) for row in rows if int(row[1]) == pid and not row[2].startswith("Z")}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stop(pid: int) -> None:
    """Halt a process, all threads of it."""
    os.kill(pid, signal.SIGSTOP)
    stat = ["ps", "-o", "stat=", "-p", str(pid)]
    wait_until(lambda: subprocess.run(stat, capture_output=True, text=True, check=True).stdout.startswith("T"))


class Ending:
    """Hears how a compilation ended."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        self.error: JobError | None = None

    def __call__(self, error: JobError | None) -> None:
        self.error = error
        self.heard.set()


def test_rows_go_on_when_the_processes_of_their_masks_are_killed(engine: ChatEngine) -> None:
    """Others take over in mid-answer; the answers are those of an undisturbed run, and nobody is to blame."""
    jobs = [ask(number, LIST) for number in range(3)]
    undisturbed = {number: outcome.text for number, outcome in run(engine, jobs).items()}
    killed: list[int] = []

    def kill(step: int) -> None:
        if step == 10:
            killed.append(process_of(engine, 1).pid)
            os.kill(killed[0], signal.SIGKILL)

    outcomes = run(engine, jobs, between=kill)
    assert {number: outcome.text for number, outcome in outcomes.items()} == undisturbed
    assert killed and killed[0] not in children(server_of(engine).pid)
    engine.prepare(jobs[1])


def test_new_grammar_is_compiled_when_the_fork_server_was_killed(engine: ChatEngine) -> None:
    """Another one is started, and rows that follow grammars of the old one are not disturbed."""
    run(engine, [ask(1, LIST)])
    server = server_of(engine)

    def kill(step: int) -> None:
        if step == 5:
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: not server.alive)

    assert run(engine, [ask(2, LIST)], between=kill)[2].finish == {0: "stop"}
    assert run(engine, [ask(3, Grammar("regex", "cd[0-9]", "p"))])[3].finish == {0: "stop"}
    assert server_of(engine) is not server


def test_rows_of_a_grammar_fail_alone_when_its_mask_has_no_end(engine: ChatEngine) -> None:
    """The system ends a process that has used up its time for a mask; its rows end in an error, others in answers."""
    hung = Grammar("json_schema", LIST.text.replace("30", "31"), "p")
    jobs = [ask(number, hung if number == 1 else LIST) for number in range(3)]
    undisturbed = {number: outcome.text for number, outcome in run(engine, jobs).items()}

    def hang(step: int) -> None:
        if step == 10:
            found = process_of(engine, 1)
            found._at_work[0] = 0
            # What the system sends at the end of the time that was set.
            os.kill(found.pid, signal.SIGPROF)
            wait_until(lambda: found.pid not in children(server_of(engine).pid))

    outcomes = run(engine, jobs, between=hang)
    assert outcomes[1].failed is not None
    assert (outcomes[1].failed.code, outcomes[1].failed.param) == (Code.INVALID_REQUEST, "p")
    assert {number: outcomes[number].text for number in (0, 2)} == {n: undisturbed[n] for n in (0, 2)}
    with pytest.raises(JobError, match="time to follow"):
        engine.prepare(jobs[1])
    # Everybody had to wait: for a while, nothing new is compiled for whoever asked for that.
    with pytest.raises(JobError) as barred:
        engine.prepare(ask(4, Grammar("regex", "fresh[0-9]", "p")))
    assert barred.value.code is Code.RATE_LIMITED
    engine.prepare(ask(5, Grammar("regex", "fresh[0-9]", "p"), tenant="another"))
    engine.grammars._standing._accounts.clear()


def test_rows_go_on_when_the_process_of_their_masks_stood_still(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time on the wall is nobody's fault: another process takes over, and the grammar is as good as before."""
    monkeypatch.setattr(process, "STEP_S", 0.3)
    grammar = Grammar("json_schema", LIST.text.replace("30", "29"), "p")
    undisturbed = run(engine, [ask(1, grammar)])[1].text

    def stand(step: int) -> None:
        if step == 10:
            process_of(engine, 1)._at_work[0] = 0
            stop(process_of(engine, 1).pid)

    assert run(engine, [ask(1, grammar)], between=stand)[1].text == undisturbed
    engine.prepare(ask(2, grammar))


def test_schema_works_the_next_time_when_compiling_it_stood_still(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that stands still says nothing about a schema: the refusal asks to try again, and that helps."""
    run(engine, [ask(1, LIST)])
    monkeypatch.setattr(compilers, "PATIENCE_S", 0.2)
    stop(server_of(engine).pid)
    began = time.monotonic()
    with pytest.raises(JobError) as refused:
        engine.prepare(ask(1, Grammar("regex", "good[0-9]", "where")))
    assert time.monotonic() - began < 20
    assert (refused.value.code, refused.value.param) == (Code.RATE_LIMITED, "where")
    os.kill(server_of(engine).pid, signal.SIGCONT)
    monkeypatch.undo()
    assert run(engine, [ask(1, Grammar("regex", "good[0-9]", "where"))])[1].finish == {0: "stop"}


def test_grammar_is_refused_when_compiling_takes_too_much(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system ends the process in time, the refusal says why and holds for this tenant, and for a while."""
    now = [1000.0]
    for part in (engine.grammars, engine.grammars._queue, engine.grammars._compiler):
        monkeypatch.setattr(part, "_clock", lambda: now[0])
    monkeypatch.setattr(compilers, "COMPILE_S", 0.3)
    slow = ask(1, Grammar("regex", SLOW, "where"), tenant="slow")
    for _ in range(2):
        with pytest.raises(JobError) as refused:
            engine.prepare(slow)
        assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "where")
        assert "seconds" in refused.value.message
    assert run(engine, [ask(2, Grammar("regex", "ab[0-9]", "p"), tenant="slow")])[2].finish == {0: "stop"}
    # A minute later it is tried again, and, on a machine that is faster by then, fits.
    now[0] += 61
    monkeypatch.setattr(compilers, "COMPILE_S", 30.0)
    with pytest.raises(JobError, match="follow"):
        engine.prepare(slow)


def test_compiling_ends_when_nobody_waits_for_it(engine: ChatEngine) -> None:
    """Whoever leaves frees the compiler at once: the process ends, and what comes next is compiled."""
    run(engine, [ask(1, LIST)])
    server = server_of(engine).pid
    before = children(server)
    first, second = (ask(number, Grammar("regex", f"{SLOW}{number}", "p"), tenant="leaves") for number in (1, 2))
    assert engine.compile_job(first, Ending())
    assert engine.compile_job(second, Ending())
    wait_until(lambda: len(children(server) - before) == 1)
    working = children(server) - before
    engine.drop_job(second)
    engine.drop_job(first)
    wait_until(lambda: not working & children(server))
    wait_until(lambda: len(engine.grammars._queue) == 0)
    ended = Ending()
    assert engine.compile_job(ask(3, Grammar("regex", "next[0-9]", "p"), tenant="leaves"), ended)
    assert ended.heard.wait(PATIENCE_S) and ended.error is None
    engine.drop_job(ask(3, LIST))
    assert not engine.grammars._granted and not engine.grammars._waiting


def test_another_tenants_grammar_is_compiled_when_one_floods(engine: ChatEngine) -> None:
    """Beside many slow ones of one tenant a new one of another takes its own time; beyond a bound they are refused."""
    run(engine, [ask(1, LIST)])
    endings = []
    refused = 0
    for number in range(100, 200):
        ended = Ending()
        try:
            assert engine.compile_job(ask(number, Grammar("regex", f"{SLOW}{number}", "p"), tenant="floods"), ended)
            endings.append(ended)
        except JobError as error:
            assert error.code is Code.RATE_LIMITED
            refused += 1
    assert refused > 0
    for number in range(3):
        other = Ending()
        assert engine.compile_job(ask(number, Grammar("regex", f"other{number}", "p"), tenant="other"), other)
        assert other.heard.wait(PATIENCE_S) and other.error is None
        engine.drop_job(ask(number, LIST))
    assert sum(ended.heard.is_set() for ended in endings) < 10
    for number in range(100, 200):
        engine.drop_job(ask(number, LIST))
    wait_until(lambda: len(engine.grammars._queue) == 0)


def test_grammar_is_refused_when_it_takes_too_much_memory(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated beyond the bound ends the process that compiles, and no other."""
    monkeypatch.setattr(compilers, "COMPILE_BYTES", 64 << 20)
    with pytest.raises(JobError, match="too much memory") as refused:
        engine.prepare(ask(1, Grammar("regex", SLOW, "where"), tenant="large"))
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "where")
    assert run(engine, [ask(2, LIST)])[2].finish == {0: "stop"}


def test_footprint_is_what_a_process_holds() -> None:
    """Within the bounds of reason for this very process, and nothing for one that is not there."""
    assert 1 << 20 < footprint_bytes(os.getpid()) < 1 << 40
    assert footprint_bytes(2**22 + 1) == 0


TINY_TOKENIZER = (
    '{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]},'
    '"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},'
    '"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}}'
)


def start_server(vocabulary: TokenTable) -> ForkServerHandle:
    with tempfile.TemporaryFile() as file:
        file.write(TINY_TOKENIZER.encode())
        file.flush()
        return ForkServerHandle(vocabulary, file, slots=1)


def test_file_is_refused_when_its_tokens_are_others() -> None:
    """A folder may have been filled anew since the engine read it."""
    for samples, good in (([(0, b"a"), (1, b"b")], True), ([(0, b"b"), (1, b"a")], False)):
        server = start_server(TokenTable(2, [1], {}, samples=samples))
        assert (server.error == "") == good
        server.kill()


@pytest.mark.parametrize(
    "text",
    [
        '{"version": "1.0", "padding": {}, "added_tokens": [],\n "model": {"vocab": {"\\"model\\":": 1}}}',
        '{"added_tokens": [{"content": "\\"model\\":"}], "padding": 1, "model": {"vocab": {}}}',
        '{"model": {"vocab": {"a": 1}}, "padding": {}, "added_tokens": []}',
        TINY_TOKENIZER,
    ],
)
def test_what_the_engine_has_replaces_what_the_file_says(text: str) -> None:
    """Everything but the model, in whatever order it stands."""
    head = {"padding": None, "decoder": {"type": "Fuse"}}
    assert json.loads(with_head(text, head)) == {**json.loads(text), **head}


def test_processes_end_with_their_engine() -> None:
    """Its end of the line closes with the engine, and takes the fork server along, and what that has forked."""
    server = start_server(TokenTable(2, [1], {}))
    assert server.error == ""
    child = server.fork_process()
    wait_until(lambda: len(children(server.pid)) == 1)
    [pid] = children(server.pid)
    detached = server._end.detach()
    assert detached is not None
    popen, orders = detached[2]
    orders.close()
    assert popen.wait(10) == 0
    wait_until(lambda: subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode != 0)
    child.kill()


def test_no_process_is_started_when_the_engine_has_ended(tokenizer: Any) -> None:
    """A thread that still compiles is told so, though the process that it used was lost with the engine."""
    source = ProcessSource(tokenizer, size=2048, slots=1)
    source.fork_process().kill()
    source.close()
    with pytest.raises(JobError):
        source.fork_process()
    assert source.server is None


def test_grammar_is_paid_for_by_whoever_came_first(engine: ChatEngine) -> None:
    """Its processor time is in the usage of one job; who finds it compiled pays nothing."""
    grammar = Grammar("json_schema", LIST.text.replace("30", "28"), "p")
    first, second = (run(engine, [ask(number, grammar)])[number].usage for number in (1, 2))
    assert first is not None and second is not None
    assert first.compile_s > 0 and second.compile_s == 0
    with pytest.raises(JobError) as refused:
        engine.prepare(ask(3, Grammar("regex", "(", "p"), tenant="pays"))
    assert refused.value.compile_s > 0
