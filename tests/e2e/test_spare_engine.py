"""The process that waits beside an engine, with everything imported: takes over, is replaced, never outstays."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stress.fake_answers import fake_answer
from stress.running_pool import FAKE, RunningPool, alive, chat_body, children, wait_until

OWN = """
from worker.engines.fake import FakeEngine

class Engine(FakeEngine):
    def load(self):
        super().load()
        print("loaded the {which} engine", flush=True)
"""


@pytest.fixture
def start_spared(start_pool: Callable[..., RunningPool]) -> Callable[..., RunningPool]:
    """A pool that keeps spares."""

    def start(*workers: Any, **settings: Any) -> RunningPool:
        environment = {**settings.pop("environment", {}), "POOL_SPARE": "true"}
        return start_pool(*workers or (FAKE,), environment=environment, **settings)

    return start


def spare(pool: RunningPool, than: int = 0) -> int:
    """The process id of the spare, another one `than` that, once it has said that it waits."""

    def waiting() -> int:
        said = re.findall(r"process (\d+) is ready to take over", pool.supervisors[0].text())
        pid = int(said[-1]) if said else 0
        return pid if pid != than else 0

    return wait_until(waiting, what="a spare waits")


def test_spare_takes_over_when_the_engine_dies(start_spared: Callable[..., RunningPool]) -> None:
    """The process that waited is the next engine, running jobs go on there, and another one waits soon."""
    pool = start_spared()
    engine, waiting = pool.engine_pid(), spare(pool)
    assert {engine, waiting} == {*children(pool.supervisors[0].pid)}
    body = chat_body("fake: slow@0.02 tokens@50")
    os.kill(engine, signal.SIGKILL)
    assert pool.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == fake_answer(body)
    assert pool.engine_pid() == waiting
    assert spare(pool, waiting) not in (engine, waiting)


def test_spare_opens_nothing_while_it_waits(start_spared: Callable[..., RunningPool]) -> None:
    """Its only socket is the pair that its supervisor holds; it runs one thread."""
    pool = start_spared()
    folder = Path(f"/proc/{spare(pool)}")
    if not folder.exists():
        pytest.skip("there is no /proc")
    held = [str(link.readlink()).split(":")[0] for link in (folder / "fd").iterdir()]
    assert held.count("socket") == 1
    assert "anon_inode" not in held
    assert len([*(folder / "task").iterdir()]) == 1


def test_spare_is_made_again_when_it_dies(start_spared: Callable[..., RunningPool]) -> None:
    """The engine does not notice; whoever starts next is the new spare."""
    pool = start_spared(expected="the spare process ended")
    engine, first = pool.engine_pid(), spare(pool)
    os.kill(first, signal.SIGKILL)
    second = spare(pool, first)
    assert pool.engine_pid() == engine
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: pool.engine_pid() == second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_spare_ends_with_its_supervisor(start_spared: Callable[..., RunningPool], number: signal.Signals) -> None:
    """Told to leave or killed, the supervisor leaves nobody behind."""
    pool = start_spared()
    waiting = spare(pool)
    pool.supervisors[0].signal(number)
    pool.supervisors[0].wait()
    wait_until(lambda: not alive(waiting))


def test_spare_starts_anew_when_what_it_imported_has_changed(
    start_spared: Callable[..., RunningPool], tmp_path: Path
) -> None:
    """After an upgrade, the process that takes over runs the code that a fresh one would run."""
    (tmp_path / "own_engine.py").write_text(OWN.format(which="first"))
    own = ("--engine", "own_engine:Engine", "--model-path", "fake")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    pool = start_spared(own, environment=environment)
    engine, waiting = pool.engine_pid(), spare(pool)
    (tmp_path / "own_engine.py").write_text(OWN.format(which="second, upgraded"))
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: "loaded the second, upgraded engine" in pool.supervisors[0].text())
    assert pool.engine_pid() == waiting
