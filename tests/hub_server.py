"""A small Hugging Face Hub on the loopback, for tests that run the real `huggingface_hub` client.

It speaks the part of the protocol that pushing and loading models and datasets needs: repositories, commits, LFS
uploads, downloads. Everything lives in memory and ends with the server:

    with HubServer(token="hf_test", user="me") as server:
        api = HfApi(endpoint=server.endpoint, token=server.token)

A process that has imported `huggingface_hub` already is sent here by `use_hub`, a new one by `HubServer.environment`.
As on the Hub, a repository starts with a commit that holds `.gitattributes`. Not here: xet, pull requests, spaces,
organizations, the metadata of model cards (`cardData`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import socket
import string
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, unquote, urlsplit

from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http as client_http

LFS_THRESHOLD = 10_000_000
LFS_SUFFIXES = (".safetensors", ".bin", ".npy", ".parquet")  # `datasets` counts on the last
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

KIND = "(?P<kind>models|datasets)"
NAME = "(?P<name>[^/]+(?:/[^/]+)?)"
REVISION = "(?P<revision>[^/]+)"
API = f"/api/{KIND}/{NAME}"
PAGE = f"/(?:(?P<kind>datasets)/)?{NAME}"  # the addresses of models have no prefix


class HubError(Exception):
    """What the Hub refuses: an HTTP status with its message, and the code by which the client picks an exception."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code

    def answer(self) -> Answer:
        return Answer.of_json(self.body, self.status, self.headers)


@dataclass
class Request:
    """One HTTP request; `path` is still percent-encoded, `query` and the form's fields hold lists of values."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""
    with_token: bool = False

    def json(self):
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return is_true(self.query.get(name))


@dataclass
class Answer:
    """One HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value, status: int = 200, headers: dict | None = None) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


@dataclass
class Fault:
    """The next `times` requests that match are answered with `status`; `applied`: after they took effect."""

    method: str
    path: re.Pattern
    status: int
    times: int
    applied: bool

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("*", method) and self.path.search(path) is not None


@dataclass(frozen=True)
class Commit:
    """The complete state of a repository: the content of every path, and which paths are LFS files."""

    sha: str
    message: str
    files: dict[str, bytes]
    large: frozenset[str] = frozenset()
    description: str = ""
    date: str = ""

    def below(self, folder: str) -> dict[str, bytes]:
        return {path: data for path, data in self.files.items() if path.startswith(f"{folder}/") or not folder}

    def at(self, path: str) -> dict[str, bytes]:
        """The file `path`, or all files of the folder `path`."""
        return {path: self.files[path]} if path in self.files else self.below(path)


class Repository:
    """A model or dataset repository: branches as lists of commits (the newest last), tags, LFS objects."""

    def __init__(self, kind: str, name: str, private: bool):
        self.kind, self.name, self.private = kind, name, private
        self.objects: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.branches: dict[str, list[Commit]] = {"main": []}
        self.commit("main", "initial commit", {".gitattributes": ATTRIBUTES}, frozenset())

    @property
    def prefix(self) -> str:
        return "" if self.kind == "models" else f"{self.kind}/"

    def branch(self, revision: str) -> list[Commit]:
        if revision not in self.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.branches[revision]

    def history(self, revision: str) -> list[Commit]:
        """The commits up to a branch, a tag or a commit, the newest last."""
        if revision in self.branches:
            return self.branches[revision]
        sha = self.tags.get(revision, revision)
        for commits in self.branches.values():
            for position, commit in enumerate(commits):
                if commit.sha == sha:
                    return commits[: position + 1]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, branch: str, message: str, files: dict, large: frozenset, description: str = "") -> Commit:
        commits = self.branch(branch)
        files = dict(sorted(files.items()))
        state = [self.name, branch, message, len(commits), commits[-1].sha if commits else ""]
        state += [(path, git_oid(data)) for path, data in files.items()]
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        sha = hashlib.sha1(repr(state).encode()).hexdigest()
        commits.append(Commit(sha, message, files, large, description, date))
        return commits[-1]


# What git and LFS know of a content


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def lfs_pointer(data: bytes) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{lfs_oid(data)}\nsize {len(data)}\n".encode()


def blob(commit: Commit, path: str) -> dict:
    """Size, git oid and, of an LFS file, what its pointer says."""
    data = commit.files[path]
    if path not in commit.large:
        return {"size": len(data), "oid": git_oid(data)}
    pointer = lfs_pointer(data)
    lfs = {"oid": lfs_oid(data), "size": len(data), "pointerSize": len(pointer)}
    return {"size": len(data), "oid": git_oid(pointer), "lfs": lfs}


