"""A model hub on loopback, as far as huggingface_hub asks: revisions, listings, files. Notes what it was asked for."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit


class HubServer:
    """One repository, `acme/tiny`; `publish` makes a commit of a folder and moves branches and tags to it."""

    NAME = "acme/tiny"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refused: dict[str, tuple[int, str]] = {}
        """Status and code of the hub's own for repositories that it does not show."""
        self._commits: dict[str, Path] = {}
        self._names: dict[str, str] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.serve(self)

            def do_HEAD(self) -> None:
                hub.serve(self)

            def log_message(self, *_arguments: object) -> None:
                """Nothing is written."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, folder: Path, *names: str) -> str:
        """A new commit with the files of `folder`, which branches or tags (`main`) mean from now on; its hash."""
        commit = hashlib.sha1(f"{folder} {len(self._commits)}".encode(), usedforsecurity=False).hexdigest()
        self._commits[commit] = folder
        self._names.update(dict.fromkeys(names or ("main",), commit))
        return commit

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        for name, (status, code) in self.refused.items():
            if name in path:
                self._refuse(request, status, code)
                return
        match path.removeprefix(f"/api/models/{self.NAME}").strip("/").partition("/"):
            case (what, _, revision) if path.startswith("/api/") and what in ("", "revision"):
                commit = self._commit(revision or "main")
                self._answer(request, None if commit is None else {"id": self.NAME, "sha": commit, "siblings": []})
            case ("tree", _, revision):
                self._answer(request, self._listing(str(self._commit(revision))))
            case _:
                self._send_file(request, path)

    def _commit(self, revision: str) -> str | None:
        return revision if revision in self._commits else self._names.get(revision)

    def _listing(self, commit: str) -> list[dict[str, object]]:
        files = [file for file in sorted(self._commits[commit].iterdir()) if file.is_file()]
        return [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)} for f in files]

    def _send_file(self, request: BaseHTTPRequestHandler, path: str) -> None:
        commit, _, name = path.removeprefix(f"/{self.NAME}/resolve/").partition("/")
        file = self._commits[commit] / name
        request.send_response(200)
        request.send_header("ETag", f'"{_etag(file)}"')
        request.send_header("X-Repo-Commit", commit)
        request.send_header("Content-Length", str(file.stat().st_size))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(file.read_bytes())

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, body: object) -> None:
        if body is None:
            HubServer._refuse(request, 404, "RevisionNotFound")
            return
        data = json.dumps(body).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    @staticmethod
    def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
