"""What `pip install` of a wheel brings: every room, the card's template, and checkpoints that stand alone."""

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.new_processes import run_python
from helpers.paths import ROOT
from helpers.strangers import WITHOUT_THE_PACKAGE

import modeling_deit_distill

PACKAGE = Path(modeling_deit_distill.__file__).parent
SETUP = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "train_deit.py")
RECIPES = Path("examples", "recipes")

# Run with the installed folder on PYTHONPATH. An editable installation of the checkout would stand in for what the
# wheel lacks, so its finder and its folder are taken away; so are the packages of the optional extras.
THE_WHEEL_ALONE = """
import sys
from pathlib import Path

sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in finder.__module__]
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(sys.argv[1])]
sys.modules.update(dict.fromkeys(["onnx", "onnxscript", "onnxruntime"]))
"""

WITH_THE_WHEEL = """
import json
import pkgutil
from importlib import import_module

checkpoint = Path(sys.argv[2])

import modeling_deit_distill

name = modeling_deit_distill.__name__
names = [module.name for module in pkgutil.walk_packages(modeling_deit_distill.__path__, f"{name}.")]
for each in names:
    import_module(each)
files = [module.__file__ for key, module in sys.modules.items() if key.partition(".")[0] == name]

import torch
from modeling_deit_distill.publishing.card import write_model_card

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
config = modeling_deit_distill.DeiTDistillConfig(**sizes, image_size=32, patch_size=8, id2label={0: "cat", 1: "dog"})
torch.manual_seed(0)
model = modeling_deit_distill.DeiTDistillForImageClassification(config).eval()
model.save_pretrained(checkpoint)
with torch.no_grad():
    logits = model(torch.ones(1, 3, 32, 32)).logits.tolist()
card = write_model_card(checkpoint)
print(json.dumps({"names": names, "files": files, "logits": logits, "card": card.read_text()}))
"""

# `python -m modeling_deit_distill.train WORDS`
TRAIN = """
import runpy

sys.argv[:] = ["train.py", *sys.argv[2:]]
runpy.run_module("modeling_deit_distill.train", run_name="__main__", alter_sys=True)
"""

LOAD = """
import json
import torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    print(json.dumps(model(torch.ones(1, 3, 32, 32)).logits.tolist()))
"""


def files_below(folder: Path) -> set[str]:
    """The files of a package, as paths within it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pip(folder: Path, *words: str):
    """Run pip in a folder, without the index."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--no-deps", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a copy of the checkout, its wheel, and `installed`, where that was installed.

    The copy has no `build` folder, from which setuptools would take what the checkout no longer has.
    """
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not in this environment")
    place = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, place / "checkout" / PACKAGE.name, ignore=ignored)
    shutil.copytree(ROOT / RECIPES, place / "checkout" / RECIPES)
    for name in SETUP:
        shutil.copy(ROOT / name, place / "checkout")
    pip(place, "wheel", "./checkout", "--no-build-isolation")  # with the setuptools that is here
    [wheel] = place.glob("*.whl")
    pip(place, "install", wheel.name, "--no-compile", "--target", "installed")
    return place


@pytest.fixture(scope="module")
def reported(place) -> dict:
    """What a process says that has the wheel alone: what it imported, its model's answer, its card."""
    installed = str(place / "installed")
    printed = run_python(
        THE_WHEEL_ALONE + WITH_THE_WHEEL, place, str(ROOT), str(place / "checkpoint"), PYTHONPATH=installed
    )
    return json.loads(printed.splitlines()[-1])


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_no_other(place):
    expected = files_below(place / "checkout" / PACKAGE.name)
    recipes = {f"recipe_files/{name}" for name in files_below(place / "checkout" / RECIPES)}
    assert files_below(place / "installed" / PACKAGE.name) == expected | recipes
    [wheel] = place.glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {PACKAGE.name, "train_deit.py"}


@pytest.mark.slow
def test_every_module_is_imported_from_the_wheel_without_the_extras(place, reported):
    sources = [Path(name).with_suffix("") for name in files_below(PACKAGE) if name.endswith(".py")]
    modules = {path.parent if path.name == "__init__" else path for path in sources} - {Path()}
    assert set(reported["names"]) == {".".join([PACKAGE.name, *path.parts]) for path in modules}
    assert all(Path(file).is_relative_to(place / "installed") for file in reported["files"]), reported["files"]


@pytest.mark.slow
def test_a_checkpoint_made_with_the_wheel_needs_no_package(place, reported):
    code, home = WITHOUT_THE_PACKAGE + LOAD, str(place / "home")
    logits = json.loads(run_python(code, place, str(place / "checkpoint"), HF_HOME=home).splitlines()[-1])
    assert logits == [pytest.approx(row, abs=1e-6) for row in reported["logits"]]


@pytest.mark.slow
def test_a_card_is_written_from_the_template_in_the_wheel(reported):
    template = (PACKAGE / "publishing" / "card_template.md").read_text()
    heading = next(line for line in template.splitlines() if line.startswith("## "))
    assert "cat, dog" in reported["card"] and heading in reported["card"]


@pytest.mark.slow
def test_a_run_starts_from_a_recipe_of_the_wheel(place):
    installed, words = str(place / "installed"), ("--max_steps", "2", "--teacher_num_train_epochs", "1")
    words = (*words, "--allow_weak_teacher", "true", "--output_dir", "run", "--use_cpu", "true", "--save_steps", "1")
    code = THE_WHEEL_ALONE + TRAIN
    printed = run_python(code, place, str(ROOT), "digits.yaml", *words, PYTHONPATH=installed)
    assert "digits" in printed and (place / "run" / "all_results.json").exists()
    assert "-m modeling_deit_distill.train digits.yaml" in (place / "run" / "run.json").read_text()