def content_oid(commit: Commit, path: str) -> str:
    """The sha256 of an LFS file, the git oid of another."""
    return lfs_oid(commit.files[path]) if path in commit.large else git_oid(commit.files[path])


def is_true(values: list[str] | None) -> bool:
    return bool(values) and values[-1].lower() in ("true", "1")


# The endpoints. A function `endpoint(server, request, **parts of the path)` per method and path.

ROUTES: list[tuple[set[str], re.Pattern, Callable]] = []


def route(methods: str, pattern: str):
    """Serve a path (a regular expression, matched in full before percent-decoding) by the decorated function."""

    def register(endpoint):
        ROUTES.append((set(methods.split()), re.compile(pattern), endpoint))
        return endpoint

    return register


def find(server: HubServer, request: Request, kind: str | None, name: str, write: bool = False) -> Repository:
    """The repository; one that is private does not exist for the anonymous, who may not write anywhere."""
    repository = server.repositories.get((kind or "models", name))
    if repository is None or (repository.private and not request.with_token):
        if request.with_token:
            raise HubError(404, "Repository not found", "RepoNotFound")
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    if write and not request.with_token:
        raise HubError(401, "Invalid username or password.")
    return repository


@route("GET", "/api/whoami-v2")
def whoami(server, request):
    if not request.with_token:
        raise HubError(401, "Invalid username or password.")
    token = {"displayName": "test", "role": "write"}
    auth = {"type": "access_token", "accessToken": token}
    return {"type": "user", "name": server.user, "fullname": server.user, "orgs": [], "auth": auth}


@route("POST", "/api/validate-yaml")
def validate_yaml(server, request):
    return {"errors": [], "warnings": []}


@route("POST", "/api/repos/create")
def create_repository(server, request):
    if not request.with_token:
        raise HubError(401, "Invalid username or password.")
    fields = request.json()
    kind = f"{fields.get('type') or 'model'}s"
    owner = fields.get("organization") or server.user
    if kind not in ("models", "datasets"):
        raise HubError(400, f"No repositories of type {fields['type']} here")
    if owner != server.user:
        raise HubError(403, f'You don\'t have the rights to create a repository under the namespace "{owner}"')
    key = (kind, f"{owner}/{fields['name']}")
    exists = key in server.repositories
    private = fields.get("visibility") == "private" or fields.get("private") is True  # the second by older clients
    repository = server.repositories.setdefault(key, Repository(*key, private))
    url = f"{server.endpoint}/{repository.prefix}{repository.name}"
    if exists:
        raise HubError(409, "You already created this repository", url=url)
    return {"url": url, "name": repository.name, "id": repository.name}


@route("POST DELETE", f"{API}/(?P<group>branch|tag)/{REVISION}")
def change_reference(server, request, kind, name, group, revision):
    """Create or delete a branch, or a tag: `tag/NAME` to delete it, `tag/REVISION {tag}` to create it."""
    repository = find(server, request, kind, name, write=True)
    fields = request.json() if request.body else {}
    references = repository.branches if group == "branch" else repository.tags
    reference = fields.get("tag", revision)
    if request.method == "DELETE":
        if references.pop(reference, None) is None:
            raise HubError(404, f"No such reference: {reference}", "RevisionNotFound")
    elif reference in references:
        raise HubError(409, f"Reference already exists: {reference}")
    elif group == "branch":
        references[reference] = list(repository.history(fields.get("startingPoint") or "main"))
    else:
        references[reference] = repository.history(revision)[-1].sha
    return {}


@route("GET", f"{API}/refs")
def list_references(server, request, kind, name):
    repository = find(server, request, kind, name)
    branches = {branch: commits[-1].sha for branch, commits in repository.branches.items()}
    references = {"branches": ("heads", branches), "tags": ("tags", repository.tags)}
    listed = {
        group: [{"name": key, "ref": f"refs/{folder}/{key}", "targetCommit": sha} for key, sha in shas.items()]
        for group, (folder, shas) in references.items()
    }
    return {**listed, "converts": [], "pullRequests": []}


