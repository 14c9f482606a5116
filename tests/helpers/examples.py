"""The scripts in `examples`, which are no package."""

import importlib.util

from helpers.paths import ROOT


def load_example(name: str):
    """The module of a script in `examples`, which are no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
