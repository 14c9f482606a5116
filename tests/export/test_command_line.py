"""`python -m modeling_deit_distill.export`: what it writes where, and what it refuses before it begins."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.exports import run
from helpers.paths import ROOT
from transformers import AutoImageProcessor

from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.export.__main__ import FORMATS, main

SCRIPT = str(ROOT / "examples" / "export_onnx.py")
FILES = ["config.json", "model.onnx", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def by_command(tmp_path_factory, checkpoint):
    """A plain command that chooses another size, into an empty folder: the folder, and how the command ended."""
    folder = tmp_path_factory.mktemp("onnx")
    words = [str(checkpoint(fusion="softmax_mean")), str(folder), "--image_size", "24x40", "--batch_size", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, *words]
    return folder, subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_the_command_is_quiet_about_what_works(by_command):
    _, ended = by_command
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 7
    lines = [line for line in re.split(r"[\r\n]+", ended.stderr) if line and not line.startswith("Loading weights")]
    assert lines == []


@pytest.mark.slow
def test_another_size_resizes_positions_and_the_crop(by_command, checkpoint, photo):
    folder, _ = by_command
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert json.loads((folder / "config.json").read_text())["image_size"] == [24, 40]
    pixel_values = AutoImageProcessor.from_pretrained(folder)([photo, photo], return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (2, 3, 24, 40)
    source = checkpoint(fusion="softmax_mean")
    model = DeiTDistillForImageClassification.from_pretrained(source, image_size=(24, 40)).eval()
    with torch.no_grad():
        expected = model(pixel_values)
    np.testing.assert_allclose(run(folder / "model.onnx", pixel_values)[0], expected.logits.numpy(), atol=1e-5)


def test_a_destination_that_holds_something_is_refused_first(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("keep")
    for name in ("full", "full/notes.txt"):
        with pytest.raises(InputError, match=f"{name} exists and is not an empty folder"):
            main(["no/source", str(tmp_path / name)])
    with pytest.raises(InputError, match="cannot be written"):
        main(["no/source", str(tmp_path / "full" / "notes.txt" / "onnx")])
    assert (tmp_path / "full" / "notes.txt").read_text() == "keep"


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(InputError, match=rf"exporting needs {name} .*pip install -e '\.\[onnx\]'"):
                main(["no/source", str(tmp_path / "onnx")])


def test_sizes_that_are_no_sizes_are_refused(tmp_path):
    for name, value in (("--image_size", "32x"), ("--image_size", "100000x8"), ("--batch_size", "0")):
        with pytest.raises(InputError, match=f"{name} is {value}"):
            main(["no/source", str(tmp_path / "onnx"), name, value])


def test_images_that_were_not_compared_are_said(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "images" / "photo.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8broken")
    monkeypatch.setitem(FORMATS, "browser", lambda source, folder, options: f"browser: {len(source.rows)} image")
    main([str(checkpoint()), str(tmp_path / "web"), "--images", str(tmp_path / "images")])
    said = capsys.readouterr().out
    assert said.startswith("browser: 1 image\n\nnot compared: 1 image that cannot be read: ") and "broken.jpg" in said


@pytest.mark.slow
def test_the_script_needs_no_onnx_until_it_exports():
    """Its help and its error for a missing extra are for those who have not installed it."""
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("onnx", "onnxscript", "onnxruntime"))
    code = f"import runpy, sys; {blocked}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, SCRIPT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    helped, refused = (
        subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=300)
        for words in (["--help"], ["no/source", "nowhere"])
    )
    assert helped.returncode == 0, helped.stderr
    assert (
        helped.stdout.startswith("usage: python -m modeling_deit_distill.export") and "--min_agreement" in helped.stdout
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"error: exporting needs onnx .*pip install -e '\.\[onnx\]'\n", refused.stderr)
