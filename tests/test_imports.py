"""Who may import whom: arrows go downward only, and the code that travels with a checkpoint stands alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

import modeling_deit_distill

PACKAGE = Path(modeling_deit_distill.__file__).parent
REMOTE_CODE = {"configuration_deit_distill", "modeling_deit_distill"}
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def imports(source: str) -> set[str]:
    """Every module that `source` imports, wherever in the file: `.name` for one of the package, else its full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            if origin in (".", PACKAGE.name):  # what follows `import` may be a module itself
                found |= {f"{PACKAGE.name}.{alias.name}" for alias in node.names}
            else:
                found.add(origin)
    inside = f"{PACKAGE.name}."
    return {"." + name.removeprefix(inside) if name.startswith(inside) else name for name in found}


def own_imports(source: str) -> set[str]:
    """The modules of the package that `source` imports."""
    names = imports(source)
    own = {name.lstrip(".").split(".")[0] for name in names if name.startswith(".")}
    return own | ({"__init__"} if PACKAGE.name in names else set())


def test_layers_import_downward_only():
    """The layers stand in pyproject.toml, under `tool.importlinter`."""
    linted = subprocess.run([sys.executable, "-c", LINT], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


def test_the_table_of_layers_has_all_in_their_order():
    listed = (ROOT / "pyproject.toml").read_text().partition("\nlayers = [")[2].partition("\n]")[0]
    layers = enumerate(re.findall(r'"(.+)"', listed), start=1)
    expected = sorted((number, name) for number, names in layers for name in names.split(" | "))
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", (ROOT / "docs" / "structure.md").read_text(), re.MULTILINE)
    assert sorted((int(number), name) for number, cell in rows for name in re.findall(r"`(\w+)", cell)) == expected


def test_the_table_of_layers_names_each_module_of_a_package():
    rows = re.findall(r"^\| \d+ \| `(\w+)/` \|(.+)\|$", (ROOT / "docs" / "structure.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    for name, text in rows:
        modules = {path.stem for path in (PACKAGE / name).glob("*.py") if not path.stem.startswith("__")}
        assert modules - set(re.findall(r"`(\w+)`", text)) == set(), name


def test_importing_the_package_imports_no_more_than_the_model():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    at_once = "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert own_imports(at_once) == REMOTE_CODE
    libraries = {name.split(".")[0] for name in imports(at_once) if not name.startswith(".")}
    assert libraries <= {"transformers"} | sys.stdlib_module_names


@pytest.mark.parametrize("module", sorted(REMOTE_CODE))
def test_remote_code_stands_alone(module):
    # transformers finds the files that travel by a regular expression over `from .x import y`.
    source = (PACKAGE / f"{module}.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module, f"line {node.lineno}: only `from .x import y` is followed"
    libraries = {name.split(".")[0] for name in imports(source) if not name.startswith(".")}
    assert libraries <= {"torch", "transformers"} | sys.stdlib_module_names
    assert own_imports(source) <= REMOTE_CODE


def test_the_reader_sees_every_form_of_import():
    for source, expected in [
        ("from .data import collate", {"data"}),
        ("from . import data, teacher as t", {"data", "teacher"}),
        ("from .data.inner import x", {"data"}),
        ("import modeling_deit_distill.data", {"data"}),
        ("import modeling_deit_distill", {"__init__"}),
        ("from modeling_deit_distill.data import collate", {"data"}),
        ("from modeling_deit_distill import data", {"data"}),
        ("from modeling_deit_distill.modeling_deit_distill import fuse_logits", {"modeling_deit_distill"}),
        ("def f():\n    from .data import collate", {"data"}),
        ("import torch, data\nfrom transformers.data import x\nimport modeling_deit_distill_other", set()),
    ]:
        assert own_imports(source) == expected, source


def test_no_test_file_is_imported():
    """What several of them need is in `tests/helpers`, or a fixture of a conftest.py."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    stems = {path.stem for path in paths if path.stem.startswith("test_")} | {"conftest"}
    assert len(stems) > 40
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                origin = getattr(node, "module", None) or ""
                parts = {part for alias in node.names for part in f"{origin}.{alias.name}".split(".")}
                assert not parts & stems, f"{path.relative_to(ROOT)}, line {node.lineno}"
