"""Checkpoints leave as one ONNX file that answers as PyTorch does, or not at all."""

import json
import re
import shutil
import textwrap

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import torch
from helpers.cards import blocks
from helpers.exports import ANIMALS, HEADS, OUTPUTS, run, softmax
from helpers.paths import ROOT
from transformers import AutoImageProcessor, pipeline

from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.analysis import attention_maps
from modeling_deit_distill.export import onnx as script
from modeling_deit_distill.export import precisions
from modeling_deit_distill.export.__main__ import main

SNIPPET = blocks((ROOT / "docs" / "export.md").read_text(encoding="utf-8"), "python")[0]
FILES = ["config.json", "model.onnx", "preprocessor_config.json"]


def export(*words):
    main([*map(str, words), "--formats", "onnx"])


def spoil(path):
    """Set all weights of an exported model to zero."""
    model = onnx.load(path)
    for value in model.graph.initializer:
        if value.data_type == onnx.TensorProto.FLOAT:
            zeros = np.zeros_like(onnx.numpy_helper.to_array(value))
            value.CopyFrom(onnx.numpy_helper.from_array(zeros, value.name))
    onnx.save(model, path)


FUSED = {
    "logit_mean": lambda cls, distillation: (cls + distillation) / 2,
    "softmax_mean": lambda cls, distillation: np.log((softmax(cls) + softmax(distillation)) / 2),
    "cls": lambda cls, distillation: cls,
    "distillation": lambda cls, distillation: distillation,
}


def is_fused(exported, fusion) -> bool:
    folder, _ = exported(fusion=fusion)
    logits, cls_logits, distillation_logits = run(folder / "model.onnx", torch.randn(3, 3, 32, 32), HEADS)
    assert np.abs(cls_logits - distillation_logits).max() > 0.1
    return np.allclose(logits, FUSED[fusion](cls_logits, distillation_logits), rtol=1e-7, atol=1e-5)


# The fast tests share one export, of the fusion with the most operators; each other export takes seconds.
@pytest.mark.slow
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
        answers = run(exported(fusion="softmax_mean")[0] / "model.onnx", pixel_values)
        with torch.no_grad():
            expected = model(pixel_values, output_attentions=True)
        for name, answer in zip(HEADS, answers, strict=False):
            np.testing.assert_allclose(answer, expected[name].numpy(), atol=1e-5)
        maps = attention_maps(expected.attentions, (4, 4), 2)
        np.testing.assert_allclose(answers[3], maps.numpy(), atol=1e-6)


@pytest.mark.slow
def test_a_plain_model_has_one_head(exported, checkpoint):
    plain = {"use_distillation_token": False, "fusion": "softmax_mean"}
    pixel_values = torch.randn(3, 3, 32, 32)
    logits, cls_logits, attentions = run(exported(**plain)[0] / "model.onnx", pixel_values)
    assert attentions.shape == (3, 1, 4, 4)
    with torch.no_grad():
        expected = DeiTDistillForImageClassification.from_pretrained(checkpoint(**plain)).eval()(pixel_values)
    np.testing.assert_array_equal(logits, cls_logits)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-5)


def test_the_outputs_are_named_by_the_heads(tiny_model):
    assert script.output_names(tiny_model()) == OUTPUTS
    assert script.output_names(tiny_model(use_distillation_token=False)) == [*HEADS[:2], "attentions"]


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


def test_the_graph_names_its_tensors_and_uses_standard_operators_only(exported):
    path = exported(fusion="softmax_mean")[0] / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", script.OPSET)]
    tensors = [*model.graph.input, *model.graph.output]
    shapes = [[side.dim_param or side.dim_value for side in tensor.type.tensor_type.shape.dim] for tensor in tensors]
    assert [tensor.name for tensor in tensors] == ["pixel_values", *OUTPUTS]
    assert shapes == [["batch", 3, 32, 32], *[["batch", 5]] * 3, ["batch", 2, 4, 4]]
    assert {tensor.type.tensor_type.elem_type for tensor in tensors} == {onnx.TensorProto.FLOAT}
    assert not any(weight.external_data for weight in model.graph.initializer)
    assert str(ROOT).encode() not in path.read_bytes()


def test_parity_and_times_are_printed(exported):
    _, printed = exported(fusion="softmax_mean")
    title, made, parity, head, images, bare, hint = printed.splitlines()
    assert title == "onnx, opset 20, (3, 32, 32) for each image"
    assert re.fullmatch(r"  model\.onnx: 0\.\d MB, fp32, [\d.]+ ms an image", made)
    differences = re.findall(r"(\w+) (\d\.\de[-+]\d+)", parity)
    assert parity.startswith("    largest difference from PyTorch on noise: ")
    assert [name for name, _ in differences] == OUTPUTS
    assert all(float(difference) < 1e-4 for _, difference in differences)
    assert hint == "decisions on real images were not compared; give --images FOLDER to do so"
    assert "batch size: 2, the fastest of 5" in head
    for line in (images, bare):
        pytorch, onnx_seconds, ratio = map(float, re.findall(r"([\d.]+) (?:ms|times)", line))
        least, most = (pytorch - 0.005) / (onnx_seconds + 0.005), (pytorch + 0.005) / (onnx_seconds - 0.005)
        assert least - 0.005 <= ratio <= most + 0.005  # all three are printed rounded


