"""What the processes of a pool know that they need not: keys in environments and command lines."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stress.key_commands import MASTER, PRODUCTION, bearer
from stress.key_traces import shown
from stress.running_pool import RunningPool, chat_body, descendants, wait_until

from tests.support.honcho_stack import Procfile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another process's environment is read from /proc")

SECRETS = {
    "EMBEDDING_API_KEY": shown("another-master-key"),
    "OTEL_EXPORTER_OTLP_HEADERS": shown("authorization=otel-secret"),
    "HF_TOKEN": shown("hf_a-token-of-the-hub"),
    "OPENAI_API_KEY": shown("sk-of-somebody-else"),
    "UPSTREAM": "https://user:the-password@example.com/",
}
TRACES = (MASTER, "another-master-key", "otel-secret", "hf_a-token", "sk-of-somebody", "the-password")


def known_to(pid: int) -> list[str]:
    """The secrets that anybody of this machine's user can read of a process; none, if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        text = (folder / "environ").read_bytes().decode() + (folder / "cmdline").read_bytes().decode()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [trace for trace in TRACES if trace in text]


def leaks(pid: int, *, without: int = 0) -> dict[str, list[str]]:
    """The secrets known to processes below `pid`, but to `without`, by command line; of those that know none: []."""
    return {args: known_to(one) for one, args in descendants(pid).items() if one != without}


@pytest.mark.mlx
def test_no_process_that_runs_models_knows_a_key(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path]
) -> None:
    """Supervisor, engine, spare and grammar processes of a real model, after a real start; none may dump memory."""
    environment = {**PRODUCTION, **SECRETS, "POOL_SPARE": "true"}
    pool = start_pool(("--model-path", str(model_folder("qwen3")), "--served-name", "qwen"), environment=environment)
    pool.wait_healthy()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    answer = pool.post("/v1/chat/completions", chat_body("x", max_tokens=4, **fields), headers=bearer(MASTER))
    assert answer.status == 200
    supervisor = pool.supervisors[0].pid

    def all_there() -> bool:
        running = " ".join(descendants(supervisor).values())
        return running.count("worker.process.launch") == 2 and "worker.grammar.compiling.fork_server" in running

    wait_until(all_there, what="engine, spare and grammar processes run")
    assert not known_to(supervisor)
    found = leaks(supervisor)
    assert len(found) >= 3
    assert not any(found.values())
    assert known_to(pool.gateway.pid), "the gateway needs its key: if it is not found here, this test looks wrong"
    for pid in (pool.gateway.pid, supervisor, *descendants(supervisor)):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(filter(lambda line: "core file" in line, limits.splitlines())).split()[4:6] == ["0", "0"]
        assert int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16) == 0


@pytest.fixture
def with_env_file(tmp_path: Path) -> Iterator[Procfile]:
    """The project's Procfile under honcho, which reads the keys from a file."""
    # The fake model has no folder, and might have to be fetched with the hub's token.
    lines = [f"{name}={value}\n" for name, value in {**PRODUCTION, **SECRETS, "HF_TOKEN": ""}.items()]
    (tmp_path / "env").write_text("".join(lines))
    short = Path(f"/tmp/kt-{os.getpid()}")
    short.mkdir(mode=0o700)
    stack = Procfile(short, concurrency="gateway=1,chat=1", env_file=tmp_path / "env")
    yield stack
    stack.stop()
    for path in sorted(short.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    short.rmdir()


def test_workers_know_no_key_when_honcho_gives_it_to_all(with_env_file: Procfile) -> None:
    """From `.env`: the gateway has it, the workers have lost it by the time that they serve."""
    with_env_file.wait_healthy()
    gateway = with_env_file.gateway_pid()
    assert known_to(gateway)
    # Honcho starts a worker for every line; the models that nobody waits for may have only just been started.
    honcho = with_env_file.honcho.pid
    wait_until(lambda: not any(leaks(honcho, without=gateway).values()), what="no worker knows a key")
    running = leaks(honcho, without=gateway)
    assert any("worker.process.launch" in args for args in running)
    assert any("-m worker " in f"{args} " for args in running)
