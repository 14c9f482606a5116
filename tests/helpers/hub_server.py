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

import hmac
import re
import secrets
import socket
import string
import sys
import threading
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, unquote, urlsplit

from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http as client_http

from helpers.hub_endpoints import ROUTES
from helpers.hub_repositories import LFS_THRESHOLD, Answer, Commit, HubError, Repository, Request

# In place of a status: no answer until the server ends, and a connection that ends without one.
HANG, CUT = -1, -2


@dataclass
class Fault:
    """The next `times` requests that match are answered with `status`; `applied`: after they took effect.

    A status of HANG is no answer at all until the server ends, one of CUT the end of the connection.
    """

    method: str
    path: re.Pattern
    status: int
    times: float
    applied: bool
    headers: dict[str, str]

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("*", method) and self.path.search(path) is not None


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
        self._ended = threading.Event()
        self._http: _HTTPServer | None = None

    def __enter__(self) -> HubServer:
        self._http = _HTTPServer(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
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

    def fail(
        self, method: str, path_pattern: str, status: int = 503, times: float = 1, applied: bool = False, **headers: str
    ) -> None:
        """Answer the next `times` matching requests with `status`: of `method` ("*": of any), to a path in which
        the regular expression is found. With `applied` they take effect all the same: only the answer is lost.
        An LFS object is PUT to `/lfs/KIND/NAME/SHA256`, the other paths are those of the Hub. `headers` go with the
        answer, `_` for `-`."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        with self._lock:
            self._faults.append(Fault(method, re.compile(path_pattern), status, times, applied, headers))

    def mend(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

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

    def respond(self, request: Request) -> Answer | None:
        """Record a request and answer it; None where the connection is to end."""
        with self._lock:
            path = unquote(request.path)
            self.requests.append((request.method, path))
            fault = next((fault for fault in self._faults if fault.matches(request.method, path)), None)
            if fault is not None:
                fault.times -= 1
            answer = self._dispatch(request) if fault is None or fault.applied else None
        if fault is None:
            return answer
        if fault.status == HANG:
            self._ended.wait()
        if fault.status in (HANG, CUT):
            return None
        return HubError(fault.status, "A fault of the test", headers=fault.headers).answer()

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
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, quote(value, safe=string.punctuation + " "))
        self.send_header("Access-Control-Allow-Origin", "*")  # pages of other hosts read the Hub
        self.send_header("Access-Control-Expose-Headers", "*")
        if answer.status != 304:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD" and answer.status != 304:
            self.wfile.write(answer.body)

    def do_OPTIONS(self):
        """What a browser asks before it sends a header such as `Range` to another host."""
        self.send_response(204)
        for key in ("Origin", "Headers", "Methods"):
            self.send_header(f"Access-Control-Allow-{key}", "*")
        self.end_headers()

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
