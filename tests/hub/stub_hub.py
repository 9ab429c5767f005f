"""A Hub on the loopback address: the requests of an upload and of a download, held to the protocol.

What a commit names must have arrived whole: an LFS object whose SHA-256 is another is refused, a
commit that names a missing one too, and a refused commit changes nothing. Faults are put in by
``fail``.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import yaml

TOKEN = "hf_MARKERmarkerMARKERmarker0123456789"


class Repo:
    """A model's repository: commits from first to last, and the large objects that have arrived."""

    def __init__(self, private: bool, card: dict[str, Any] | None = None) -> None:
        self.private, self.card = private, card or {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[dict[str, bytes]] = [{}]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def sha(self, files: dict[str, bytes]) -> str:
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.files
        return next((f for f in self.commits if self.sha(f) == revision), None)


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: "StubHub"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802 (http.server's names)
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _handle(self) -> None:
        hub, length = self.server, int(self.headers.get("Content-Length") or 0)
        path = unquote(urlparse(self.path).path)
        hub.seen.append((self.command, path))
        fault = hub.take_fault(self.command, path)
        if fault == "cut":
            self.rfile.read(length // 2)
            return
        body = self.rfile.read(length)
        if callable(fault):
            fault()
        if isinstance(fault, tuple):
            return self._reply(*fault)
        answer = self._answer(path, body)
        if fault != "lost":
            self._reply(*answer)

    def _reply(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body if body else {}).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(raw))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _answer(self, path: str, body: bytes) -> tuple[Any, ...]:
        hub = self.server
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer and bearer not in hub.tokens:
            return 401, {"error": "Invalid credentials in Authorization header"}
        for method, pattern, handle in ROUTES:
            if self.command in method.split() and (found := re.fullmatch(pattern, path)):
                asked = found.groupdict()
                writes = self.command in ("POST", "PUT") and "signed" not in asked
                if writes and not bearer:
                    return 401, {"error": "Please log in"}
                if writes and not hub.tokens[bearer]:
                    return 403, {"error": "You have read access only"}
                repo = hub.repos.get(asked.get("id", ""))
                hidden = repo is None or repo.private and not bearer and "signed" not in asked
                if "id" in asked and hidden:
                    status = 404 if bearer else 401
                    return (
                        status,
                        {"error": "Repository not found"},
                        {"X-Error-Code": "RepoNotFound"},
                    )
                return handle(hub, repo, asked, body)
        return 404, {"error": f"no route {self.command} {path}"}


Asked = dict[str, str]


def create(hub: "StubHub", repo: Any, asked: Asked, body: bytes) -> tuple[Any, ...]:
    wish = json.loads(body)
    name = f"{wish['organization']}/{wish['name']}"
    if name in hub.repos:
        return 409, {"error": "You already created this model repo"}
    hub.repos[name] = Repo(wish.get("visibility") == "private")
    return 200, {"url": f"{hub.url}/{name}"}


def info(hub: "StubHub", repo: Repo, asked: Asked, body: bytes) -> tuple[Any, ...]:
    files = repo.at(asked.get("revision") or "main")
    if files is None:
        return 404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"}
    siblings = []
    for name, content in files.items():
        row: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha(content)}
        if is_large(name):
            sha = hashlib.sha256(content).hexdigest()
            row |= {
                "blobId": "0" * 40,
                "lfs": {"size": len(content), "sha256": sha, "pointerSize": 134},
            }
        siblings.append(row)
    return 200, {
        "id": asked["id"],
        "modelId": asked["id"],
        "sha": repo.sha(files),
        "private": repo.private,
        "siblings": siblings,
        "tags": [],
        "cardData": repo.card,
    }


def validate(hub: "StubHub", repo: Any, asked: Asked, body: bytes) -> tuple[Any, ...]:
    data = yaml.safe_load(json.loads(body)["content"].split("---")[1])
    if not isinstance(data, dict) or not re.fullmatch("[a-z0-9.-]+", data.get("license", "")):
        return 400, {"errors": [{"message": "license must be a license's short name"}]}
    return 200, {"errors": [], "warnings": []}


def preupload(hub: "StubHub", repo: Repo, asked: Asked, body: bytes) -> tuple[Any, ...]:
    rows = []
    for file in json.loads(body)["files"]:
        row = {
            "path": file["path"],
            "shouldIgnore": False,
            "uploadMode": "lfs" if is_large(file["path"]) else "regular",
        }
        if (there := repo.files.get(file["path"])) is not None:
            large = is_large(file["path"])
            row["oid"] = hashlib.sha256(there).hexdigest() if large else git_sha(there)
        rows.append(row)
    return 200, {"files": rows}


def batch(hub: "StubHub", repo: Repo, asked: Asked, body: bytes) -> tuple[Any, ...]:
    objects = []
    for wish in json.loads(body)["objects"]:
        row: dict[str, Any] = {"oid": wish["oid"], "size": wish["size"]}
        if wish["oid"] not in repo.objects:
            href = f"{hub.url}/storage/{asked['id']}/{wish['oid']}?X-Signature=SIGNED"
            row["actions"] = {
                "upload": {"href": href},
                "verify": {"href": f"{hub.url}/{asked['id']}.git/info/lfs/objects/verify"},
            }
        objects.append(row)
    return 200, {"transfer": "basic", "objects": objects}


def put(hub: "StubHub", repo: Repo, asked: Asked, body: bytes) -> tuple[Any, ...]:
    if hashlib.sha256(body).hexdigest() != asked["signed"]:
        return 400, {"error": "the content is not what its name says"}
    repo.objects[asked["signed"]] = body
    return (200,)


def verify(hub: "StubHub", repo: Repo, asked: Asked, body: bytes) -> tuple[Any, ...]:
    wish = json.loads(body)
    good = len(repo.objects.get(wish["oid"], b"")) == wish["size"]
    return (200,) if good else (404, {"error": "no such object"})


def commit(hub: "StubHub", repo: Repo, asked: Asked, body: bytes) -> tuple[Any, ...]:
    header, *lines = [json.loads(line) for line in body.splitlines()]
    if header["key"] != "header" or not header["value"]["summary"] or not lines:
        return 400, {"error": "a commit has a header and files"}
    files = dict(repo.files)
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"], validate=True)
        elif line["key"] == "lfsFile" and len(repo.objects.get(value["oid"], "")) == value["size"]:
            files[value["path"]] = repo.objects[value["oid"]]
        else:
            return 400, {"error": f"cannot {line['key']} {value}"}
    repo.commits.append(files)
    oid = repo.sha(files)
    return 200, {"commitUrl": f"{hub.url}/{asked['id']}/commit/{oid}", "commitOid": oid}


def resolve(hub: "StubHub", repo: Repo, asked: Asked, body: bytes) -> tuple[Any, ...]:
    files = repo.at(asked["revision"])
    if files is None or asked["file"] not in files:
        missing = "RevisionNotFound" if files is None else "EntryNotFound"
        return 404, {"error": missing}, {"X-Error-Code": missing}
    content = files[asked["file"]]
    return 200, content, {"ETag": f'"{git_sha(content)}"', "X-Repo-Commit": repo.sha(files)}


ID = r"(?P<id>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., tuple[Any, ...]]]] = [
    ("GET", rf"/api/models/{ID}(/revision/(?P<revision>[^/]+))?", info),
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("POST", rf"/api/models/{ID}/preupload/main", preupload),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", batch),
    ("PUT", rf"/storage/{ID}/(?P<signed>[0-9a-f]{{64}})", put),
    ("POST", rf"/{ID}\.git/info/lfs/objects/verify", verify),
    ("POST", rf"/api/models/{ID}/commit/main", commit),
    ("GET HEAD", rf"/{ID}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", resolve),
]


