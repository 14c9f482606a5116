"""What makes up the demo page, and where its runtime comes from."""

import json
import os
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers.exports import ANIMALS
from helpers.images import rows

from modeling_deit_distill.data.unlabelled import RowImages, find_images
from modeling_deit_distill.errors import InputError
from modeling_deit_distill.export.agreement import Agreement
from modeling_deit_distill.export.page import (
    PACKAGE,
    PAGE_FILES,
    RUNTIME_FILES,
    VERSION,
    Description,
    Runtime,
    choose_examples,
    place_runtime,
    write_page,
)
from modeling_deit_distill.export.photograph import Preprocessing
from modeling_deit_distill.export.precisions import Exported

CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
STEPS = Preprocessing(36, "cubic", (32, 32), [0.0] * 3, [1.0] * 3)


@pytest.fixture
def written(tmp_path):
    """`written(*examples, runtime)`: a folder with the page, of a file that agrees on 198 of 200 images and another."""

    def write(examples=(), **runtime) -> tuple[Path, dict]:
        (tmp_path / "onnx").mkdir()
        (tmp_path / "onnx" / "model.onnx").write_bytes(bytes(1234))
        (tmp_path / "onnx" / "model_quantized.onnx").write_bytes(bytes(99))
        models = [
            Exported("fp32", "onnx/model.onnx", 0.0, 1.0, None, {}),
            Exported("int8", "onnx/model_quantized.onnx", 0.0, 1.0, Agreement(200, 198, 0.02), {}),
        ]
        write_page(tmp_path, Description("Pets", ["cat", "größer"], models, STEPS), examples, **runtime)
        return tmp_path, json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))

    return write


def test_the_page_knows_classes_models_and_crop(written):
    folder, content = written()
    assert {path.name for path in folder.iterdir()} == {*PAGE_FILES, "demo.json", "onnx"}
    assert content == {
        "title": "Pets",
        "classes": ["cat", "größer"],
        "models": [
            {
                "precision": "fp32",
                "file": "onnx/model.onnx",
                "bytes": 1234,
                "equal_decisions": None,
                "images_compared": 0,
            },
            {
                "precision": "int8",
                "file": "onnx/model_quantized.onnx",
                "bytes": 99,
                "equal_decisions": 0.99,
                "images_compared": 200,
            },
        ],
        "resize": 36,
        "crop": [32, 32],
        "examples": [],
        "runtime": {"version": VERSION, "folder": CDN},
    }


def test_examples_are_small_jpegs_with_their_class(written):
    pictures = [(PIL.Image.new("RGB", (1280, 320), "red"), "cat"), (PIL.Image.new("L", (30, 40)), None)]
    folder, content = written(pictures)
    assert content["examples"] == [
        {"file": "examples/1.jpg", "label": "cat"},
        {"file": "examples/2.jpg", "label": None},
    ]
    sizes = [PIL.Image.open(folder / each["file"]).size for each in content["examples"]]
    assert sizes == [(640, 160), (30, 40)]


@pytest.mark.parametrize("vendored", [True, False])
def test_the_page_may_load_from_the_cdn_only_if_it_has_to(written, vendored):
    folder, _ = written(**({"runtime": Runtime("1.2.3", "onnxruntime/")} if vendored else {}))
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert ("https://" in page) is not vendored
    elsewhere = re.findall(r"https?://[^\"'`;\s]+", "".join((folder / name).read_text() for name in PAGE_FILES))
    assert {address for address in elsewhere if "localhost" not in address} == (
        set() if vendored else {"https://cdn.jsdelivr.net"}
    )


def test_all_files_that_the_page_names_are_written(written):
    folder, _ = written()
    page = (folder / "index.html").read_text(encoding="utf-8")
    scripts = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.js"))
    named = re.findall(r'(?:src|href)="([^":]+)"', page) + re.findall(r'from "\./([^"]+)"', scripts)
    assert named and all((folder / name).is_file() for name in named)
    ids = set(re.findall(r' id="([^"]+)"', page))
    assert set(re.findall(r'element\("([^"]+)"\)', scripts)) <= ids


@pytest.fixture
def package(tmp_path):
    """An unpacked npm package, with more in it than is needed."""
    folder = tmp_path / "npm" / "package"
    (folder / "dist").mkdir(parents=True)
    for name in (*RUNTIME_FILES, "ort.all.js"):
        (folder / "dist" / name).write_text(name)
    (folder / "package.json").write_text('{"version": "1.2.3"}')
    return folder


