"""A repository host on this machine -> what the client of the Hub asks of the real one, no more.

Large files (`.safetensors`) go the way of Git LFS, as there; everything else is in the commit. A test plays trouble
with `status`, `is_full`, tokens, and repositories that are private or gated.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """revisions: for every branch, tag and commit, its files."""

    private: bool = False
    gated: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.revisions["main"]

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        self.messages.append(message)
        commit = hashlib.sha1(f"{len(self.messages)}".encode()).hexdigest()
        self.revisions |= {"main": files, commit: files}
        return commit

    def commit_of(self, revision: str) -> str:
        """The newest commit with the files of a revision."""
        files = self.revisions[revision]
        return [name for name, there in self.revisions.items() if there is files and len(name) == 40][-1]


class StandIn:
    """tokens: for every token, whether it may write. status: what every request is answered with, if not None.

    is_full: large files are refused.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens = {"hf_writes": True, "hf_reads": False}
        self.status: int | None = None
        self.is_full = False
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, repo_id: str, files: dict[str, bytes], **kind: Any) -> Repository:
        self.repositories[repo_id] = repository = Repository(**kind)
        repository.commit(files)
        return repository

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *given: Any) -> None:
        pass

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if path == "/api/agent-harnesses":  # which the client asks for now and then
                raise _Refusal(404)
            if self.hub.status is not None:
                raise _Refusal(self.hub.status)
            self._check_token()
            for command, pattern, answer in _ROUTES:
                if command == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, path)):
                    return answer(self, body, *found.groups())
            raise AssertionError(f"The stand-in knows no {self.command} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, b"{}", {name: value for name, value in headers.items() if value})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    # --- who may do what ---

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _check_token(self) -> None:
        if self._token() and self._token() not in self.hub.tokens:
            raise _Refusal(401, message="Invalid credentials in Authorization header")

    def _check_may_write(self) -> None:
        if not self._token():
            raise _Refusal(401, message="Invalid username or password.")
        if not self.hub.tokens[self._token()]:
            raise _Refusal(403, message="Forbidden")

    def _repository(self, repo_id: str, revision: str | None = None) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._token()):
            raise _Refusal(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        if repository.gated:
            raise _Refusal(403, "GatedRepo", "Access to this model is restricted")
        if revision is not None and revision not in repository.revisions:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    # --- what is asked ---

    def _create(self, body: bytes) -> None:
        self._check_may_write()
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.hub.repositories:
            return self._send(409, json.dumps({"url": f"{self.hub.url}/{repo_id}"}).encode())
        self.hub.add(repo_id, {".gitattributes": b""}, private=asked.get("visibility") == "private")
        self._json({"url": f"{self.hub.url}/{repo_id}"})

    def _info(self, body: bytes, repo_id: str, revision: str | None) -> None:
        revision = revision or "main"
        repository = self._repository(repo_id, revision)
        names = [{"rfilename": name} for name in repository.revisions[revision]]
        commit = repository.commit_of(revision)
        self._json({"id": repo_id, "sha": commit, "private": repository.private, "siblings": names})

    def _validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, repo_id: str) -> None:
        self._check_may_write()
        self._repository(repo_id)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, body: bytes, repo_id: str) -> None:
        self._check_may_write()
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/large/{wanted['oid']}", "header": {}}}}
            for wanted in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _large(self, body: bytes, oid: str) -> None:
        if self.hub.is_full:
            raise _Refusal(413)
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._send(200, b"")

    def _commit(self, body: bytes, repo_id: str) -> None:
        self._check_may_write()
        repository = self._repository(repo_id)
        files, message = dict(repository.files), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del files[value["path"]]
        commit = repository.commit(files, message)
        self._json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit})

    def _resolve(self, body: bytes, repo_id: str, revision: str, name: str) -> None:
        repository = self._repository(repo_id, revision)
        commit = {"X-Repo-Commit": repository.commit_of(revision)}
        content = repository.revisions[revision].get(name)
        if content is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        self._send(200, content, commit | {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})


_ID = r"([^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("GET", rf"/api/models/{_ID}(?:/revision/(.+))?", _Handler._info),
    ("POST", rf"/api/models/{_ID}/preupload/main", _Handler._preupload),
    ("POST", rf"/api/models/{_ID}/commit/main", _Handler._commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/large/(\w+)", _Handler._large),
    ("GET", rf"/{_ID}/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", _Handler._resolve),
)