@route("GET", f"{API}/commits/{REVISION}")
def list_commits(server, request, kind, name, revision):
    commits = find(server, request, kind, name).history(revision)
    return [
        {
            "id": commit.sha,
            "title": commit.message,
            "message": commit.description,
            "authors": [{"user": server.user}],
            "date": commit.date,
        }
        for commit in reversed(commits)
    ]


@route("GET", f"{API}/tree/{REVISION}(?:/(?P<path>.*))?")
def list_tree(server, request, kind, name, revision, path):
    history = find(server, request, kind, name).history(revision)
    folder = (path or "").strip("/")
    paths = listing(history[-1], folder, request.flag("recursive"))
    if folder and not paths:
        raise entry_not_found(history[-1], folder)
    return [entry(history, path, request.flag("expand")) for path in paths]


@route("POST", f"{API}/paths-info/{REVISION}")
def paths_info(server, request, kind, name, revision):
    history = find(server, request, kind, name).history(revision)
    form = parse_qs(request.body.decode())
    paths = [path.strip("/") for path in form.get("paths", [])]
    return [entry(history, path, is_true(form.get("expand"))) for path in paths if path and history[-1].at(path)]


def listing(commit: Commit, folder: str, recursive: bool) -> list[str]:
    """The paths of the files and folders of a folder."""
    prefix = f"{folder}/" if folder else ""
    found = set()
    for path in commit.below(folder):
        parts = path[len(prefix) :].split("/")
        depth = len(parts) if recursive else 1
        found.update(prefix + "/".join(parts[:count]) for count in range(1, depth + 1))
    return sorted(found)


def entry(history: list[Commit], path: str, expand: bool) -> dict:
    """What a tree says of a file or folder of the newest commit; `expand`: with the commit that last changed it."""
    commit = history[-1]
    if path in commit.files:
        found = {"type": "file", "path": path, **blob(commit, path)}
    else:
        state = repr(sorted((file, git_oid(data)) for file, data in commit.below(path).items()))
        found = {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(state.encode()).hexdigest()}
    if expand:
        changed = last_change(history, path)
        found["lastCommit"] = {"id": changed.sha, "title": changed.message, "date": changed.date}
    return found


def last_change(history: list[Commit], path: str) -> Commit:
    for position in range(len(history) - 1, 0, -1):
        if history[position].at(path) != history[position - 1].at(path):
            return history[position]
    return history[0]


def entry_not_found(commit: Commit, path: str) -> HubError:
    return HubError(404, f"{path} does not exist", "EntryNotFound", {"X-Repo-Commit": commit.sha})


@route("POST", f"{API}/preupload/{REVISION}")
def preupload(server, request, kind, name, revision):
    """How each file is to be uploaded, and the oid of the content that its path holds now."""
    head = find(server, request, kind, name, write=True).history(revision)[-1]
    files = []
    for file in request.json()["files"]:
        path, size = file["path"], file["size"]
        large = size >= server.lfs_threshold or (size > 0 and path.endswith(LFS_SUFFIXES))
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in head.files:
            answer["oid"] = content_oid(head, path)
        files.append(answer)
    return {"files": files}


