"""Who may import whom: arrows go downward only, and the code that travels with a checkpoint stands alone."""

import ast
import sys
from pathlib import Path

import pytest

import modeling_deit_distill

PACKAGE = Path(modeling_deit_distill.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
REMOTE_CODE = {"configuration_deit_distill", "modeling_deit_distill"}

# module: what it may import of the package, besides `errors`, on which all but the remote code may rely. Modules that
# are still to be written have their row already.
ALLOWED = {
    "errors": set(),
    "configuration_deit_distill": set(),
    "modeling_deit_distill": {"configuration_deit_distill"},
    "losses": set(),
    "views": set(),
    "augmentation": {"views"},
    "label_map": set(),
    "data": {"views"},
    "teacher": {"data", "augmentation", "checkpoints", "finite", "views", "label_map"},
    "teacher_store": {"views"},
    "labelling": {"arguments", "teacher", "teacher_store", "data", "augmentation", "views"},
    "hub": set(),
    "store_cli": {
        "hub",
        "labelling",
        "label_map",
        "report",
        "teacher_store",
        "teacher",
        "data",
        "augmentation",
        "views",
    },
    "metrics": {"modeling_deit_distill"},
    "schedule": set(),
    "ema": set(),
    "precision": set(),
    "supported": set(),
    "arguments": {"configuration_deit_distill", "label_map", "precision", "schedule", "ema", "supported"},
    "report": set(),
    "student": {"arguments", "conversion", "data", "label_map", "modeling_deit_distill", "weight_names"},
    "run_record": {
        "arguments",
        "conversion",
        "data",
        "hub",
        "labelling",
        "modeling_deit_distill",
        "precision",
        "schedule",
        "student",
    },
    "publishing": {
        "arguments",
        "card_pictures",
        "checkpoints",
        "conversion",
        "hub",
        "model_card",
        "run_record",
    },
    "finite": set(),
    "checkpoints": {"arguments", "report"},
    "interruption": {"checkpoints"},
    "process_end": set(),
    "resumable_trainer": {"checkpoints", "interruption"},
    "publishing_trainer": {
        "card_pictures",
        "model_card",
        "publishing",
        "resumable_trainer",
        "run_record",
        "weight_names",
    },
    "trainer": {
        "publishing_trainer",
        "finite",
        "checkpoints",
        "interruption",
        "losses",
        "schedule",
        "ema",
        "views",
        "data",
        "augmentation",
        "teacher_store",
        "metrics",
        "arguments",
    },
    "card_pictures": {"analysis"},
    "model_card": {"analysis", "report", "card_pictures", "weight_names"},
    "weight_names": set(),
    "conversion": {"modeling_deit_distill", "configuration_deit_distill", "data", "weight_names"},
    "analysis": {"modeling_deit_distill"},
}
ALLOWED["__init__"] = set(ALLOWED)


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


def test_a_module_imports_only_what_lies_below_it():
    assert sorted(set(MODULES) - ALLOWED.keys()) == []  # each module has a row in the table
    forbidden = {}
    for module in MODULES:
        allowed = ALLOWED[module] | (set() if module in REMOTE_CODE else {"errors"})
        forbidden[module] = own_imports((PACKAGE / f"{module}.py").read_text()) - allowed
    assert {module: names for module, names in forbidden.items() if names} == {}


def test_importing_the_package_imports_no_more_than_the_model():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    at_once = "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert own_imports(at_once) == REMOTE_CODE
    libraries = {name.split(".")[0] for name in imports(at_once) if not name.startswith(".")}
    assert libraries <= {"transformers"} | sys.stdlib_module_names


def test_arrows_go_downward_only():
    below = {}

    def everything_below(module, above=()):
        assert module not in above, f"circle: {' > '.join([*above, module])}"
        if module not in below:
            below[module] = set().union(
                ALLOWED[module], *(everything_below(name, (*above, module)) for name in ALLOWED[module])
            )
        return below[module]

    for module in ALLOWED.keys() - {"__init__"}:
        assert module not in everything_below(module)


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
