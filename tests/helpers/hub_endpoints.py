"""The endpoints of the small Hub: a function `endpoint(server, request, **parts of the path)` per method and path."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from helpers.hub_repositories import (
    LFS_SUFFIXES,
    Answer,
    Commit,
    HubError,
    Repository,
    Request,
    blob,
    content_oid,
    git_oid,
    is_true,
    lfs_oid,
)

if TYPE_CHECKING:
    from helpers.hub_server import HubServer

KIND = "(?P<kind>models|datasets|spaces)"
NAME = "(?P<name>[^/]+(?:/[^/]+)?)"
REVISION = "(?P<revision>[^/]+)"
API = f"/api/{KIND}/{NAME}"
PAGE = f"/(?:(?P<kind>datasets|spaces)/)?{NAME}"  # the addresses of models have no prefix

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
    if kind not in ("models", "datasets", "spaces"):
        raise HubError(400, f"No repositories of type {fields['type']} here")
    if kind == "spaces" and fields.get("sdk") != "static":
        raise HubError(400, f"No Spaces with sdk {fields.get('sdk')} here")
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