@route("POST", f"{PAGE}\\.git/info/lfs/objects/batch")
def lfs_batch(server, request, kind, name):
    """Where to put the LFS objects that are not stored yet."""
    repository = find(server, request, kind, name, write=True)
    verify = {"href": f"{server.endpoint}/{repository.prefix}{name}.git/info/lfs/objects/verify"}
    objects = []
    for wanted in request.json()["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repository.objects:
            path = f"/lfs/{repository.kind}/{name}/{wanted['oid']}"
            upload = {"href": f"{server.endpoint}{path}?signature={server.sign(path)}"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return {"transfer": "basic", "objects": objects}


@route("PUT", f"/lfs/{KIND}/{NAME}/(?P<oid>[0-9a-f]{{64}})")
def lfs_upload(server, request, kind, name, oid):
    """The storage behind the Hub: the signature in the address is the only permission."""
    if not hmac.compare_digest(request.query.get("signature", [""])[0], server.sign(request.path)):
        raise HubError(403, "The signature does not match")
    if lfs_oid(request.body) != oid:
        raise HubError(400, "The content does not match its sha256")
    server.repositories[kind, name].objects[oid] = request.body
    return Answer(headers={"ETag": f'"{oid}"'})


@route("POST", f"{PAGE}\\.git/info/lfs/objects/verify")
def lfs_verify(server, request, kind, name):
    stored(find(server, request, kind, name, write=True), **request.json())
    return {}


def stored(repository: Repository, oid: str, size: int | None = None, **_) -> bytes:
    """An LFS object, which has been uploaded, of the size expected."""
    if oid not in repository.objects:
        raise HubError(400, f"The LFS object {oid} has not been uploaded")
    if size not in (None, len(repository.objects[oid])):
        raise HubError(400, f"The LFS object {oid} is not of {size} bytes")
    return repository.objects[oid]


@route("POST", f"{API}/commit/{REVISION}")
def create_commit(server, request, kind, name, revision):
    repository = find(server, request, kind, name, write=True)
    head = repository.branch(revision)[-1]
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if not head.sha.startswith(header.get("parentCommit") or ""):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files, large = dict(head.files), set(head.large)
    for line in lines:
        if line["key"] != "header":
            change(repository, head, files, large, line["key"], line["value"])
    commit = repository.commit(revision, header["summary"], files, frozenset(large), header.get("description", ""))
    url = f"{server.endpoint}/{repository.prefix}{name}/commit/{commit.sha}"
    return {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""}


def change(repository: Repository, head: Commit, files: dict, large: set, key: str, value: dict) -> None:
    """Apply one operation of a commit to `files` and `large`."""
    path = value["path"].strip("/")
    if key == "file":
        encoded = value.get("encoding") == "base64"
        files[path] = base64.b64decode(value["content"]) if encoded else value["content"].encode()
        large.discard(path)
    elif key == "lfsFile":
        files[path] = stored(repository, value["oid"], value.get("size"))
        large.add(path)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [path] if key == "deletedFile" else [file for file in files if file.startswith(f"{path}/")]
        if not gone or not files.keys() >= set(gone):
            message = f"A {key[7:].lower()} with this name doesn't exist: {path}"
            raise HubError(404, message, "EntryNotFound", {"X-Repo-Commit": head.sha})
        for file in gone:
            del files[file]
            large.discard(file)
    else:
        raise HubError(400, f"Unknown operation: {key}")


@route("GET HEAD", f"{PAGE}/resolve/{REVISION}/(?P<path>.+)")
def resolve(server, request, kind, name, revision, path):
    """The content of a file, or a range of it."""
    commit = find(server, request, kind, name).history(revision)[-1]
    if path not in commit.files:
        raise entry_not_found(commit, path)
    data, etag = commit.files[path], f'"{content_oid(commit, path)}"'
    headers = {"ETag": etag, "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if path in commit.large:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
    if etag in request.headers.get("if-none-match", ""):
        return Answer(304, headers=headers)
    headers["Content-Type"] = "application/octet-stream"
    wanted = byte_range(request.headers.get("range", ""), len(data)) if request.method == "GET" else None
    if wanted is None:
        return Answer(200, data, headers)
    start, end = wanted
    return Answer(206, data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """The start and end that a `Range` header asks for; None without one that is understood."""
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise HubError(416, "Requested range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, end


@route("GET", f"{API}/revision/{REVISION}")
@route("GET", API)
def repository_info(server, request, kind, name, revision="main"):
    repository = find(server, request, kind, name)
    commit, first = repository.history(revision)[-1], repository.history(revision)[0]
    info = {
        "id": name,
        "author": name.split("/")[0],
        "sha": commit.sha,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "createdAt": first.date,
        "lastModified": commit.date,
        "siblings": [sibling(commit, path, request.flag("blobs")) for path in commit.files],
    }
    expand = request.query.get("expand")
    return info if expand is None else {key: info[key] for key in ["id", *expand] if key in info}


def sibling(commit: Commit, path: str, with_blob: bool) -> dict:
    if not with_blob:
        return {"rfilename": path}
    found = blob(commit, path)
    known = {"rfilename": path, "size": found["size"], "blobId": found["oid"]}
    if path in commit.large:
        lfs = found["lfs"]
        known["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return known


# The server


class HubServer:
    """The server as a context manager. `requests` has the (method, path) of every request, percent-decoded.

    One user with one token, who may do everything; without a token, public repositories can be read. A kind is
    "models" or "datasets". Files of `lfs_threshold` bytes or with a suffix of `LFS_SUFFIXES` are LFS files.
    """

    def __init__(self, token: str = "hf_test", user: str = "me", lfs_threshold: int = LFS_THRESHOLD):
        self.token, self.user, self.lfs_threshold = token, user, lfs_threshold
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self._secret = secrets.token_bytes(16)
        self._lock = threading.RLock()
        self._http: _HTTPServer | None = None

    def __enter__(self) -> HubServer:
        self._http = _HTTPServer(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._http.close_connections()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """The content of every path, `.gitattributes` among them."""
        return dict(self.repositories[kind, name].history(revision)[-1].files)

    def commits(self, kind: str, name: str, revision: str = "main") -> list[Commit]:
        """The commits of a revision, the initial one first."""
        return list(self.repositories[kind, name].history(revision))

    def count(self, method: str, path_pattern: str) -> int:
        """How many requests of a method had a path in which the regular expression is found."""
        with self._lock:
            return sum(method == asked and re.search(path_pattern, path) is not None for asked, path in self.requests)

    def fail(self, method: str, path_pattern: str, status: int = 503, times: int = 1, applied: bool = False) -> None:
        """Answer the next `times` matching requests with `status`: of `method` ("*": of any), to a path in which
        the regular expression is found. With `applied` they take effect all the same: only the answer is lost.
        An LFS object is PUT to `/lfs/KIND/NAME/SHA256`, the other paths are those of the Hub."""
        with self._lock:
            self._faults.append(Fault(method, re.compile(path_pattern), status, times, applied))

    def environment(self, home: Path) -> dict[str, str]:
        """The environment variables that send a new process to this server, with its caches under `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def sign(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()

    def respond(self, request: Request) -> Answer:
        """Record a request and answer it."""
        with self._lock:
            path = unquote(request.path)
            self.requests.append((request.method, path))
            fault = next((fault for fault in self._faults if fault.matches(request.method, path)), None)
            if fault is not None:
                fault.times -= 1
            answer = self._dispatch(request) if fault is None or fault.applied else None
            return answer if fault is None else HubError(fault.status, "A fault of the test").answer()

    def _dispatch(self, request: Request) -> Answer:
        try:
            request.with_token = self._authenticate(request)
            for methods, pattern, endpoint in ROUTES:
                match = pattern.fullmatch(request.path)
                if match and request.method in methods:
                    parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    answer = endpoint(self, request, **parts)
                    return answer if isinstance(answer, Answer) else Answer.of_json(answer)
            raise HubError(404, f"Not served here: {request.method} {request.path}")
        except HubError as error:
            return error.answer()
        except Exception as error:
            traceback.print_exc()
            return HubError(500, repr(error)).answer()

    def _authenticate(self, request: Request) -> bool:
        header = request.headers.get("authorization")
        if header is not None and header != f"Bearer {self.token}":
            raise HubError(401, "Invalid credentials in Authorization header")
        return header is not None


class _HTTPServer(ThreadingHTTPServer):
    """Threads per connection, and an end that also ends the connections kept alive."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.connections: set[socket.socket] = set()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self):
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed in the meantime
                continue

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is no error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 around `HubServer.respond`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        url = urlsplit(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, url.path, parse_qs(url.query), headers, self.read_body())
        answer = self.server.hub.respond(request)
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, quote(value, safe=string.punctuation + " "))
        if answer.status != 304:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD" and answer.status != 304:
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *_):
        pass


# The client within a process that has imported it


def use_hub(monkeypatch, server: HubServer, home: Path | None = None) -> None:
    """Send this process's client to `server` until the end of the test, without xet; its cache under `home`.

    The client reads its environment when imported, so its constants are replaced, and the endpoint of the `HfApi`
    objects that exist already; of `datasets` only where it is imported already. Given endpoints and tokens still win.
    """
    settings = {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    if home is not None:
        settings |= {"HF_HOME": str(home), "HF_HUB_CACHE": str(Path(home) / "hub")}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")
    if "transformers.utils.hub" in sys.modules:
        monkeypatch.setattr(sys.modules["transformers.utils.hub"], "_hf_api", None)
    if "datasets.config" in sys.modules:
        url = server.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
        settings = {"HF_ENDPOINT": server.endpoint, "HUB_DATASETS_URL": url}
        settings |= {"HF_HUB_OFFLINE": False, "USE_PARQUET_EXPORT": False}
        for name, value in settings.items():
            monkeypatch.setattr(sys.modules["datasets.config"], name, value)


def skip_waits(monkeypatch) -> list[float]:
    """Let this process's client retry without waiting; the list fills with the seconds that it would have waited."""
    waits: list[float] = []
    monkeypatch.setattr(client_http, "time", SimpleNamespace(sleep=waits.append))
    return waits
