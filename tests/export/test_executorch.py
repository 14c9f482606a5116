"""Programs for ExecuTorch answer as PyTorch does, run by its Python runtime, or there are none."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.exports import ANIMALS, HEADS, OUTPUTS
from helpers.paths import ROOT
from transformers import AutoImageProcessor

from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.analysis import attention_maps
from modeling_deit_distill.export import executorch as programs
from modeling_deit_distill.export.__main__ import main

FILES = ["config.json", "model.pte", "model_quantized.pte", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def by_command(tmp_path_factory, checkpoint, save_photos):
    """The folder that the command writes, with decisions compared on four photos, and how the command ended."""
    pytest.importorskip("executorch.runtime", reason="without executorch: pip install -e '.[executorch]'")
    folder = tmp_path_factory.mktemp("programs")
    photos = save_photos({"red": (200, 60, 60), "blue": (60, 60, 200)}, 2)
    words = [str(checkpoint(fusion="softmax_mean")), str(folder), "--formats", "executorch", "--images", str(photos)]
    command = [sys.executable, "-m", "modeling_deit_distill.export", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return folder, ended


@pytest.fixture
def model(checkpoint):
    return DeiTDistillForImageClassification.from_pretrained(checkpoint(fusion="softmax_mean")).eval()


@pytest.mark.slow
def test_images_are_answered_as_by_pytorch(by_command, model):
    answer = programs.open_executorch(by_command[0] / "model.pte")
    for batch_size in (1, 3):
        pixel_values = torch.randn(batch_size, 3, 32, 32)
        answers, by_array = answer(pixel_values), answer(pixel_values.numpy())
        assert list(answers) == OUTPUTS
        with torch.no_grad():
            expected = model(pixel_values, output_attentions=True)
        for name in HEADS:
            np.testing.assert_allclose(answers[name], expected[name].numpy(), atol=1e-5)
            np.testing.assert_array_equal(answers[name], by_array[name])
        maps = attention_maps(expected.attentions, (4, 4), 2)
        np.testing.assert_allclose(answers["attentions"], maps.numpy(), atol=1e-6)


@pytest.mark.slow
def test_int8_decides_as_pytorch_on_random_images(by_command, model):
    pixel_values = torch.randn(200, 3, 32, 32)
    found = programs.open_executorch(by_command[0] / "model_quantized.pte")(pixel_values)["logits"]
    with torch.no_grad():
        expected = model(pixel_values).logits.numpy()
    assert 1e-4 < np.abs(found - expected).mean() / expected.std() < 0.05
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.97


@pytest.mark.slow
def test_an_answer_in_int8_does_not_depend_on_the_other_images(by_command):
    answer, pixel_values = programs.open_executorch(by_command[0] / "model_quantized.pte"), torch.randn(2, 3, 32, 32)
    pixel_values[1] *= 100
    np.testing.assert_array_equal(answer(pixel_values)["logits"][:1], answer(pixel_values[:1])["logits"])


@pytest.mark.slow
def test_the_folder_holds_what_an_application_needs(by_command):
    folder, _ = by_command
    assert sorted(path.name for path in folder.iterdir()) == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {str(number): name for number, name in ANIMALS.items()}
    assert AutoImageProcessor.from_pretrained(folder).crop_size == {"height": 32, "width": 32}
    for name in FILES[1:3]:
        assert str(ROOT).encode() not in (folder / name).read_bytes()
    assert (folder / FILES[2]).stat().st_size < (folder / FILES[1]).stat().st_size


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_no_more(by_command):
    _, ended = by_command
    title, *lines = ended.stdout.splitlines()
    assert title == "executorch, XNNPACK, (1, 3, 32, 32) for one image at a time"
    assert re.fullmatch(r"  model\.pte: 0\.\d MB, fp32, [\d.]+ ms an image", lines[0])
    assert re.fullmatch(r"  model_quantized\.pte: 0\.\d MB, int8, [\d.]+ ms an image", lines[3])
    assert [line.split(",")[0] for line in (lines[2], lines[5])] == ["    4 of 4 decisions are PyTorch's"] * 2
    assert all(float(difference) < 1e-4 for difference in re.findall(r"\d\.\de[-+]\d+", lines[1]))
    # transformers imports torchao, where it is installed, of which torch says something.
    noted = [line for line in ended.stderr.splitlines() if "_pytree.py" not in line and "Loading weights" not in line]
    assert noted == []


@pytest.mark.slow
def test_images_of_another_shape_are_refused(by_command):
    answer = programs.open_executorch(by_command[0] / "model.pte")
    for shape in ((1, 3, 24, 32), (3, 32, 32), (0, 3, 32, 32)):
        with pytest.raises(InputError, match=rf"takes one or more images \(3, 32, 32\), not {re.escape(str(shape))}"):
            answer(torch.zeros(shape))


@pytest.mark.slow
def test_a_torch_that_the_runtime_does_not_fit_is_named(by_command, monkeypatch):
    answer = programs.open_executorch(by_command[0] / "model.pte")

    def fail(method, inputs):
        raise RuntimeError("tensor does not have a device\nframe #0")  # as 1.5.1 says beside torch 2.11

    monkeypatch.setattr("executorch.runtime.Method.execute", fail)
    message = r"another torch than .* \(tensor does not have a device\): pip install .*'\.\[executorch\]'"
    with pytest.raises(InputError, match=message):
        answer(torch.zeros(1, 3, 32, 32))


@pytest.mark.slow
def test_what_is_no_program_is_refused(by_command, tmp_path, capfd):
    (tmp_path / "text.pte").write_text("no program")
    for name in ("text.pte", "missing.pte"):
        with pytest.raises(InputError, match=f"{name} is no program of this export"):
            programs.open_executorch(tmp_path / name)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_program_that_answers_otherwise_leaves_nothing(by_command, checkpoint, tmp_path, monkeypatch):
    others = {"fp32": (by_command[0] / "model.pte").read_bytes()}
    monkeypatch.setattr(programs, "_lowered", lambda model, precision: others[precision])
    with pytest.raises(InputError, match=r"^logits of batch size 1 differ from PyTorch's by \d.* nothing was written"):
        main([str(checkpoint(fusion="distillation")), str(tmp_path / "new"), "--formats", "executorch"])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(InputError, match=r"exporting needs executorch .*pip install -e '\.\[executorch\]'"):
        main(["no/source", str(tmp_path / "new"), "--formats", "executorch"])
    with pytest.raises(InputError, match=r"pip install -e '\.\[executorch\]'"):
        programs.open_executorch(tmp_path / "model.pte")


def test_half_precision_is_refused_first(tmp_path):
    with pytest.raises(InputError, match="executorch has no fp16: leave it out of --precisions"):
        main(["no/source", str(tmp_path), "--formats", "browser", "executorch", "--precisions", "fp32", "fp16"])
