"""What importing the package costs and offers."""

import re
from pathlib import Path

import pytest
from helpers.new_processes import run_python
from helpers.paths import ROOT
from helpers.students import CODE_FILES

import modeling_deit_distill

LAZY = """
import sys
import transformers, transformers.modeling_utils, transformers.modeling_layers
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
before = {name.split(".")[0] for name in sys.modules}
import modeling_deit_distill
print(*sorted({name.split(".")[0] for name in sys.modules} - before))
print(*sorted(name for name in sys.modules if name.startswith("modeling_deit_distill.")))
"""


@pytest.mark.slow
def test_importing_the_package_costs_no_more_than_the_model(tmp_path):
    repository = Path(modeling_deit_distill.__file__).parent.parent
    added, own = run_python(LAZY, tmp_path, PYTHONPATH=str(repository)).splitlines()
    assert own.split() == [f"modeling_deit_distill.{name[:-3]}" for name in sorted(CODE_FILES)]
    heavy = {"accelerate", "datasets", "evaluate", "matplotlib", "pandas", "pyarrow", "sklearn", "timm", "torchvision"}
    assert not heavy & set(added.split())


def test_every_public_name_is_found_and_listed():
    assert set(modeling_deit_distill.__all__) <= set(dir(modeling_deit_distill))
    for name in modeling_deit_distill.__all__:
        assert getattr(modeling_deit_distill, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        modeling_deit_distill.no_such_name  # noqa: B018


def test_the_version_is_the_same_wherever_it_is_written():
    version = modeling_deit_distill.__version__
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE).group(1) == version
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == version
