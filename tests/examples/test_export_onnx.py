"""Checkpoints leave as one ONNX file that answers as PyTorch does, or not at all."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import torch
from helpers.paths import ROOT
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.export import onnx as onnx_export

REPOSITORY = ROOT
SCRIPT = REPOSITORY / "examples" / "export_onnx.py"
SNIPPET = onnx_export.__doc__.partition("AutoImageProcessor of transformers):\n\n")[2]
FILES = ["config.json", "model.onnx", "preprocessor_config.json"]
ANIMALS = dict(enumerate(["ape", "bat", "cat", "dog", "elk"]))
HEADS = ["logits", "cls_logits", "distillation_logits"]


@pytest.fixture(scope="module")
def script():
    """The code behind `examples/export_onnx.py`."""
    return onnx_export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_model):
    """`checkpoint(**overrides)`: the folder of a tiny model with its image processor, saved once.

    One block alone: tracing takes most of an export's time, and blocks are traced alike.
    """
    folders = {}

    def save(**overrides) -> Path:
        key = tuple(overrides.items())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("checkpoint")
            tiny_model(id2label=ANIMALS, **{"num_hidden_layers": 1, **overrides}).save_pretrained(folders[key])
            evaluation_processor(32).save_pretrained(folders[key])
        return folders[key]

    return save


@pytest.fixture(scope="module")
def exported(tmp_path_factory, script, checkpoint):
    """`exported(**overrides)`: the folder that such a checkpoint is exported to and what was printed, made once."""
    exports = {}

    def export(**overrides) -> tuple[Path, str]:
        key = tuple(overrides.items())
        if key not in exports:
            folder, printed = tmp_path_factory.mktemp("exports") / "new" / "onnx", io.StringIO()
            with contextlib.redirect_stdout(printed):
                script.main([str(checkpoint(**overrides)), str(folder), "--batch_size", "2"])
            exports[key] = folder, printed.getvalue()
        return exports[key]

    return export


def run(folder, pixel_values, names=None) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(folder / "model.onnx").run(names, {"pixel_values": pixel_values.numpy()})


def spoil(path):
    """Set all weights of an exported model to zero."""
    model = onnx.load(path)
    for value in model.graph.initializer:
        if value.data_type == onnx.TensorProto.FLOAT:
            zeros = np.zeros_like(onnx.numpy_helper.to_array(value))
            value.CopyFrom(onnx.numpy_helper.from_array(zeros, value.name))
    onnx.save(model, path)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.fixture
def photo() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))


FUSED = {
    "logit_mean": lambda cls, distillation: (cls + distillation) / 2,
    "softmax_mean": lambda cls, distillation: np.log((softmax(cls) + softmax(distillation)) / 2),
    "cls": lambda cls, distillation: cls,
    "distillation": lambda cls, distillation: distillation,
}


def is_fused(exported, fusion) -> bool:
    folder, _ = exported(fusion=fusion)
    logits, cls_logits, distillation_logits = run(folder, torch.randn(3, 3, 32, 32), HEADS)
    assert np.abs(cls_logits - distillation_logits).max() > 0.1
    return np.allclose(logits, FUSED[fusion](cls_logits, distillation_logits), rtol=1e-7, atol=1e-5)


# The fast tests share one export, of the fusion with the most operators; each other export takes seconds.
def test_the_fusion_is_in_the_file(exported):
    assert is_fused(exported, "softmax_mean")


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["logit_mean", "cls", "distillation"])
def test_each_other_fusion_is_in_the_file(exported, fusion):
    assert is_fused(exported, fusion)


def test_any_batch_size_is_answered_as_by_pytorch(exported, checkpoint):
    model = DeiTDistillForImageClassification.from_pretrained(checkpoint(fusion="softmax_mean")).eval()
    for batch_size in (1, 3, 7):
        pixel_values = torch.randn(batch_size, 3, 32, 32)
        answers = run(exported(fusion="softmax_mean")[0], pixel_values)
        with torch.no_grad():
            expected = model(pixel_values)
        for name, answer in zip(HEADS, answers, strict=True):
            np.testing.assert_allclose(answer, expected[name].numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_plain_model_has_one_head(exported, checkpoint):
    plain = {"use_distillation_token": False, "fusion": "softmax_mean"}
    pixel_values = torch.randn(3, 3, 32, 32)
    logits, cls_logits = run(exported(**plain)[0], pixel_values)
    with torch.no_grad():
        expected = DeiTDistillForImageClassification.from_pretrained(checkpoint(**plain)).eval()(pixel_values)
    np.testing.assert_array_equal(logits, cls_logits)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-5)


def test_the_outputs_are_named_by_the_heads(script, tiny_model):
    assert script.output_names(tiny_model()) == HEADS
    assert script.output_names(tiny_model(use_distillation_token=False)) == HEADS[:2]


def test_the_folder_holds_one_file_with_its_configuration_and_processor(exported, checkpoint):
    folder, source = exported(fusion="softmax_mean")[0], checkpoint(fusion="softmax_mean")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, folder))
    assert before.pop("auto_map")
    assert after == before
    assert after["id2label"]["3"] == "dog"
    before, after = (AutoImageProcessor.from_pretrained(place).to_dict() for place in (source, folder))
    assert after == before


def test_the_graph_names_its_tensors_and_uses_standard_operators_only(exported, script):
    path = exported(fusion="softmax_mean")[0] / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", script.OPSET)]
    tensors = [*model.graph.input, *model.graph.output]
    shapes = [[side.dim_param or side.dim_value for side in tensor.type.tensor_type.shape.dim] for tensor in tensors]
    assert [tensor.name for tensor in tensors] == ["pixel_values", *HEADS]
    assert shapes == [["batch", 3, 32, 32], *[["batch", 5]] * 3]
    assert {tensor.type.tensor_type.elem_type for tensor in tensors} == {onnx.TensorProto.FLOAT}
    assert not any(weight.external_data for weight in model.graph.initializer)
    assert str(REPOSITORY).encode() not in path.read_bytes()


def test_parity_and_times_are_printed(exported):
    folder, printed = exported(fusion="softmax_mean")
    made, parity, head, images, bare = printed.splitlines()
    assert re.fullmatch(r".*/onnx/model\.onnx: 0\.\d MB, fp32, opset 20, \(3, 32, 32\) for each image", made)
    assert made.startswith(str(folder))
    differences = re.findall(r"(\w+) (\d\.\de[-+]\d+)", parity)
    assert parity.startswith("largest difference from PyTorch, batch sizes 1, 2, 5: ")
    assert [name for name, _ in differences] == HEADS
    assert all(float(difference) < 1e-4 for _, difference in differences)
    assert "batch size: 2, medians of 5" in head
    for line in (images, bare):
        pytorch, onnx_seconds, ratio = map(float, re.findall(r"([\d.]+) (?:ms|times)", line))
        least, most = (pytorch - 0.005) / (onnx_seconds + 0.005), (pytorch + 0.005) / (onnx_seconds - 0.005)
        assert least - 0.005 <= ratio <= most + 0.005  # all three are printed rounded


def test_five_lines_classify_as_the_pipeline_does(exported, checkpoint, tmp_path, monkeypatch, capsys, photo):
    assert len(SNIPPET.strip().splitlines()) == 5
    photo.save(tmp_path / "photo.jpg")
    (tmp_path / "DESTINATION").symlink_to(exported(fusion="softmax_mean")[0])
    monkeypatch.chdir(tmp_path)
    names = {"json": json, "onnxruntime": onnxruntime, "PIL": PIL, "AutoImageProcessor": AutoImageProcessor}
    exec(textwrap.dedent(SNIPPET), names)
    answers = pipeline("image-classification", model=str(checkpoint(fusion="softmax_mean")), device="cpu")("photo.jpg")
    assert capsys.readouterr().out.strip() == answers[0]["label"]
    scores = dict(zip(ANIMALS.values(), softmax(names["logits"])[0].tolist(), strict=True))
    assert scores == pytest.approx({answer["label"]: answer["score"] for answer in answers}, abs=1e-5)


@pytest.mark.slow
def test_int8_rounds_the_linear_maps_and_nothing_else(script, exported, checkpoint, tmp_path, capsys):
    script.main([str(checkpoint()), str(tmp_path / "int8"), "--precision", "int8", "--batch_size", "2"])
    assert "int8, opset 20" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == FILES
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    operators = [node.op_type for node in graph.node]
    # Of the block four maps and of two heads; what remains in floats is the attention's products.
    assert operators.count("MatMulInteger") == 4 + 2 and operators.count("MatMul") == 2
    assert "Gemm" not in operators
    rounded = [
        value for value in graph.initializer if value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 2
    ]
    assert len(rounded) == 6
    assert all(np.abs(onnx.numpy_helper.to_array(value)).max() <= 64 for value in rounded)  # 7 bits

    pixel_values = torch.randn(16, 3, 32, 32)
    expected, found = (run(folder, pixel_values, ["logits"])[0] for folder in (exported()[0], tmp_path / "int8"))
    difference = np.abs(found - expected).mean() / expected.std()
    assert 1e-4 < difference < 0.05


def test_each_image_is_answered_by_itself(script, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    folder, pixel_values = exported(fusion="softmax_mean")[0], torch.randn(20, 3, 32, 32)
    answer = script.answer_by_core(folder / "model.onnx")
    for count in (20, 2, 1, 0):
        found, expected = answer(pixel_values[:count].numpy()), run(folder, pixel_values[:count], ["logits"])[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)

    rounded = shutil.copy(folder / "model.onnx", tmp_path)
    script.quantize(rounded)
    answer = script.answer_by_core(rounded)
    alone = answer(pixel_values[:1].numpy())
    assert np.array_equal(answer(torch.cat([pixel_values[:1], 100 * pixel_values[1:]]).numpy())[:1], alone)


def test_a_rounded_model_that_answers_otherwise_leaves_nothing(script, checkpoint, exported, tmp_path, monkeypatch):
    right = exported(fusion="softmax_mean")[0] / "model.onnx"
    monkeypatch.setattr(script, "write_onnx", lambda model, path: shutil.copy(right, path))
    monkeypatch.setattr(script, "quantize", spoil)
    words = [str(checkpoint(fusion="softmax_mean")), str(tmp_path / "onnx"), "--precision", "int8"]
    with pytest.raises(InputError, match=r"^logits of the rounded model differ .* nothing was written"):
        script.main(words)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def by_command(tmp_path_factory, checkpoint):
    """A plain command that chooses another size, into an empty folder: the folder, and how the command ended."""
    folder = tmp_path_factory.mktemp("onnx")
    words = [str(checkpoint(fusion="softmax_mean")), str(folder), "--image_size", "24x40", "--batch_size", "1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *words]
    return folder, subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_the_command_is_quiet_about_what_works(by_command):
    _, ended = by_command
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 5
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
    np.testing.assert_allclose(run(folder, pixel_values)[0], expected.logits.numpy(), atol=1e-5)


def sizes_of(processor) -> list[dict[str, int]]:
    """What an image is resized to, and what is cut out of it."""
    return [{name: side for name, side in dict(size).items() if side} for size in (processor.size, processor.crop_size)]


def test_the_resized_image_keeps_its_ratio_to_the_crop(script):
    processor = evaluation_processor(224)  # shorter side 256
    script.fit_processor(processor, (224, 224))
    assert sizes_of(processor) == [{"shortest_edge": 256}, {"height": 224, "width": 224}]
    script.fit_processor(processor, (384, 384))  # 256 · 384 / 224 = 438.9
    assert sizes_of(processor) == sizes_of(evaluation_processor(384))
    assert sizes_of(processor) == [{"shortest_edge": 438}, {"height": 384, "width": 384}]
    processor = evaluation_processor(224)
    script.fit_processor(processor, (112, 448))  # a tall image must hold the crop's width
    assert sizes_of(processor) == [{"shortest_edge": 512}, {"height": 112, "width": 448}]


def test_without_a_crop_the_whole_image_is_fitted(script):
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    script.fit_processor(processor, (24, 40))
    assert (processor.size["height"], processor.size["width"]) == (24, 40)


def test_half_precision_is_exported_as_float32(checkpoint, tmp_path, script):
    source = shutil.copytree(checkpoint(fusion="cls"), tmp_path / "half")
    DeiTDistillForImageClassification.from_pretrained(source).to(torch.bfloat16).save_pretrained(source)
    model = script.load_model(str(source), None)
    assert model.dtype == torch.float32
    assert model.config.to_dict()["dtype"] == "float32"
    assert not model.training


def test_an_export_that_answers_otherwise_leaves_nothing(script, checkpoint, exported, tmp_path, monkeypatch):
    other = exported(fusion="softmax_mean")[0] / "model.onnx"
    monkeypatch.setattr(script, "write_onnx", lambda model, path: shutil.copy(other, path))
    with pytest.raises(InputError, match=r"^logits of batch size 1 differ from PyTorch's by \d.* nothing was written"):
        script.main([str(checkpoint(fusion="distillation")), str(tmp_path / "onnx")])
    assert list(tmp_path.iterdir()) == []


def test_answers_that_are_no_numbers_are_refused(script, tiny_model):
    class Broken:
        def run(self, names, feed):
            return [np.full((len(feed["pixel_values"]), 5), np.nan, np.float32) for _ in names]

    with pytest.raises(InputError, match="by nan"):
        script.check_answers(tiny_model(), Broken())


def test_a_destination_that_holds_something_is_refused_first(script, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("keep")
    for name in ("full", "full/notes.txt"):
        with pytest.raises(InputError, match=f"{name} exists and is not an empty folder"):
            script.main(["no/source", str(tmp_path / name)])
    with pytest.raises(InputError, match="cannot be written"):
        script.main(["no/source", str(tmp_path / "full" / "notes.txt" / "onnx")])
    assert (tmp_path / "full" / "notes.txt").read_text() == "keep"


def test_a_missing_package_is_named_with_its_remedy(script, tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(InputError, match=rf"exporting needs {name} .*pip install -e '\.\[onnx\]'"):
                script.main(["no/source", str(tmp_path / "onnx")])


def test_other_models_are_sent_to_the_conversion(script, tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    torch.save({}, tmp_path / "deit.pth")
    for name, said in (("vit", "is of model_type vit"), ("deit.pth", "is no checkpoint")):
        source = str(tmp_path / name)
        remedy = f"python -m modeling_deit_distill.conversion {source} FOLDER"
        with pytest.raises(InputError, match=rf"{name} {said}.*{re.escape(remedy)}"):
            script.main([source, str(tmp_path / "onnx")])
    assert not (tmp_path / "onnx").exists()


def test_checkpoints_that_cannot_be_exported_say_why(script, checkpoint, tiny_model, tmp_path):
    source, destination = str(checkpoint(fusion="cls")), str(tmp_path / "onnx")
    with pytest.raises(InputError, match="cannot be loaded: image_size 33 is not divisible by patch_size 8"):
        script.main([source, destination, "--image_size", "33"])
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="broken cannot be loaded"):
        script.main([str(broken), destination])
    tiny_model().deit.save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match="has no cls_classifier.bias; export a trained classifier"):
        script.main([str(tmp_path / "headless"), destination])
    tiny_model().save_pretrained(tmp_path / "blind")
    with pytest.raises(InputError, match="blind has no image processor"):
        script.main([str(tmp_path / "blind"), destination])
    with pytest.raises(InputError, match=r"makes \(3, 32, 32\) of an image, but the model takes \(1, 32, 32\)"):
        script.main([str(checkpoint(num_channels=1)), destination])
    assert not Path(destination).exists()


def test_sizes_that_are_no_sizes_are_refused(script, tmp_path):
    for name, value in (("--image_size", "32x"), ("--image_size", "large"), ("--batch_size", "0")):
        with pytest.raises(InputError, match=f"{name} is {value}"):
            script.main(["no/source", str(tmp_path / "onnx"), name, value])


@pytest.mark.slow
def test_the_script_needs_no_onnx_until_it_exports():
    """Its help and its error for a missing extra are for those who have not installed it."""
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("onnx", "onnxscript", "onnxruntime"))
    code = f"import runpy, sys; {blocked}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    helped, refused = (
        subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=300)
        for words in (["--help"], ["no/source", "nowhere"])
    )
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith("usage: export_onnx.py") and SNIPPET in helped.stdout
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"error: exporting needs onnx .*pip install -e '\.\[onnx\]'\n", refused.stderr)
