"""Classifiers of every kind against the models asked directly."""

import json
import shutil

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from modeling_deit_distill import InputError
from modeling_deit_distill.classifiers import OnnxClassifier, load_any_classifier, onnx_file
from modeling_deit_distill.conversion.checkpoint import load_checkpoint
from modeling_deit_distill.conversion.saving import save_native, save_timm
from modeling_deit_distill.conversion.weight_names import ours_to_public
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.export.browser import NOTHING_TO_DO
from modeling_deit_distill.files import write_json

NAMES = ["red", "blue", "green"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def student(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    tiny_model(num_labels=3, **LABELS).save_pretrained(folder)
    evaluation_processor(32, 0.9, (0.5,) * 3, (0.25,) * 3).save_pretrained(folder)
    return folder


def direct(folder, pixel_values=PIXELS):
    with torch.no_grad():
        return AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values)


def test_a_student_answers_with_both_heads(student):
    classifier = load_any_classifier(str(student), "cpu")
    answers, expected = classifier(PIXELS), direct(student)
    assert classifier.outputs == list(answers) == ["fused", "cls", "distillation"]
    for name, of_model in (("fused", "logits"), ("cls", "cls_logits"), ("distillation", "distillation_logits")):
        torch.testing.assert_close(answers[name], expected[of_model], rtol=0, atol=0)
    assert classifier.class_names == NAMES
    assert classifier.processor.size["shortest_edge"] == 35 and [*classifier.processor.image_std] == [0.25] * 3


def test_what_conversion_reads_answers_as_the_student(student, tmp_path):
    checkpoint = load_checkpoint(str(student))
    for name in ("native", "of_timm"):
        (tmp_path / name).mkdir()
    save_native(checkpoint, tmp_path / "native")
    torch.save({"model": ours_to_public(checkpoint.state_dict)}, tmp_path / "public.pth")
    expected = direct(student)
    for source in ("native", "public.pth"):
        if source == "public.pth":  # which says neither heads nor classes
            (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "image_size": 32}))
        classifier = load_any_classifier(str(tmp_path / source), "cpu")
        answers = classifier(PIXELS)
        torch.testing.assert_close(answers["distillation"], expected.distillation_logits, atol=1e-5, rtol=0)
        assert classifier.class_names == (NAMES if source == "native" else ["LABEL_0", "LABEL_1", "LABEL_2"])
    save_timm(checkpoint, tmp_path / "of_timm")
    assert load_any_classifier(str(tmp_path / "of_timm"), "cpu").class_names == NAMES


def test_other_models_are_run_by_transformers(tmp_path):
    """A teacher that was trained here, for one, and models of timm."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(InputError, match="model '.*resnet' has no image processor .*put its preprocessor_config.json"):
        load_any_classifier(str(tmp_path / "resnet"))
    evaluation_processor(24).save_pretrained(tmp_path / "resnet")
    (tmp_path / "timm").mkdir()
    model = timm.create_model("test_efficientnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "timm" / "model.safetensors", metadata={"format": "pt"})
    view = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.3] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    described = {"architecture": "test_efficientnet", "num_classes": 3, "label_names": NAMES, "pretrained_cfg": view}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(described))
    for name in ("resnet", "timm"):
        classifier = load_any_classifier(str(tmp_path / name), "cpu")
        answers = classifier(PIXELS)
        assert list(answers) == classifier.outputs == ["fused"] and classifier.class_names == NAMES
        torch.testing.assert_close(answers["fused"], direct(tmp_path / name).logits, rtol=0, atol=0)


def test_a_model_without_the_token_has_one_answer(tiny_model, tmp_path):
    tiny_model(num_labels=3, use_distillation_token=False, **LABELS).save_pretrained(tmp_path)
    classifier = load_any_classifier(str(tmp_path), "cpu", "bf16")
    assert list(classifier(PIXELS)) == ["fused"]
    assert classifier(PIXELS)["fused"].dtype == torch.float32


def test_what_cannot_be_is_one_line(student, tiny_model, tmp_path):
    tiny_model(num_labels=3, problem_type="multi_label_classification").save_pretrained(tmp_path / "several")
    (tmp_path / "photo.jpg").write_bytes(b"no model")
    for name, settings, message in (
        (student, {"device": "nowhere"}, "device 'nowhere' is unknown"),
        (student, {"device": "cpu", "precision": "fp16"}, "fp16 is for accelerators.*--precision bf16"),
        (tmp_path / "several", {}, "problem_type 'multi_label_classification'"),
        (tmp_path / "photo.jpg", {}, "photo.jpg' is no file of weights"),
        ("./nowhere", {}, "'./nowhere' is no file and no folder here"),
        ("no/such-model", {}, "'no/such-model' is no folder here and cannot be read from the Hub: check the path"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_any_classifier(str(name), **settings)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An ONNX model of two heads, sums over channels: `logits` is their mean."""
    onnx = pytest.importorskip("onnx")
    folder, kind = tmp_path_factory.mktemp("onnx"), onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("ReduceSum", ["pixel_values", "axes"], ["cls_logits"], keepdims=0),
        onnx.helper.make_node("Neg", ["cls_logits"], ["distillation_logits"]),
        onnx.helper.make_node("Sub", ["cls_logits", "cls_logits"], ["logits"]),
    ]
    outputs = [
        onnx.helper.make_tensor_value_info(name, kind, ["batch", 3])
        for name in ("logits", "cls_logits", "distillation_logits")
    ]
    inputs = [onnx.helper.make_tensor_value_info("pixel_values", kind, ["batch", 3, 32, 32])]
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    graph = onnx.helper.make_graph(nodes, "sums", inputs, outputs, [axes])
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"id2label": LABELS["id2label"]}))
    evaluation_processor(32).save_pretrained(folder)
    return folder


