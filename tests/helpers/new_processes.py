"""Code that a new process runs."""

import os
import subprocess
import sys
from pathlib import Path


def run_python(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    """The output of `code`, run in `folder` by a Python that does not look for modules there."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
