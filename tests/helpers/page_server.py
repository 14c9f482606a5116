"""A server for pages, and a browser that reaches nothing else."""

import contextlib
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

# Where to find what tests of pages need: a browser, and a folder of npm packages (a `node_modules`).
BROWSER, NODE_PACKAGES = "CHROMIUM", "NODE_PACKAGES"
NAMES = ("chromium", "chromium-browser", "google-chrome")
# What gives a page threads.
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


def find_chromium() -> str | None:
    """The path of a Chromium on this machine, or of the one that the environment names."""
    return os.environ.get(BROWSER) or next(filter(None, map(shutil.which, NAMES)), None)


def find_package(name: str) -> Path | None:
    """The folder of an npm package, below the one that the environment names."""
    folder = Path(os.environ.get(NODE_PACKAGES, ""), name)
    return folder if NODE_PACKAGES in os.environ and folder.is_dir() else None


class PageHandler(http.server.SimpleHTTPRequestHandler):
    """Files, with headers of choice."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def __init__(self, *arguments, headers: dict[str, str], **options):
        self.added = headers
        super().__init__(*arguments, **options)

    def end_headers(self):
        for name, value in self.added.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        """Nothing: a test's output is its own."""


@contextlib.contextmanager
def serve(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address at which a folder is served, on a port of its own."""
    handler = functools.partial(PageHandler, directory=str(folder), headers=headers or {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