def test_the_lines_of_the_guide_classify_as_the_pipeline_does(
    exported, checkpoint, tmp_path, monkeypatch, capsys, photo
):
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
def test_int8_rounds_the_linear_maps_and_nothing_else(exported, checkpoint, tmp_path, capsys):
    export(checkpoint(), tmp_path / "int8", "--precisions", "int8", "--batch_size", "2")
    assert "model_quantized.onnx: 0.1 MB, int8" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == [FILES[0], "model_quantized.onnx", FILES[2]]
    path = tmp_path / "int8" / "model_quantized.onnx"
    graph = onnx.load(path).graph
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
    expected, found = (run(file, pixel_values, ["logits"])[0] for file in (exported()[0] / "model.onnx", path))
    difference = np.abs(found - expected).mean() / expected.std()
    assert 1e-4 < difference < 0.05


def test_each_image_is_answered_by_itself(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    folder, pixel_values = exported(fusion="softmax_mean")[0], torch.randn(20, 3, 32, 32)
    answer = script.answer_by_core(folder / "model.onnx")
    for count in (20, 2, 1, 0):
        found, expected = (
            answer(pixel_values[:count].numpy()),
            run(folder / "model.onnx", pixel_values[:count], ["logits"])[0],
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)

    rounded = shutil.copy(folder / "model.onnx", tmp_path)
    script.quantize(rounded)
    answer = script.answer_by_core(rounded)
    alone = answer(pixel_values[:1].numpy())
    assert np.array_equal(answer(torch.cat([pixel_values[:1], 100 * pixel_values[1:]]).numpy())[:1], alone)


def test_a_rounded_model_that_answers_otherwise_leaves_nothing(checkpoint, exported, tmp_path, monkeypatch):
    right = exported(fusion="softmax_mean")[0] / "model.onnx"
    monkeypatch.setattr(precisions, "write_onnx", lambda model, path: shutil.copy(right, path))
    monkeypatch.setattr(precisions, "quantize", lambda path, kept: spoil(path))
    with pytest.raises(InputError, match=r"^logits of the model rounded to int8 differ .* nothing was written"):
        export(checkpoint(fusion="softmax_mean"), tmp_path / "onnx", "--precisions", "int8")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_answers_otherwise_leaves_nothing(checkpoint, exported, tmp_path, monkeypatch):
    other = exported(fusion="softmax_mean")[0] / "model.onnx"
    monkeypatch.setattr(precisions, "write_onnx", lambda model, path: shutil.copy(other, path))
    with pytest.raises(InputError, match=r"^logits of batch size 1 differ from PyTorch's by \d.* nothing was written"):
        export(checkpoint(fusion="distillation"), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_layers_can_stay_in_fp32(exported, tmp_path):
    path = shutil.copy(exported(fusion="softmax_mean")[0] / "model.onnx", tmp_path)
    maps = list(script.linear_maps(onnx.load(path)).values())
    block = [f"layers.0.{name}" for name in ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")]
    assert maps == [*block, "classifier", "classifier"]
    script.quantize(path, ("mlp.fc2", "classifier"))
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("MatMulInteger") == 3
    assert operators.count("Gemm") + operators.count("MatMul") == 2 + 1 + 2  # of attention, fc2 and the heads


def test_half_precision_takes_and_gives_float32(exported, tmp_path):
    path = shutil.copy(exported(fusion="softmax_mean")[0] / "model.onnx", tmp_path)
    expected = run(path, torch.ones(2, 3, 32, 32))
    script.to_half(path)
    model = onnx.load(path)
    weights = {value.data_type for value in model.graph.initializer if len(value.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    for found, wanted in zip(run(path, torch.ones(2, 3, 32, 32)), expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_answers_that_are_no_numbers_are_refused(tiny_model):
    with pytest.raises(InputError, match="by nan"):
        script.check_answers(tiny_model(), lambda pixel_values: [np.full((len(pixel_values), 5), np.nan)] * 4)


def test_a_head_of_zeros_is_no_head(tiny_model):
    """transformers' `DeiTForImageClassification` has the distillation token without a head: we read it as zeros."""
    model = tiny_model(num_labels=5, fusion="cls").eval()
    assert script.output_names(model) == OUTPUTS
    with torch.no_grad():
        model.distillation_classifier.weight.zero_()
    assert script.output_names(model) == ["logits", "cls_logits", "attentions"]
    with torch.no_grad():
        outputs = script.AllOutputs(model)(torch.randn(2, 3, 32, 32))
    assert [list(output.shape) for output in outputs] == [[2, 5], [2, 5], [2, 2, 4, 4]]
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_logits_without_spread_are_compared_too(precision):
    same, otherwise = np.zeros((2, 5)), np.full((2, 5), 0.1)
    script._check_difference("logits", same, 0.0, precision)
    with pytest.raises(InputError, match=f"rounded to {precision} .* by 0.1 on the average.*--precisions"):
        script._check_difference("logits", otherwise, 0.0, precision)
