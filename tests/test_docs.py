"""The docs: links and files exist, commands are taken by their parsers, code runs."""

import importlib.util
import re
import subprocess
import sys
import textwrap

import PIL.Image
import pytest
from helpers.arguments import training
from helpers.docs import FILES, anchors, blocks, links, name_of
from helpers.messages import is_said, messages
from helpers.paths import ROOT

by_file = pytest.mark.parametrize("path", FILES, ids=name_of)


def test_all_docs_are_looked_at():
    names = {name_of(path) for path in FILES}
    assert {"README.md", "docs/your_photos.md", "examples/README.md", "examples/benchmarks/README.md"} <= names


@by_file
def test_every_link_to_a_file_or_heading_leads_somewhere(path):
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@by_file
def test_files_that_are_named_exist(path):
    """`examples/...` and the like in code, which no link checks."""
    text = path.read_text(encoding="utf-8")
    named = set(
        re.findall(r"\b((?:examples|tests|docs|modeling_deit_distill)/[\w/]+\.(?:py|md|yaml|sbatch|png|jpg))\b", text)
    )
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@by_file
def test_python_blocks_compile(path):
    for number, code in enumerate(blocks(path, "python")):
        body = textwrap.indent(code, "    ")  # of a function, since a block may end in `return`
        assert compile(f"def block():\n{body}", f"{name_of(path)}, block {number}", "exec")


def test_the_example_of_the_library_names_its_classes():
    [example, *_] = blocks(ROOT / "docs" / "trainer.md", "python")
    found = {}
    exec(example.partition("args = ")[0], found)
    assert found["student"].config.id2label == {0: "hat", 1: "shirt", 2: "shoe"}
    assert found["student"].config.label2id["shoe"] == 2 and found["student"].cls_classifier.out_features == 3


def test_the_example_of_views_takes_the_settings_of_the_arguments(tmp_path, monkeypatch):
    [code] = [each for each in blocks(ROOT / "docs" / "trainer.md", "python") if "ViewDataset(" in each]
    for name in ("hat", "shirt"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(3):
            PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    found = {"args": training("--horizontal_flip_prob", "0.25", "--data_seed", "3")}
    exec(code, found)
    dataset = found["train_dataset"]
    assert (dataset.settings.image_size, dataset.settings.horizontal_flip_prob, dataset.seed) == (224, 0.25, 3)


def test_each_message_in_troubleshooting_is_one_of_ours():
    known = messages()
    quoted = [line.strip() for line in blocks(ROOT / "docs" / "troubleshooting.md", "text")]
    assert len(quoted) >= 20
    assert [line for line in quoted if not any(is_said(line, each) for each in known)] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not in this environment: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "docs" / "api" / "library.html").read_text(encoding="utf-8")
    assert "soft_distillation_loss" in page and "mean over the batch" in page
