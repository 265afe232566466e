"""Preparation off the engine's thread: what gets through, what does not, who answers."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from protocol.errors import Code, JobError
from protocol.messages import DetokenizeJob, Failed, GenerateJob, Grammar, Job, Sampling, Text, TextPrompt
from worker.process.preprocessor import Admitted, Compiler, Preprocessor

PATIENCE_S = 10.0


def job(number: int, attempt: int = 1) -> DetokenizeJob:
    return DetokenizeJob(number, attempt, [])


class Desk:
    """A preprocessor with a given `prepare`; everything that leaves it is in `out`, in order."""

    def __init__(self, prepare: Callable[[Job, Sequence[bytes]], Any], compiler: Compiler | None = None) -> None:
        self.out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.preprocessor = Preprocessor(
            prepare=prepare,
            compiler=compiler,
            admit=self.out.put,
            send=lambda epoch, messages: [self.out.put((epoch, message)) for message in messages],
        )
        self.preprocessor.start()

    def next(self) -> Any:
        return self.out.get(timeout=PATIENCE_S)


class Gate:
    """A `prepare` that stops at job 1 until it is let go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.prepared: list[int] = []

    def __call__(self, job: Job, _buffers: Sequence[bytes]) -> Any:
        self.prepared.append(job.job)
        if job.job == 1:
            self.reached.set()
            assert self.go.wait(PATIENCE_S)
        return f"prepared {job.job}"


class Waiting:
    """A `Compiler` that whatever has a grammar waits for until `finish`, and that refuses kind `refused` at once."""

    def __init__(self) -> None:
        self.endings: dict[int, Callable[[JobError | None], None]] = {}
        self.dropped: list[int] = []

    def compile_job(self, job: GenerateJob, ended: Callable[[JobError | None], None]) -> bool:
        if job.grammar is not None and job.grammar.kind == "refused":
            raise JobError(Code.RATE_LIMITED, "too many", "where")
        if job.grammar is not None:
            self.endings[job.job] = ended
        return job.grammar is not None

    def drop_job(self, job: GenerateJob) -> None:
        self.endings.pop(job.job, None)
        self.dropped.append(job.job)

    def finish(self, number: int, error: JobError | None = None) -> None:
        self.endings.pop(number)(error)


def ruled(number: int, kind: str) -> GenerateJob:
    return GenerateJob(number, 1, "r", "t", TextPrompt("x"), Sampling(0), grammar=Grammar(kind))


def test_nobody_waits_for_a_grammar_of_others() -> None:
    """What has to be compiled is prepared behind that; a refusal ends it there."""
    compiler = Waiting()
    desk = Desk(lambda job, _buffers: job.job, compiler)
    for number, kind in ((1, "bad"), (2, "good"), (3, "refused")):
        desk.preprocessor.take_job(7, ruled(number, kind))
    assert desk.next() == (7, Failed(3, 1, Code.RATE_LIMITED, "too many", "where"))
    desk.preprocessor.take_job(7, job(4))
    assert desk.next() == Admitted(7, 4, 1, 4)
    compiler.finish(1, JobError(Code.INVALID_REQUEST, "no", "where"))
    assert desk.next() == (7, Failed(1, 1, Code.INVALID_REQUEST, "no", "where"))
    compiler.finish(2)
    assert desk.next() == Admitted(7, 2, 1, 2)
    assert desk.preprocessor.waiting == 0
    assert compiler.dropped == [3, 1, 2]


def test_compiler_is_told_when_a_job_that_waits_for_it_is_cancelled() -> None:
    """So that nothing is compiled for whoever has left; what comes of it nevertheless goes nowhere."""
    compiler = Waiting()
    desk = Desk(lambda job, _buffers: job.job, compiler)
    desk.preprocessor.take_job(7, ruled(1, "good"))
    late = compiler.endings[1]
    assert desk.preprocessor.cancel_job(7, 1, 1)
    assert compiler.dropped == [1]
    late(None)
    desk.preprocessor.take_job(7, ruled(2, "good"))
    desk.preprocessor.drop_waiting()
    assert compiler.endings == {}
    desk.preprocessor.take_job(7, job(3))
    assert desk.next() == Admitted(7, 3, 1, 3)


def test_prepared_job_goes_to_the_loop() -> None:
    """In the order of arrival, with epoch and attempt."""
    desk = Desk(lambda job, _buffers: job.job * 10)
    desk.preprocessor.take_job(7, job(1))
    desk.preprocessor.take_job(7, job(2, attempt=3))
    assert desk.next() == Admitted(7, 1, 1, 10)
    assert desk.next() == Admitted(7, 2, 3, 20)
    assert desk.preprocessor.waiting == 0


