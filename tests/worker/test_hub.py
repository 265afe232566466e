"""One snapshot of a hub's model for all that a run starts, whatever becomes of the hub meanwhile."""

import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import msgspec
import pytest

from protocol.messages import Kind
from tests.support.hub_server import HubServer
from worker import hub
from worker.config import WorkerConfig
from worker.engines.base import EngineLoadError

NAME = HubServer.NAME


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub, and a cache that holds nothing yet."""
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        local = template.replace("https://huggingface.co", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", local)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What is published; one more file each time that it is changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "first"}')
    (folder / "code.py").write_text("raise SystemExit")
    return folder


def settings(tmp_path: Path, **fields: object) -> WorkerConfig:
    run_dir = tmp_path / "run"
    run_dir.mkdir(exist_ok=True)
    return WorkerConfig(model_path=NAME, served_name="m", run_dir=run_dir, **fields)  # type: ignore[arg-type]


def test_a_run_keeps_its_snapshot_when_the_hub_moves_on(server: HubServer, model: Path, tmp_path: Path) -> None:
    """Restarts and replicas that join later load the same, without a question; the next run looks anew."""
    first = server.publish(model)
    config = settings(tmp_path)
    with hub.join_run(config.run_dir):
        folder = hub.local_folder(NAME, config)
        assert (folder.name, hub.commit_of(config)) == (first, first)
        assert not (folder / "code.py").exists()
        second = server.publish(model)
        server.asked.clear()
        with hub.join_run(config.run_dir):
            assert hub.local_folder(NAME, config) == folder
        assert server.asked == []
    with hub.join_run(config.run_dir):
        assert hub.local_folder(NAME, config).name == second


def test_a_restart_needs_no_hub_when_all_was_there_before(server: HubServer, model: Path, tmp_path: Path) -> None:
    """Also the hub's end is nothing to a run."""
    first = server.publish(model)
    config = settings(tmp_path)
    hub.local_folder(NAME, config)
    server.__exit__(None, None, None)
    assert hub.local_folder(NAME, config).name == first


@pytest.mark.parametrize("name", ["v1.0", "commit"])
def test_the_named_revision_is_loaded_when_there_is_a_newer_one(
    server: HubServer, model: Path, tmp_path: Path, name: str
) -> None:
    """A tag, or a commit, of which nobody is asked what it means."""
    old = server.publish(model, "main", "v1.0")
    server.publish(model, "main")
    config = settings(tmp_path, revision=old if name == "commit" else name)
    assert hub.local_folder(NAME, config).name == old
    assert hub.commit_of(config) == old
    assert any("/revision/" in path for path in server.asked) == (name != "commit")


def test_only_the_model_has_the_named_revision_when_something_else_is_of_the_hub(
    server: HubServer, model: Path, tmp_path: Path
) -> None:
    """A draft model, a tokenizer or an adapter of another repository is pinned at its newest."""
    commit = server.publish(model)
    config = WorkerConfig(
        model_path="acme/other", served_name="m", revision="v9", draft_model=NAME, run_dir=tmp_path / "run"
    )
    assert hub.adapter_folder(NAME, config).name == commit


def test_the_error_names_the_setting_when_there_is_no_such_revision(
    server: HubServer, model: Path, tmp_path: Path
) -> None:
    """And nothing is recorded, so that it may be published yet."""
    server.publish(model)
    config = settings(tmp_path, revision="v2")
    with pytest.raises(EngineLoadError, match=r"--revision: acme/tiny has no 'v2'"):
        hub.local_folder(NAME, config)
    commit = server.publish(model, "v2")
    assert hub.local_folder(NAME, config).name == commit


def test_all_load_the_same_when_the_hub_moves_while_they_start(server: HubServer, model: Path, tmp_path: Path) -> None:
    """Whoever is first decides, even if each of them has asked by itself."""
    config = settings(tmp_path)
    commits = [server.publish(model) for _ in range(6)]
    gate = threading.Barrier(len(commits))
    found: list[str] = []

    def start(commit: str) -> None:
        gate.wait()
        found.append(hub._settle(hub._record_of(NAME, config), commit))

    threads = [threading.Thread(target=start, args=(commit,)) for commit in commits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(commits)
    assert set(found) == {hub.local_folder(NAME, config).name}


def test_the_download_goes_on_when_it_was_interrupted(server: HubServer, model: Path, tmp_path: Path) -> None:
    """A snapshot without all of its files is no snapshot; the commit stays."""
    first = server.publish(model)
    config = settings(tmp_path)
    folder = hub.local_folder(NAME, config)
    server.publish(model)
    (folder / "config.json").unlink()
    assert (hub.local_folder(NAME, config) / "config.json").exists()
    assert hub.commit_of(config) == first


def test_a_path_that_is_none_is_no_hub_id_either() -> None:
    """Nobody asks the hub for it."""
    config = WorkerConfig(model_path="/nowhere/at/all", served_name="m")
    with pytest.raises(EngineLoadError, match="there is no such folder"):
        hub.local_folder(config.model_path, config)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", r"acme/gone: there is no such folder here, and no model of that name on the hub"),
        (401, "RepoNotFound", r"a private one needs HF_TOKEN"),
        (403, "GatedRepo", r"acme/gone asks for its terms to be accepted: do so at https://huggingface\.co/acme/gone"),
        (503, "", r"acme/gone: there is no such folder here, and the hub can't be reached: .*503"),
    ],
)
def test_refusal_is_one_sentence_when_the_hub_shows_no_such_model(
    server: HubServer, tmp_path: Path, status: int, code: str, said: str
) -> None:
    """A mistyped name, or a path that is not there and looks like one: what it is, and what to do."""
    server.refused["acme/gone"] = (status, code)
    with pytest.raises(EngineLoadError, match=said) as refusal:
        hub.model_folder(msgspec.structs.replace(settings(tmp_path), model_path="acme/gone"), Kind.CHAT)
    assert "\n" not in str(refusal.value)
    assert "Client Error" not in str(refusal.value)


def test_refusal_is_one_sentence_when_the_hub_is_out_of_reach(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is at the path that the name may have meant."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EngineLoadError, match=r"there is no such folder here, and the hub can't be reached: ") as said:
        hub.model_folder(settings(tmp_path), Kind.CHAT)
    assert "\n" not in str(said.value)


def test_model_without_safetensors_is_named_by_its_hub_id(server: HubServer, model: Path, tmp_path: Path) -> None:
    """Of a repository of GGUF or PyTorch files only the rest is fetched."""
    (model / "pytorch_model.bin").touch()
    server.publish(model)
    with pytest.raises(EngineLoadError, match=r"^acme/tiny has no safetensors weights: .* mlx-community"):
        hub.model_folder(settings(tmp_path), Kind.CHAT)
