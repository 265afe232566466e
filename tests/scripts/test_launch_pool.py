"""`scripts/serve`: what its arguments mean to honcho and to the Procfile."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from environment import StepError, link_model
from honcho.environ import expand_processes, parse, parse_procfile
from launch_pool import LaunchPlan, UsageError, check_gateway, check_models, make_plan, prepare, read_env_file

from protocol.address import GatewayLock, prepare_run_dir
from tests.docs.commands import blocks, commands

ROOT = Path(__file__).resolve().parents[2]
PROCFILE = (ROOT / "Procfile").read_text()


def plan(*argv: str, environment: dict[str, str] | None = None, procfile: str = PROCFILE) -> LaunchPlan:
    return make_plan(argv, procfile=procfile, environment=environment or {}, folder=ROOT)


def test_nothing_given_serves_the_demo_model() -> None:
    """One gateway, one worker of each kind, the bundled models."""
    served = plan()
    assert served.concurrency == "gateway=1,chat=1,vision=1,embedding=1"
    assert served.demos == ["chat", "vision", "embedding"]
    assert served.environment() == {
        "CHAT_MODEL": "demo/chat",
        "VISION_MODEL": "demo/vision",
        "EMBEDDING_MODEL": ".models/all-MiniLM-L6-v2",
    }


def test_named_model_workers_and_address_are_passed_on() -> None:
    """What the command line says is what the Procfile gets."""
    flags = ("--only", "chat", "--workers", "chat=3", "--host", "0.0.0.0", "--port", "9000")
    served = plan("--chat", "org/model-4bit", *flags)
    assert (served.concurrency, served.demos) == ("gateway=1,chat=3,vision=0,embedding=0", [])
    assert served.environment() == {"CHAT_MODEL": "org/model-4bit", "POOL_HOST": "0.0.0.0", "POOL_PORT": "9000"}


def test_model_in_the_environment_is_served_when_none_is_named() -> None:
    """`CHAT_MODEL` in .env is no demo; a flag overrides it."""
    environment = {"CHAT_MODEL": "org/one"}
    assert plan("--only", "chat", environment=environment).environment() == {"CHAT_MODEL": "org/one"}
    assert plan("--only", "chat", "--chat", "org/two", environment=environment).environment() == {
        "CHAT_MODEL": "org/two"
    }


def test_local_model_is_found_from_where_the_caller_is(tmp_path: Path) -> None:
    """The pool runs in the project's folder; a relative path is the caller's."""
    (tmp_path / "models").mkdir()
    served = make_plan(["--chat", "models"], procfile=PROCFILE, environment={}, folder=tmp_path)
    assert served.models == {"chat": str(tmp_path / "models")}


def test_new_line_in_the_procfile_is_a_new_kind() -> None:
    """Adding a model is adding a line: the script learns of it from there, and of what is not served, too."""
    assert plan("--vision", "org/v", "--only", "vision").environment() == {"VISION_MODEL": "org/v"}
    fewer = "".join(line for line in PROCFILE.splitlines(keepends=True) if not line.startswith("vision:"))
    assert plan(procfile=fewer).concurrency == "gateway=1,chat=1,embedding=1"
    with pytest.raises(UsageError, match="no line for it, only for chat, embedding"):
        plan("--vision", "org/v", procfile=fewer)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--only", "audio"], "--only: must be of chat, vision, embedding, not 'audio'"),
        (["--workers", "chat=0"], "--workers: must be KIND=N"),
        (["--workers", "chat"], "--workers: must be KIND=N"),
        (["--workers", "gateway=2"], "--workers: must be KIND=N"),
        (["--port", "65536"], "--port: must be a number from 0 (a free one) to 65535"),
        (["--chat", "./missing"], "--chat: there is no "),
        (["--chat"], "--chat: expected one argument"),
        (["--cat", "m"], "unrecognized arguments: --cat m"),
    ],
)
def test_bad_argument_is_named(argv: list[str], says: str) -> None:
    """One line, the flag first."""
    with pytest.raises(UsageError) as caught:
        plan(*argv)
    assert str(caught.value).startswith(says)


def test_workers_of_a_kind_left_out_are_refused() -> None:
    """Contradictions are not guessed at."""
    with pytest.raises(UsageError, match="left out by --only"):
        plan("--only", "chat", "--workers", "vision=2")


def test_script_refuses_before_it_installs_anything() -> None:
    """A wrong flag costs no minutes, and exit code 2."""
    done = subprocess.run([ROOT / "scripts" / "serve", "--port", "m"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("scripts/serve: --port: must be a number")


def test_honcho_gets_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file for honcho is read by honcho as it was meant, also with blanks and quotes in a path."""
    (tmp_path / ".run").mkdir()
    monkeypatch.setattr("launch_pool.ROOT", tmp_path)
    monkeypatch.setattr("launch_pool.ensure", lambda _extras: tmp_path / "python")
    monkeypatch.setattr("launch_pool.check_gateway", lambda _python, _environment: None)
    served = LaunchPlan(workers={"chat": 2}, models={"chat": "/my models/it's"}, host=None, port=8001)
    command = prepare(served, {})
    assert command[1:] == shlex.split("-m honcho -e .env,.run/serve.env -f Procfile start -c gateway=1,chat=2")
    assert parse((tmp_path / ".run" / "serve.env").read_text()) == {
        "CHAT_MODEL": "/my models/it's",
        "POOL_PORT": "8001",
    }