def test_whole_answers_go_straight_out() -> None:
    """What needs no engine never bothers it."""
    desk = Desk(lambda job, _buffers: Text(job.job, job.attempt, "text"))
    desk.preprocessor.take_job(7, job(1))
    assert desk.next() == (7, Text(1, 1, "text"))


def test_cancel_before_preparation_saves_the_work() -> None:
    """A job that was cancelled while it queued is not even prepared."""
    gate = Gate()
    desk = Desk(gate)
    for number in (1, 2, 3):
        desk.preprocessor.take_job(7, job(number))
    assert gate.reached.wait(PATIENCE_S)
    assert desk.preprocessor.waiting == 3
    assert desk.preprocessor.cancel_job(7, 2, 1)
    gate.go.set()
    assert [desk.next().job, desk.next().job] == [1, 3]
    assert gate.prepared == [1, 3]


def test_cancel_during_preparation_stops_it_there() -> None:
    """The outcome of a cancelled preparation goes nowhere; the canceller answers, once."""
    gate = Gate()
    desk = Desk(gate)
    desk.preprocessor.take_job(7, job(1))
    assert gate.reached.wait(PATIENCE_S)
    assert desk.preprocessor.cancel_job(7, 1, 1)
    assert not desk.preprocessor.cancel_job(7, 1, 1)
    gate.go.set()
    desk.preprocessor.take_job(7, job(2))
    assert desk.next() == Admitted(7, 2, 1, "prepared 2")


@pytest.mark.parametrize("wrong", [(6, 1, 1), (7, 2, 1), (7, 1, 2)])
def test_cancel_of_another_job_finds_nothing(wrong: tuple[int, int, int]) -> None:
    """Epoch, job and attempt all have to be right."""
    gate = Gate()
    desk = Desk(gate)
    desk.preprocessor.take_job(7, job(1))
    assert gate.reached.wait(PATIENCE_S)
    assert not desk.preprocessor.cancel_job(*wrong)
    gate.go.set()
    assert desk.next() == Admitted(7, 1, 1, "prepared 1")
    assert not desk.preprocessor.cancel_job(7, 1, 1)


def test_cleared_epoch_goes_no_further() -> None:
    """Neither what is being prepared nor what waits survives a new gateway run; the same numbers come again safely."""
    gate = Gate()
    desk = Desk(gate)
    desk.preprocessor.take_job(7, job(1))
    desk.preprocessor.take_job(7, job(2))
    assert gate.reached.wait(PATIENCE_S)
    desk.preprocessor.drop_waiting()
    assert desk.preprocessor.waiting == 0
    desk.preprocessor.take_job(8, job(2))
    gate.go.set()
    assert desk.next() == Admitted(8, 2, 1, "prepared 2")
    assert gate.prepared == [1, 2]


def test_refusal_reaches_the_caller() -> None:
    """A `JobError` becomes `Failed` with its code, message and parameter, not retryable."""

    def prepare(_: Job, _buffers: Sequence[bytes]) -> Any:
        raise JobError(Code.CONTEXT_LENGTH, "too long", "messages")

    desk = Desk(prepare)
    desk.preprocessor.take_job(7, job(1, attempt=2))
    assert desk.next() == (7, Failed(1, 2, Code.CONTEXT_LENGTH, "too long", "messages"))


@pytest.mark.parametrize(
    "error", [ValueError("secret"), RecursionError("secret"), MemoryError("secret"), KeyError("x")]
)
def test_crash_of_one_preparation_is_its_own(error: Exception) -> None:
    """It fails as engine_error, without its words, and the next job is prepared as ever."""

    def prepare(job: Job, _buffers: Sequence[bytes]) -> Any:
        if job.job == 1:
            raise error
        return "fine"

    desk = Desk(prepare)
    desk.preprocessor.take_job(7, job(1))
    desk.preprocessor.take_job(7, job(2))
    epoch, failed = desk.next()
    assert (epoch, failed.job, failed.code) == (7, 1, Code.ENGINE_ERROR)
    assert "secret" not in failed.message
    assert desk.next() == Admitted(7, 2, 1, "fine")


def test_long_preparation_lets_others_pass() -> None:
    """It comes in pieces; a job that arrives after the first waits for one of them, not for all."""
    gate = Gate()

    def prepare(job: Job, buffers: Sequence[bytes]) -> Any:
        if job.job != 1:
            return "short"

        def pieces() -> Iterator[str | None]:
            gate(job, buffers)
            yield from [None] * 100
            yield "long"

        return pieces()

    desk = Desk(prepare)
    desk.preprocessor.take_job(7, job(1))
    assert gate.reached.wait(PATIENCE_S)
    desk.preprocessor.take_job(7, job(2))
    gate.go.set()
    assert [desk.next().prepared, desk.next().prepared] == ["short", "long"]


