"""Models of a hub: which snapshot of each one a run of the pool serves.

A hub id names something that may change. So it is resolved to a commit once in a run, which is recorded in the run
directory. All replicas and all restarts load that snapshot; once it is there, nobody asks the hub anything. A run
begins with the first supervisor in the run directory and lasts until none is left.
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import quote

from protocol.messages import Kind
from worker.config import HUB_ID, WorkerConfig
from worker.engines.base import EngineLoadError
from worker.model_folder import check_folder

COMMIT = re.compile(r"[0-9a-f]{40}")
FOLDER, LOCK = "revisions", "revisions.lock"
MODEL_FILES = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja")
"""What mlx-lm fetches of a model, but for code, which is never run."""
EMBEDDER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
ADAPTER_FILES = ("*.json", "adapter*.safetensors")


def join_run(run_dir: Path) -> IO[str]:
    """Take part in the run of that directory for as long as the returned file is open; alone in it, begin a new one.

    Raises `OSError`.
    """
    folder = run_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = (run_dir / LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        for record in folder.iterdir():
            record.unlink()
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def local_folder(source: str, config: WorkerConfig, files: Sequence[str] = MODEL_FILES) -> Path:
    """Return where a model, tokenizer or adapter is: the path itself, else the run's snapshot, downloaded if need be.

    Raises `EngineLoadError`.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(source):
        raise EngineLoadError(f"{source}: there is no such folder, and it can't be a hub id (OWNER/NAME)")
    # Half a second to import, and of no use to those whose models are folders.
    from httpx import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionResolutionError

    try:
        return _fetched(source, config, files)
    except GatedRepoError:
        page = f"https://huggingface.co/{source}"
        raise EngineLoadError(
            f"{source} asks for its terms to be accepted: do so at {page}, and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise EngineLoadError(
            f"{source}: there is no such folder here, and no model of that name on the hub that may be read "
            "(a private one needs HF_TOKEN)"
        ) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "nothing")
        raise EngineLoadError(f"{source} can't be fetched now: the hub answered {status}") from None
    except (OSError, HTTPError, RevisionResolutionError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            # A full disk, above all.
            raise EngineLoadError(f"{source} can't be fetched: {reason}") from None
        raise EngineLoadError(
            f"{source}: there is no such folder here, and the hub can't be reached: {reason}"
        ) from None


def _fetched(source: str, config: WorkerConfig, files: Sequence[str]) -> Path:
    """Return the run's snapshot, downloaded if need be. Raises `EngineLoadError`, and what `huggingface_hub` raises."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    record = _record_of(source, config)
    commit = _read(record) or _settle(record, _resolve(source, _asked(source, config)))
    # Only once all of it has been here: a download that was interrupted goes on.
    whole = record.with_name(f"{record.name}.whole")
    if whole.exists():
        try:
            return Path(snapshot_download(source, revision=commit, allow_patterns=[*files], local_files_only=True))
        except LocalEntryNotFoundError:
            whole.unlink(missing_ok=True)
    found = Path(snapshot_download(source, revision=commit, allow_patterns=[*files]))
    whole.touch(mode=0o600)
    return found


def adapter_folder(source: str, config: WorkerConfig) -> Path:
    """Resolve an adapter likewise. A path that leads nowhere is left to whoever reads it, and names the adapter."""
    return local_folder(source, config, ADAPTER_FILES) if HUB_ID.fullmatch(source) else Path(source)


def model_folder(config: WorkerConfig, kind: Kind) -> Path:
    """Return the folder of the model, fetched if need be. Raises `EngineLoadError` where it can't be of that kind."""
    files = EMBEDDER_FILES if kind is Kind.EMBEDDING else MODEL_FILES
    path = local_folder(config.model_path, config, files)
    source = "" if Path(config.model_path).expanduser() == path else config.model_path
    check_folder(path, kind, tokenizer=config.tokenizer_path is None, source=source)
    return path


def commit_of(config: WorkerConfig) -> str:
    """Return the commit of the hub's snapshot that a loaded model came from; empty: from a folder."""
    return "" if Path(config.model_path).expanduser().exists() else _read(_record_of(config.model_path, config))


def _asked(source: str, config: WorkerConfig) -> str:
    """Return the revision to resolve: that of the model; for what comes beside it, its newest."""
    return config.revision if source == config.model_path else ""


def _record_of(source: str, config: WorkerConfig) -> Path:
    asked = _asked(source, config) or "main"
    return config.run_dir / FOLDER / quote(f"{source}@{asked}", safe="@")


def _resolve(source: str, asked: str) -> str:
    """Return the commit that a revision means now."""
    if COMMIT.fullmatch(asked):
        return asked
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return str(HfApi().resolve_revision(source, revision=asked or None).resolved)
    except RevisionNotFoundError:
        raise EngineLoadError(f"--revision: {source} has no {asked or 'main'!r}") from None


def _read(record: Path) -> str:
    try:
        commit = record.read_text()
    except FileNotFoundError:
        return ""
    if not COMMIT.fullmatch(commit):
        raise EngineLoadError(f"{record} holds no commit; remove it")
    return commit


def _settle(record: Path, commit: str) -> str:
    """Record a commit, unless another process was first; returns the one that counts."""
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=record.parent) as draft:
        draft.write(commit)
        draft.flush()
        with contextlib.suppress(FileExistsError):
            os.link(draft.name, record)
    return _read(record)