def test_the_runtime_is_copied_from_a_package(package, tmp_path):
    assert place_runtime(str(package), tmp_path) == Runtime("1.2.3", "onnxruntime/")
    assert {path.name: path.read_text() for path in (tmp_path / "onnxruntime").iterdir()} == {
        name: name for name in RUNTIME_FILES
    }


def test_nothing_is_copied_for_the_cdn(tmp_path):
    assert place_runtime("cdn", tmp_path) == Runtime(VERSION, CDN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", [*(f"dist/{name}" for name in RUNTIME_FILES), "package.json"])
def test_a_folder_without_the_package_is_refused(package, tmp_path, lost):
    (package / lost).unlink()
    with pytest.raises(InputError, match=f"--runtime .*{Path(lost).name}.*cdn or npm"):
        place_runtime(str(package), tmp_path)
    assert not (tmp_path / "onnxruntime").exists()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """`npm(code)`: a fake npm, alone on the path, which runs Python code with its arguments in `words`."""

    def make(code: str):
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable} -S\nimport sys, shutil\nwords = sys.argv[1:]\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return make


def test_the_runtime_is_fetched_by_npm(package, tmp_path, npm):
    archive = tmp_path / "packed.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(package, "package")
    npm(
        f"assert words[:2] == ['pack', '{PACKAGE}@{VERSION}'], words\n"
        f"shutil.copy({str(archive)!r}, words[words.index('--pack-destination') + 1] + '/x.tgz')"
    )
    assert place_runtime("npm", tmp_path) == Runtime("1.2.3", "onnxruntime/")
    assert sorted(os.listdir(tmp_path / "onnxruntime")) == sorted(RUNTIME_FILES)


FAILURES = {
    "sys.exit('npm error\\nno such registry')": r"failed \(npm error no such registry\)",
    "pass": r"failed \(exit code 0, 0 archives\)",
    "open(words[-1] + '/x.tgz', 'w').write('no archive')": "brought a broken archive",
}


@pytest.mark.parametrize("code", FAILURES)
def test_an_npm_that_fails_is_reported_with_the_other_ways(tmp_path, npm, code):
    npm(code)
    with pytest.raises(InputError, match=f"--runtime npm: `npm pack {PACKAGE}@{VERSION}` {FAILURES[code]}") as caught:
        place_runtime("npm", tmp_path)
    assert str(caught.value).endswith("; give --runtime cdn, or the folder of an unpacked onnxruntime-web")


def test_without_npm_the_other_ways_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--runtime npm: npm is not installed; install Node.js, or give --runtime cdn"):
        place_runtime("npm", tmp_path)


def test_examples_are_spread_and_know_the_class_of_their_folder(tmp_path):
    for name in ("cat", "misc"):
        (tmp_path / name).mkdir()
        for index in range(6):
            PIL.Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / name / f"{index}.png")
    (tmp_path / "cat" / "0.png").write_bytes(b"broken")
    images = find_images([str(tmp_path)])
    chosen = choose_examples(images, range(12), ["cat", "dog"])
    assert [label for _, label in chosen] == ["cat"] * 3 + [None] * 4  # 8 of 12, but one cannot be read
    assert [image.getpixel((0, 0))[0] for image, _ in chosen] == [1, 3, 4, 0, 1, 3, 4]


def test_examples_of_a_dataset_have_their_class():
    images = RowImages(rows([0, 1, 1], ["cat", "dog"]))
    assert [label for _, label in choose_examples(images, [0, 2], ["cat", "dog"])] == ["cat", "dog"]


@pytest.mark.slow
def test_the_command_writes_the_page_with_examples(layout):
    folder, printed = layout()
    content = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    assert content["title"] == "animals" and content["classes"] == list(ANIMALS.values())
    assert [each["precision"] for each in content["models"]] == ["fp32", "fp16", "int8"]
    assert (content["resize"], content["crop"]) == (36, [32, 32])
    assert len(content["examples"]) == 6 and content["runtime"]["folder"] == CDN
    assert "index.html: the page, with 6 of the images as examples; onnxruntime-web 1.30.0 from " + CDN in printed
    assert f"to open it: python -m http.server 8000 --directory {folder}, then http://localhost:8000" in printed
