"""A Hugging Face Hub of our own on 127.0.0.1: repositories, commits, LFS, tags and downloads, and what goes wrong.

It speaks as much of the Hub's HTTP as huggingface_hub needs for `create_commit`, `create_tag`, `list_repo_tree`,
`hf_hub_download` and `snapshot_download`. `LoopbackHub.fail` plans faults; each counts how often it really struck.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopbackSecret0123456789"
READ_ONLY_TOKEN = "hf_onlyForReading987654321"
PAGE = 1000
MOST_BYTES_IN_A_COMMIT = 10 << 20

Files = dict[str, tuple[bytes, bool]]  # path -> content, whether it is in LFS


def commit_id(*what: object) -> str:
    return hashlib.sha1(repr(what).encode()).hexdigest()


@dataclass
class Repo:
    """One repository: commits by id, what the refs mean, and who may see it."""

    commits: dict[str, Files]
    branches: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def head(self) -> str:
        return self.branches["main"]

    @property
    def files(self) -> Files:
        return self.commits[self.head]

    def find(self, revision: str) -> str | None:
        known = self.branches.get(revision) or self.tags.get(revision)
        return known or (revision if revision in self.commits else None)

    def commit(self, files: Files, message: str = "") -> str:
        oid = commit_id(len(self.commits), sorted(files))
        self.commits[oid] = files
        self.messages[oid] = message
        self.branches["main"] = oid
        return oid

    def put(self, **files: str | bytes | None) -> str:
        """A commit as someone else makes it on the web page; None removes."""
        after = dict(self.files)
        for path, data in files.items():
            if data is None:
                del after[path]
            else:
                after[path] = (data.encode() if isinstance(data, str) else data, False)
        return self.commit(after, "by hand")


@dataclass
class Fault:
    """Answers `times` requests that fit with a status, or cuts their connection; `hits` counts.

    `cut` closes after half of the request's body was read, `cut-after` when the work was done, and before the answer;
    `cut-answer` in the middle of the answer. `do` is done first.
    """

    method: str
    path: str
    what: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    do: Callable[[], object] | None = None
    hits: int = 0

    def fits(self, method: str, path: str) -> bool:
        return self.hits < self.times and method == self.method and bool(re.search(self.path, path))


class LoopbackHub:
    """The server and what it holds; use as `with LoopbackHub.running() as hub`."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.url = ""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["LoopbackHub"]:
        hub = cls()
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def fail(self, method: str, path: str, what: int | str, times: int = 1, **more: Any) -> Fault:
        fault = Fault(method, path, what, times, **more)
        self.faults.append(fault)
        return fault

    def make(self, repo_id: str, repo_type: str = "dataset", **options: Any) -> Repo:
        start = commit_id("first", repo_id)
        files: Files = {
            ".gitattributes": (b"*.parquet filter=lfs diff=lfs merge=lfs -text\n", False)
        }
        repo = Repo({start: files}, {"main": start}, **options)
        self.repos[(repo_type, repo_id)] = repo
        return repo

    def repo(self, repo_id: str, repo_type: str = "dataset") -> Repo:
        return self.repos[(repo_type, repo_id)]

    def seen(self, pattern: str) -> list[str]:
        return [one for one in self.requests if re.search(pattern, one)]


