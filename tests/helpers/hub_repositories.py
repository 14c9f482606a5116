"""What the small Hub keeps and says: repositories with their commits, LFS objects, requests, answers and errors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timezone

LFS_THRESHOLD = 10_000_000
LFS_SUFFIXES = (".safetensors", ".bin", ".npy", ".parquet")  # `datasets` counts on the last
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


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