def test_packaged_model_is_linked_to_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.models` holds a link to the package of the environment in use, also after that has moved."""
    monkeypatch.setattr("environment.ROOT", tmp_path)
    for venv in ("one", "two"):
        folder = tmp_path / venv / "lib" / "python3.11" / "site-packages" / "carrier" / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(venv)
        for _ in range(2):
            link_model(tmp_path / venv / "bin" / "python", "carrier/model", ".models/named")
        assert (tmp_path / ".models" / "named" / "config.json").read_text() == venv
    assert [path.name for path in (tmp_path / ".models").iterdir()] == ["named"]
    with pytest.raises(StepError, match="carrier/model is not installed"):
        link_model(tmp_path / "three" / "bin" / "python", "carrier/model", ".models/named")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"POOL_HOST": "0.0.0.0"}, r"--host: 0\.0\.0\.0 is reachable .* say --auth, .* or say --insecure$"),
        ({"POOL_PORT": "{taken}"}, r"--port: \d+ is in use on 127\.0\.0\.1: .*--port \d+$"),
        ({"POOL_HOST": "203.0.113.7"}, r"--host: 203\.0\.113\.7 is (no address of this machine|reachable)"),
        ({"POOL_HOST": "no.such.host.invalid", "POOL_INSECURE": "true"}, "--host: no.such.host.invalid is no address"),
        ({"POOL_TLS_CERT": "/no/cert.pem", "POOL_TLS_KEY": "/no/key.pem"}, "--tls-cert: /no/cert.pem can't be read"),
        ({"POOL_LOG_LEVEL": "loud"}, "POOL_LOG_LEVEL: must be debug"),
    ],
)
def test_gateway_that_could_not_run_is_told_before_any_worker_starts(
    tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    """The last word is what to do, in flags that `scripts/serve` knows."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {name: text.format(taken=taken.getsockname()[1]) for name, text in changes.items()}
        environment = {"PATH": os.environ["PATH"], "POOL_PORT": "0", "POOL_RUN_DIR": str(tmp_path / "run"), **given}
        with pytest.raises(UsageError, match=says):
            check_gateway(Path(sys.executable), environment)


def test_flags_that_are_advised_are_known() -> None:
    """`--auth` and `--insecure` let other machines in, with keys and without."""
    assert plan("--host", "0.0.0.0", "--auth").environment()["POOL_AUTH"] == "true"
    assert plan("--host", "0.0.0.0", "--insecure").environment()["POOL_INSECURE"] == "true"
    for settings in ({"POOL_AUTH": "true"}, {"POOL_INSECURE": "true"}):
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        environment = {"POOL_HOST": "0.0.0.0", "POOL_PORT": "0", "POOL_RUN_DIR": str(folder / "run"), **settings}
        check_gateway(Path(sys.executable), {"PATH": os.environ["PATH"], **environment})
        shutil.rmtree(folder)


def test_second_pool_is_told_of_the_first_before_its_workers_start(tmp_path: Path) -> None:
    """Another port is not enough: its workers would join the first one's gateway."""
    folder = prepare_run_dir(tmp_path / "run")
    lock = GatewayLock(folder)
    environment = {"PATH": os.environ["PATH"], "POOL_PORT": "0", "POOL_RUN_DIR": str(folder)}
    with pytest.raises(UsageError, match=r"another gateway runs in .*POOL_RUN_DIR"):
        check_gateway(Path(sys.executable), environment)
    lock.release()


def test_env_file_is_read_as_honcho_reads_it(tmp_path: Path) -> None:
    """Comments, quotes, blanks around the sign."""
    path = tmp_path / ".env"
    text = "# models\nCHAT_MODEL = org/qwen-3.5 # mine\nPOOL_PORT=9000\nNAME='a b'\n\n"
    path.write_text(text)
    assert read_env_file(path) == parse(text) == {"CHAT_MODEL": "org/qwen-3.5", "POOL_PORT": "9000", "NAME": "a b"}
    assert read_env_file(tmp_path / "none") == {}


def test_procfile_scales_one_model() -> None:
    """`honcho start -c chat=2` is two workers and one gateway; every line replaces its shell."""
    processes = parse_procfile(PROCFILE).processes
    names = [process.name for process in expand_processes(processes, concurrency={"chat": 2})]
    assert names == ["gateway.1", "chat.1", "chat.2", "vision.1", "embedding.1"]
    assert all(command.startswith("exec ") for command in processes.values())


@pytest.mark.parametrize("given", ["", "org/model", "/models/with a blank"])
def test_procfile_passes_the_model_as_one_argument(given: str) -> None:
    """A path with blanks stays one; without `CHAT_MODEL` the demo is served."""
    command = parse_procfile(PROCFILE).processes["chat"].replace("exec scripts/python -m worker", 'exec printf "%s\\n"')
    done = subprocess.run(["sh", "-c", command], env={"CHAT_MODEL": given}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == (given or "demo/chat")


def test_documented_arguments_are_understood() -> None:
    """Each `scripts/serve --…` of README and the page on models."""
    lines = [line for page in ("README.md", "docs/models.md") for block in blocks(page) for line in commands(block)]
    shown = [shlex.split(line)[1:] for line in lines if line.startswith("scripts/serve --")]
    assert len(shown) == 8
    plans = [plan(*argv) for argv in shown]
    assert {model for made in plans for model in made.models.values()} == {
        "mlx-community/Qwen3-0.6B-4bit",
        "mlx-community/Qwen2-VL-2B-Instruct-4bit",
        "BAAI/bge-small-en-v1.5",
    }
    assert plans[3].workers["chat"] == 2


def test_folder_that_is_no_model_ends_the_command_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence that says what it is and what to do; a kind that is not run is not asked after."""
    monkeypatch.setattr("launch_pool.ensure", lambda _extras: Path(sys.executable))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").touch()
    models = {"chat": str(tmp_path)}
    with pytest.raises(UsageError, match=r"PyTorch weights only .*mlx_lm\.convert"):
        prepare(LaunchPlan(workers={"chat": 1}, models=models, host=None, port=None), {})
    check_models(Path(sys.executable), LaunchPlan(workers={"chat": 0}, models=models, host=None, port=None))