class Refusal(Exception):
    """An answer that is no success, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str = "", **said: str) -> None:
        self.status, self.message, self.code, self.said = status, message, code, said


class Cut(Exception):
    """The connection ends here."""


class Handler(BaseHTTPRequestHandler):
    """Each request: a planned fault, or what the Hub would do."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self) -> None:
        hub, address = self.hub, urlsplit(self.path)
        path = unquote(address.path)
        with hub.lock:
            hub.requests.append(f"{self.command} {path}")
            fault = next((one for one in hub.faults if one.fits(self.command, path)), None)
            if fault is not None:
                fault.hits += 1
                if fault.do is not None:
                    fault.do()
        try:
            if fault is not None and fault.what == "cut":
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                raise Cut
            body = self.body()
            if fault is not None and isinstance(fault.what, int) and fault.what >= 400:
                self.answer(fault.what, fault.body.encode(), fault.headers)
                return
            with hub.lock:
                status, data, headers = self.route(path, body)
            if fault is not None and fault.what == "cut-after":
                raise Cut
            is_half = fault is not None and fault.what == "cut-answer"
            self.answer(status, data, headers, is_half=is_half)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            said = {"error": refusal.message, **refusal.said}
            if fault is not None and fault.what == "cut-after":
                self.cut()
            else:
                self.answer(refusal.status, json.dumps(said).encode(), headers)
        except Cut:
            self.cut()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(
        self, status: int, data: bytes, headers: dict[str, str], *, is_half: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if is_half else data)
        if is_half:
            raise Cut

    # --- what it knows to do ---

    def route(self, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        routes: list[tuple[str, Callable[..., Any]]] = [
            (r"POST /api/repos/create", self.create),
            (r"POST /api/validate-yaml", lambda _: {"errors": [], "warnings": []}),
            (r"POST /api/(\w+)s/([^/]+/[^/]+)/preupload/(\w+)", self.preupload),
            (r"POST /api/(\w+)s/([^/]+/[^/]+)/commit/(\w+)", self.commit),
            (r"POST /api/(\w+)s/([^/]+/[^/]+)/tag/(\w+)", self.tag),
            (r"POST (?:/(dataset)s)?/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"PUT /lfs/(\w+)", self.upload),
            (r"POST /lfs/verify", lambda _: {}),
            (r"GET /api/(\w+)s/([^/]+/[^/]+)/refs", self.refs),
            (r"GET /api/(\w+)s/([^/]+/[^/]+)/revision/(.+)", self.info),
            (r"GET /api/(\w+)s/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
            (r"GET /api/(\w+)s/([^/]+/[^/]+)", self.info),
            (r"(?:GET|HEAD) (?:/(dataset)s)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ]
        for pattern, act in routes:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found is not None:
                given = body if self.command in ("POST", "PUT") else None
                done = act(*found.groups(), given) if given is not None else act(*found.groups())
                if isinstance(done, tuple):
                    return done
                return 200, json.dumps(done).encode(), {"Content-Type": "application/json"}
        raise Refusal(404, f"the loopback Hub does not know {self.command} {path}")

    def who(self) -> str:
        said = self.headers.get("Authorization", "")
        return TOKEN if said.startswith("Basic ") else said.removeprefix("Bearer ")

    def find(self, kind: str | None, repo_id: str, *, writes: bool = False) -> Repo:
        repo = self.hub.repos.get((kind or "model", repo_id))
        who = self.who()
        if who and who not in (TOKEN, READ_ONLY_TOKEN):
            raise Refusal(401, f"Invalid credentials: {who}")  # as careless as a server can be
        if repo is None or (repo.private and not who):
            raise Refusal(404 if who else 401, "Repository not found", "RepoNotFound")
        if repo.gated and who != TOKEN:
            raise Refusal(403, f"Access to {repo_id} is restricted", "GatedRepo")
        if writes and who != TOKEN:
            raise Refusal(403, "You have no right to write here")
        return repo

    def create(self, body: bytes) -> Any:
        said = json.loads(body)
        repo_id = f"{said['organization']}/{said['name']}"
        if self.who() != TOKEN:
            raise Refusal(403, "You have no right to make repositories")
        if (said.get("type", "model"), repo_id) in self.hub.repos:
            raise Refusal(409, "You already created this repo", url=f"{self.hub.url}/{repo_id}")
        is_private = said.get("private") or said.get("visibility") == "private"
        self.hub.make(repo_id, said.get("type", "model"), private=bool(is_private))
        return {"url": f"{self.hub.url}/datasets/{repo_id}", "name": repo_id}

    def info(self, kind: str, repo_id: str, revision: str = "main") -> Any:
        repo = self.find(kind, repo_id)
        oid = repo.find(revision)
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return {"id": repo_id, "sha": oid, "private": repo.private, "gated": repo.gated, "tags": []}

    def refs(self, kind: str, repo_id: str) -> Any:
        repo = self.find(kind, repo_id)
        named = {
            "branches": [("heads", *one) for one in repo.branches.items()],
            "tags": [("tags", *one) for one in repo.tags.items()],
        }
        return {
            "converts": [],
            **{
                key: [
                    {"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid}
                    for where, name, oid in refs
                ]
                for key, refs in named.items()
            },
        }

    def tree(self, kind: str, repo_id: str, revision: str) -> Any:
        repo = self.find(kind, repo_id)
        oid = repo.find(revision)
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        folders = {
            path.rsplit("/", depth)[0]
            for path in repo.commits[oid]
            for depth in range(1, path.count("/") + 1)
        }
        listed = [{"type": "directory", "path": one, "oid": commit_id(one)} for one in folders]
        return listed + [listing(path, *what) for path, what in repo.commits[oid].items()]

    def resolve(self, kind: str | None, repo_id: str, revision: str, path: str) -> Any:
        repo = self.find(kind, repo_id)
        oid = repo.find(revision)
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if path not in repo.commits[oid]:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        data, is_lfs = repo.commits[oid][path]
        etag = hashlib.sha256(data).hexdigest() if is_lfs else git_oid(data)
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if start is None:
            return 200, data, headers
        at = int(start[1])
        headers["Content-Range"] = f"bytes {at}-{len(data) - 1}/{len(data)}"
        return 206, data[at:], headers

    # --- writing ---

    def preupload(self, kind: str, repo_id: str, revision: str, body: bytes) -> Any:
        repo = self.find(kind, repo_id, writes=True)
        ignored = repo.files.get(".gitignore", (b"", False))[0].decode().split()
        answers: list[dict[str, Any]] = []
        for one in json.loads(body)["files"]:
            path = one["path"]
            is_large = one["size"] > MOST_BYTES_IN_A_COMMIT
            is_binary = b"\0" in base64.b64decode(one["sample"])
            is_lfs = path.endswith(".parquet") or is_large or is_binary
            there = repo.files.get(path)
            oid = listing(path, *there)["lfs" if there[1] else "oid"] if there else None
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if is_lfs else "regular",
                    "shouldIgnore": any(fnmatch(path, glob) for glob in ignored),
                    "oid": oid["oid"] if isinstance(oid, dict) else oid,
                }
            )
        return {"files": answers}

    def batch(self, kind: str | None, repo_id: str, body: bytes) -> Any:
        self.find(kind, repo_id, writes=True)
        objects: list[dict[str, Any]] = []
        for one in json.loads(body)["objects"]:
            told = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.lfs:
                signed = f"{self.hub.url}/lfs/{one['oid']}?X-Amz-Signature=signedSecret42"
                verify = {"href": f"{self.hub.url}/lfs/verify"}
                told["actions"] = {"upload": {"href": signed}, "verify": verify}
            objects.append(told)
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "the bytes are not what was announced")
        self.hub.lfs[oid] = body
        return 200, b"", {}

    def commit(self, kind: str, repo_id: str, revision: str, body: bytes) -> Any:
        repo = self.find(kind, repo_id, writes=True)
        header, *operations = (json.loads(line) for line in body.splitlines())
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != repo.head:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.files)
        for one in operations:
            value = one["value"]
            if one["key"] == "deletedFile":
                del files[value["path"]]
            elif one["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            else:
                files[value["path"]] = (self.hub.lfs[value["oid"]], True)
        oid = repo.commit(files, header["value"]["summary"])
        return {"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"}

    def tag(self, kind: str, repo_id: str, revision: str, body: bytes) -> Any:
        repo = self.find(kind, repo_id, writes=True)
        name, oid = json.loads(body)["tag"], repo.find(revision)
        if name in repo.tags:
            raise Refusal(409, f"Tag {name} exists already")
        assert oid is not None
        repo.tags[name] = oid
        return {}


def git_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def listing(path: str, data: bytes, is_lfs: bool) -> dict[str, Any]:
    """A file as the Hub lists it: in LFS, its git id is that of a pointer."""
    told: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if is_lfs:
        sha256 = hashlib.sha256(data).hexdigest()
        told["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        told["oid"] = commit_id("pointer", sha256)
    return told


def use(hub: LoopbackHub, monkeypatch: Any, home: Any) -> list[float]:
    """Point huggingface_hub at this Hub and away from the user's home, and have it wait in no time.

    What it reads from the environment it read when it was imported, so its constants are set. Returns the list of the
    waits, in seconds, as they come.
    """
    from huggingface_hub import constants

    waits: list[float] = []
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(home / "xet"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", waits.append)
    return waits
