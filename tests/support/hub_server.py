"""A fake Hub with what a data set's upload needs: repositories, branches, LFS, commits, tokens, faults."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writer00000000000000000000000000000", "hf_reader00000000000000000000000000000"
"""The first may write in OWNERS, the second nowhere."""
OWNERS = ("me", "lab")


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{".gitattributes": b"*"}]})
    """Branch → its commits: all files of each."""
    messages: list[str] = field(default_factory=list)
    ignores: str = ""
    """Its .gitignore: a single name."""

    def sha(self, branch: str) -> str:
        return hashlib.sha1(f"{branch} {len(self.branches[branch])}".encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes]:
        for branch, commits in self.branches.items():
            if revision in {branch, self.sha(branch)}:
                return commits[-1]
        raise KeyError(revision)


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class FakeHub(http.server.ThreadingHTTPServer):
    """`repos` by OWNER/NAME; `log`: every request as (method, path); `faults`: a part of a path → the status it gets;
    `on_request`: called with each request's path, before it is answered."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.faults: dict[str, int] = {}
        self.on_request: Callable[[str], object] = lambda path: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.rfile.read(length)
        self.server.log.append((self.command, path))
        self.server.on_request(path)
        try:
            if fault := next((status for part, status in self.server.faults.items() if part in path), None):
                raise Refused(fault, message="as the test wants it")
            answer, status, headers = self._route(path, body), 200, {}
        except Refused as refused:
            answer, status = {"error": refused.message}, refused.status
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
        out = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(out)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(out)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 — the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _token(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in {WRITER, READER}:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return token

    def _may_write(self, owner: str) -> None:
        if self._token() != WRITER or owner not in OWNERS:
            raise Refused(403, message=f"You don't have the rights to create a dataset under the namespace {owner}")

    def _route(self, path: str, body: bytes) -> Any:
        if path.startswith("/lfs/"):  # the storage: signed addresses, no token
            self.server.blobs[path.removeprefix("/lfs/")] = body
            return {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if batch := re.fullmatch(r"/datasets/(\w+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            self._repo(batch[1], write=True)
            return {"objects": [self._object(asked) for asked in json.loads(body)["objects"]]}
        match = re.fullmatch(r"/api/datasets/(\w+/[\w.-]+)(?:/([\w-]+)/(.+))?", path)
        if match is None:
            raise Refused(404, "EntryNotFound", "no such address here")
        name, what, revision = match.groups()
        if what is None or what == "revision":
            return self._info(name, revision or "main")
        actions = {
            "preupload": self._preupload,
            "commit": self._commit,
            "paths-info": self._paths,
            "branch": self._branch,
        }
        repo = self._repo(name, write=what != "paths-info")
        return actions[what](repo, name, revision, body)

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        token = self._token()
        if name not in self.server.repos or (self.server.repos[name].private and token != WRITER):
            raise Refused(404, "RepoNotFound", "Repository not found")
        if write:
            self._may_write(name.partition("/")[0])
        return self.server.repos[name]

    def _create(self, asked: dict[str, Any]) -> Any:
        self._may_write(asked["organization"])
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repos:
            raise Refused(409, message="You already created this dataset repo")
        assert asked["type"] == "dataset"
        self.server.repos[name] = Repo(private=asked.get("visibility") == "private")
        return {"url": f"{self.server.url}/datasets/{name}"}

    def _info(self, name: str, revision: str) -> Any:
        repo = self._repo(name)
        if revision not in repo.branches:
            raise Refused(404, "RevisionNotFound", "no such branch")
        siblings = [{"rfilename": path} for path in repo.at(revision)]
        return {"id": name, "private": repo.private, "sha": repo.sha(revision), "siblings": siblings}

    def _preupload(self, repo: Repo, name: str, revision: str, body: bytes) -> Any:
        asked = json.loads(body)
        ignores = asked.get("gitIgnore") or repo.ignores
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                    "shouldIgnore": bool(ignores) and ignores in file["path"],
                }
                for file in asked["files"]
            ]
        }

    def _object(self, asked: dict[str, Any]) -> Any:
        answer = {"oid": asked["oid"], "size": asked["size"]}
        href = f"{self.server.url}/lfs/{asked['oid']}"
        return answer if asked["oid"] in self.server.blobs else {**answer, "actions": {"upload": {"href": href}}}

    def _commit(self, repo: Repo, name: str, revision: str, body: bytes) -> Any:
        lines = [json.loads(line) for line in body.splitlines()]
        header, files = lines[0]["value"], dict(repo.at(revision))
        if header.get("parentCommit", repo.sha(revision)) != repo.sha(revision):
            raise Refused(412, message="the branch has moved")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        repo.branches[revision].append(files)
        repo.messages.append(header["summary"])
        oid = repo.sha(revision)
        return {"commitUrl": f"{self.server.url}/datasets/{name}/commit/{oid}", "commitOid": oid}

    def _paths(self, repo: Repo, name: str, revision: str, body: bytes) -> Any:
        files = repo.at(revision)
        return [_path_info(path, files[path]) for path in parse_qs(body.decode())["paths"] if path in files]

    def _branch(self, repo: Repo, name: str, revision: str, body: bytes) -> Any:
        if revision in repo.branches:
            raise Refused(409, message="Reference already exists")
        repo.branches[revision] = list(repo.branches["main"])
        return {}


def _is_large(path: str, size: int) -> bool:
    return path.endswith(".parquet") or size > 10_000_000


def _path_info(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    info: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if _is_large(path, len(content)):
        info["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return info