def test_an_export_answers_image_by_image(exported):
    for name in (exported, exported / "model.onnx"):
        assert onnx_file(str(name)) == exported / "model.onnx"
        classifier = load_any_classifier(str(name))
        answers = classifier(PIXELS)
        torch.testing.assert_close(answers["cls"], PIXELS.sum((2, 3)), atol=1e-3, rtol=0)
        torch.testing.assert_close(answers["distillation"], -answers["cls"])
        assert answers["fused"].shape == (3, 3) and classifier.class_names == NAMES
    for settings in ({"precision": "bf16"}, {"device": "cuda"}):
        with pytest.raises(InputError, match="ONNX export, which runs on the CPU.*leave out --device and --precision"):
            load_any_classifier(str(exported), **settings)


def test_an_export_may_be_a_folder_called_onnx(exported, tmp_path):
    """`--formats onnx browser` makes one."""
    shutil.copytree(exported, tmp_path / "onnx")
    for name in (tmp_path, tmp_path / "onnx", tmp_path / "onnx" / "model.onnx"):
        assert load_any_classifier(str(name)).class_names == NAMES


def test_open_sizes_alone_make_no_model_that_takes_photographs(exported, tmp_path):
    """Other exporters leave height and width open too; the image processor says what is to be done."""
    import onnx

    shutil.copytree(exported, tmp_path / "open")
    model = onnx.load(tmp_path / "open" / "model.onnx")
    for place, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    onnx.save(model, tmp_path / "open" / "model.onnx")
    classifier = load_any_classifier(str(tmp_path / "open"))
    assert not classifier.takes_photographs
    image = PIL.Image.new("RGB", (50, 40), (200, 100, 50))
    assert classifier.processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_a_folder_without_its_fp32_file_says_which_it_has(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "export")
    file = (tmp_path / "export" / "model.onnx").rename(tmp_path / "export" / "model_quantized.onnx")
    with pytest.raises(InputError, match=f"holds no model.onnx but {file}; name the file"):
        load_any_classifier(str(tmp_path / "export"))
    assert load_any_classifier(str(file)).class_names == NAMES


def test_an_export_that_takes_photographs_is_given_them_as_they_are(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    shutil.copytree(exported, tmp_path / "export")
    (tmp_path / "export" / "onnx").mkdir()
    model = onnx.load(exported / "model.onnx")
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, tmp_path / "export" / "onnx" / "model.onnx")
    (tmp_path / "export" / "model.onnx").unlink()
    write_json(tmp_path / "export" / "preprocessor_config.json", NOTHING_TO_DO)
    classifier = load_any_classifier(str(tmp_path / "export"))
    assert classifier.takes_photographs and not load_any_classifier(str(exported)).takes_photographs
    image = PIL.Image.new("RGB", (5, 7), (1, 2, 3))
    pixel_values = classifier.processor(image)["pixel_values"]
    assert pixel_values.shape == (1, 3, 7, 5)
    assert classifier(pixel_values)["cls"].tolist() == [[35.0, 70.0, 105.0]]


def test_an_export_without_its_runtime_says_what_to_install(exported, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match="needs onnxruntime; pip install onnxruntime"):
        OnnxClassifier(str(exported))