class StubHub(ThreadingHTTPServer):
    """The server; ``tokens`` says which may write."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.tokens = {TOKEN: True}
        self.repos: dict[str, Repo] = {}
        self.seen: list[tuple[str, str]] = []
        self.faults: list[list[Any]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client went away, as some tests mean it to

    def add(self, repo_id: str, folder: Path, card: dict[str, Any] | None = None) -> str:
        """A public model with the folder's files; returns its commit."""
        repo = self.repos[repo_id] = Repo(False, card)
        repo.commits.append({p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()})
        return repo.sha(repo.files)

    def fail(self, method: str, pattern: str, fault: Any, times: int = 1) -> None:
        """The next such requests fail.

        Args:
            method, pattern: which; the pattern is searched for in the path.
            fault: (status, body, headers); "cut": half of the body is read; "lost": all is done,
                but the answer is lost; or something to be called first.
            times: how often.
        """
        self.faults += [[method, pattern, fault] for _ in range(times)]

    def take_fault(self, method: str, path: str) -> Any:
        for row in self.faults:
            if row[0] == method and re.search(row[1], path):
                self.faults.remove(row)
                return row[2]
        return None

    def writes(self) -> list[str]:
        """The writing requests so far, in words."""
        return [f"{method} {path}" for method, path in self.seen if method in ("POST", "PUT")]


@contextmanager
def serving() -> Iterator[StubHub]:
    """A stub that answers until the end of the block."""
    hub = StubHub()
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
