"""A stand-in of the Hugging Face Hub's file interface on this machine: repositories, commits, refusals."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

FIRST, SECOND = "1" * 40, "2" * 40
"""Commits, whatever is in them."""


@dataclass
class Hub:
    """Repositories by name (``datasets/user/repo`` for one of a dataset), their revisions and files.

    ``refused`` maps a repository to (status, error code); ``asked`` is every request that came.
    """

    address: str
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(
        self, repository: str, files: dict[str, bytes], commit: str = FIRST, branch: str = "main"
    ) -> None:
        """Make ``commit`` with ``files`` the newest of ``branch``."""
        self.revisions.setdefault(repository, {}).update({branch: commit, commit: commit})
        self.files[repository, commit] = files

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content for a path ``/<repository>/resolve/<revision>/<file>``."""
        self.asked.append(path)
        repository, resolve, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if not resolve:
            return 200, {}, b""
        if repository in self.refused:
            status, code = self.refused[repository]
            return status, {"X-Error-Code": code} if code else {}, b""
        if repository not in self.revisions:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if (commit := self.revisions[repository].get(unquote(revision))) is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if (content := self.files[repository, commit].get(unquote(file))) is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        digest = hashlib.sha256(content).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}, content


@contextmanager
def served(cache: Path) -> Iterator[Hub]:
    """Serve an empty hub, with ``cache`` in place of the user's, and no token."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._reply(b"")

        def do_GET(self) -> None:
            self._reply(None)

        def _reply(self, content: bytes | None) -> None:
            status, headers, whole = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole if content is None else content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
