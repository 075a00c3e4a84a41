"""A local stand-in for the Hugging Face Hub on 127.0.0.1: the part of its HTTP interface needed for reading.

GET  /api/{models,datasets}/USER/REPO[/revision/REV]    commit of a revision
GET  /api/.../tree/REV/PATH?recursive=...               files and folders
POST /api/.../paths-info/REV                            the same, for given paths
GET  /[datasets/]USER/REPO/resolve/REV/PATH             bytes, whole or from a Range on
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMITS = ("1" * 40, "2" * 40)
TOKEN = "hf_secret"


@dataclass
class Repository:
    """One repository: the files of each commit, and simulated faults."""

    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {commit: {} for commit in COMMITS})
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMITS[0]})
    private: bool = False
    cut_at: int = 0  # the connection ends after this many bytes of a file
    wrong_size: int = 0  # added to the sizes that are stated
    wrong_hash: bool = False
    escape: str = ""  # listed instead of the file's own name


class Hub:
    """Repositories by kind and name (`models/USER/REPO`), and the requests that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.address = ""

    def repository(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        made = self.repositories[name] = Repository(**options)
        made.files[COMMITS[0]].update(files)
        return made


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Runs while in use, and is the hub of this process. Skips, saying so, without the packages."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra 'hub')")
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    from huggingface_hub import constants

    values = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
    }
    with mock.patch.multiple(constants, **values), mock.patch.dict("os.environ", {"HF_ENDPOINT": hub.address}):
        yield hub
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        self._route(b"")

    def do_HEAD(self) -> None:
        self._route(b"")

    def do_POST(self) -> None:
        self._route(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _route(self, body: bytes) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.hub.requests.append((self.command, url.path))
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        found = self.hub.repositories.get("/".join([kind, *parts[:2]]))
        if found is None:
            return self._error(404, "RepoNotFound")
        if found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "RepoNotFound" if is_api else "")
        what, revision, *inside = (*parts[2:], "revision", "main")[: max(2, len(parts) - 2)]
        commit = found.branches.get(revision, revision)
        if commit not in found.files:
            return self._error(404, "RevisionNotFound")
        path = "/".join(inside)
        if what == "resolve":
            return self._file(found, commit, path)
        if what == "revision":
            return self._json({"id": "/".join(parts[:2]), "sha": commit, "private": found.private, "tags": [],
                               "downloads": 0, "likes": 0, "siblings": []})  # fmt: skip
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) if b"=" in body else json.loads(body)["paths"]
            return self._json([entry for entry in _entries(found, commit, "", deep=True) if entry["path"] in asked])
        deep = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
        entries = _entries(found, commit, path, deep=deep)
        return self._json(entries) if entries else self._error(404, "EntryNotFound")

    def _file(self, found: Repository, commit: str, path: str) -> None:
        content = found.files[commit].get(path)
        if content is None:
            return self._error(404, "EntryNotFound")
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(start) : int(end) + 1 if end else None]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if found.cut_at:
            self.wfile.write(part[: found.cut_at])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        self.wfile.write(part)
        return None

    def _json(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entries(found: Repository, commit: str, path: str, *, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{path}/" if path else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, content in found.files[commit].items():
        if not name.startswith(prefix):
            continue
        rest = name[len(prefix) :].split("/")
        for depth in range(1, len(rest)):
            folder = prefix + "/".join(rest[:depth])
            if deep or depth == 1:
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40}
        if deep or len(rest) == 1:
            digest = hashlib.sha256(b"other" if found.wrong_hash else content).hexdigest()
            size = len(content) + found.wrong_size
            entries[name] = {"type": "file", "path": found.escape or name, "size": size, "oid": "0" * 40,
                             "lfs": {"oid": digest, "size": size, "pointerSize": 134}}  # fmt: skip
    return list(entries.values())