def test_cancelled_preparation_goes_no_further() -> None:
    """The piece at hand is finished, no other is begun; the next job is served."""
    gate = Gate()
    begun: list[int] = []

    def prepare(job: Job, buffers: Sequence[bytes]) -> Any:
        def pieces() -> Iterator[str | None]:
            for piece in range(3):
                begun.append(job.job)
                if piece == 0:
                    gate(job, buffers)
                yield None
            yield "done"

        return pieces()

    desk = Desk(prepare)
    desk.preprocessor.take_job(7, job(1))
    assert gate.reached.wait(PATIENCE_S)
    assert desk.preprocessor.cancel_job(7, 1, 1)
    desk.preprocessor.take_job(7, job(2))
    gate.go.set()
    assert desk.next() == Admitted(7, 2, 1, "done")
    assert begun == [1, 2, 2, 2]


def test_refusal_in_a_later_piece_is_answered() -> None:
    """As one in the first."""

    def prepare(job: Job, _buffers: Sequence[bytes]) -> Any:
        def pieces() -> Iterator[None]:
            yield None
            raise JobError(Code.CONTEXT_LENGTH, "too long", "input[64]")

        return pieces()

    desk = Desk(prepare)
    desk.preprocessor.take_job(7, job(1))
    assert desk.next() == (7, Failed(1, 1, Code.CONTEXT_LENGTH, "too long", "input[64]"))


class Elsewhere:
    """A `prepare` whose odd jobs wait for work that is done elsewhere."""

    def __init__(self) -> None:
        self.pending: dict[int, Future[str]] = {}
        self.asked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def __call__(self, job: Job, _buffers: Sequence[bytes]) -> Any:
        return self._pieces(job.job) if job.job % 2 else f"prepared {job.job}"

    def _pieces(self, number: int) -> Iterator[Any]:
        self.pending[number] = Future()
        self.asked.put(number)
        yield self.pending[number]
        yield self.pending[number].result()


def test_job_that_waits_for_work_elsewhere_holds_nobody_up() -> None:
    """It goes on when that is done, with what came of it."""
    elsewhere = Elsewhere()
    desk = Desk(elsewhere)
    for number in (1, 2, 3, 4):
        desk.preprocessor.take_job(7, job(number))
    assert [desk.next().prepared for _ in range(2)] == ["prepared 2", "prepared 4"]
    assert desk.preprocessor.waiting == 2
    elsewhere.pending[3].set_result("three")
    elsewhere.pending[1].set_exception(JobError(Code.INVALID_REQUEST, "no good", "images[0]"))
    found = [desk.next(), desk.next()]
    assert Admitted(7, 3, 1, "three") in found
    assert (7, Failed(1, 1, Code.INVALID_REQUEST, "no good", "images[0]")) in found
    assert desk.preprocessor.waiting == 0


@pytest.mark.parametrize("how", ["cancel", "clear"])
def test_work_elsewhere_ends_with_its_job(how: str) -> None:
    """Nothing is done, and nothing comes, for a job that is gone."""
    elsewhere = Elsewhere()
    desk = Desk(elsewhere)
    desk.preprocessor.take_job(7, job(1))
    assert elsewhere.asked.get(timeout=PATIENCE_S) == 1
    # Parked by the time that the next one is through.
    desk.preprocessor.take_job(7, job(2))
    assert desk.next().prepared == "prepared 2"
    if how == "cancel":
        assert desk.preprocessor.cancel_job(7, 1, 1)
    else:
        desk.preprocessor.drop_waiting()
    assert elsewhere.pending[1].cancelled()
    desk.preprocessor.take_job(7, job(4))
    assert desk.next().prepared == "prepared 4"
    assert desk.out.empty()


def of(tenant: str, number: int) -> DetokenizeJob:
    return DetokenizeJob(number, 1, [], tenant)


def test_tenants_take_turns() -> None:
    """A hundred slow preparations of one key, light jobs too, delay another key's job by two pieces."""
    gate = Gate()
    order: list[tuple[str, int]] = []

    def prepare(job: Job, buffers: Sequence[bytes]) -> Any:
        def pieces() -> Iterator[str | None]:
            gate(job, buffers)
            for _ in range(3):
                order.append((job.tenant, job.job))
                yield None
            yield "done"

        return pieces()

    desk = Desk(prepare)
    for number in range(1, 101):
        desk.preprocessor.take_job(7, of("many", number))
    assert gate.reached.wait(PATIENCE_S)
    desk.preprocessor.take_job(7, of("one", 200))
    gate.go.set()
    first = desk.next()
    assert first.job == 200
    place = max(at for at, (tenant, _) in enumerate(order) if tenant == "one")
    assert place <= 6
    assert sorted(desk.next().job for _ in range(100)) == [*range(1, 101)]
