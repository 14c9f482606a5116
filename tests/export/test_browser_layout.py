"""The layout for transformers.js: files that decide as Python's pipeline, and what describes them."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
from helpers.cards import blocks
from helpers.exports import ANIMALS, run, softmax
from huggingface_hub import ModelCard
from transformers import pipeline

from modeling_deit_distill.export.browser import write_browser_card
from modeling_deit_distill.export.photograph import as_photograph

pytestmark = pytest.mark.slow  # three files


def test_the_folder_is_what_transformers_js_looks_for(layout):
    folder, _ = layout()
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.parent.name != "examples")
    names = ["model.onnx", "model_fp16.onnx", "model_quantized.onnx"]
    expected = {
        "README.md",
        "config.json",
        "export.json",
        "preprocessor_config.json",
        *(f"onnx/{name}" for name in names),
    }
    assert expected <= set(files)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "deit" and config["id2label"]["3"] == "dog" and "auto_map" not in config
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    assert not any(processor[step] for step in steps) and processor["do_convert_rgb"]


@pytest.mark.parametrize(
    ("name", "tolerance"), [("model.onnx", 0.01), ("model_fp16.onnx", 0.01), ("model_quantized.onnx", 0.03)]
)
def test_each_file_answers_as_the_pipeline(layout, checkpoint, name, tolerance):
    classify = pipeline("image-classification", model=str(checkpoint(fusion="softmax_mean")), device="cpu", top_k=5)
    draws = np.random.default_rng(0)
    for size in ((40, 70, 3), (33, 32, 3), (120, 31, 3)):
        image = PIL.Image.fromarray(draws.integers(0, 256, size, dtype=np.uint8))
        [logits] = run(layout()[0] / "onnx" / name, as_photograph(image), ["logits"])
        found = dict(zip(ANIMALS.values(), softmax(logits)[0].tolist(), strict=True))
        assert found == pytest.approx({each["label"]: each["score"] for each in classify(image)}, abs=tolerance)


def test_the_image_processor_stays_in_float32(layout):
    for name in ("model_fp16.onnx", "model_quantized.onnx"):
        model = onnx.shape_inference.infer_shapes(onnx.load(layout()[0] / "onnx" / name))
        kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        resizes = [node for node in model.graph.node if node.op_type == "Resize"]
        assert [node.name for node in resizes] == ["image_processor.resize_width", "image_processor.resize_height"]
        assert {kinds[node.output[0]] for node in resizes} == {onnx.TensorProto.FLOAT}
        statistics = {
            each.name: each.data_type for each in model.graph.initializer if each.name.endswith((".mean", ".std"))
        }
        assert set(statistics.values()) == {onnx.TensorProto.FLOAT} and len(statistics) == 2


def test_the_measured_agreement_is_in_the_record_the_card_and_on_the_screen(layout):
    folder, printed = layout()
    files = json.loads((folder / "export.json").read_text())["files"]
    assert [each["file"] for each in files] == [f"onnx/model{kind}.onnx" for kind in ("", "_fp16", "_quantized")]
    assert [each["precision"] for each in files] == ["fp32", "fp16", "int8"]
    for each in files:
        assert each["agreement"]["images"] == 6 and each["agreement"]["equal"] <= 6
        assert (folder / each["file"]).stat().st_size == pytest.approx(1e6 * each["megabytes"], abs=5000)
        assert f"{each['agreement']['equal']} of 6" in (folder / "README.md").read_text(encoding="utf-8")
        assert f"{each['agreement']['equal']} of 6 decisions are PyTorch's" in printed
    assert files[0]["agreement"]["equal"] == 6 and files[0]["agreement"]["largest"] < 0.01


def test_the_card_says_how_to_use_it(layout, tmp_path):
    folder, _ = layout()
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers.js" and card.data.pipeline_tag == "image-classification"
    [script] = blocks(card.text, "js")
    assert f'pipeline("image-classification", "{folder.name}")' in script
    (tmp_path / "export.json").write_bytes((folder / "export.json").read_bytes())
    write_browser_card(tmp_path, "me/animals", "browser")
    [script] = blocks(ModelCard.load(tmp_path / "README.md").text, "js")
    assert 'pipeline("image-classification", "me/animals", { revision: "browser" })' in script


def test_the_cards_python_needs_neither_torch_nor_transformers(layout, checkpoint, tmp_path, photo):
    folder, _ = layout()
    [script] = blocks(ModelCard.load(folder / "README.md").text, "python")
    photo.save(tmp_path / "photo.jpg")
    for name in ("onnx", "config.json"):
        (tmp_path / name).symlink_to(folder / name)
    blocked = "import sys; [sys.modules.__setitem__(name, None) for name in ('torch', 'transformers', 'torchvision')]\n"
    done = subprocess.run([sys.executable, "-c", blocked + script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()}
    classify = pipeline("image-classification", model=str(checkpoint(fusion="softmax_mean")), device="cpu", top_k=5)
    expected = {each["label"]: each["score"] for each in classify(str(tmp_path / "photo.jpg"))}
    assert found == pytest.approx(expected, abs=0.01)


def test_without_fp32_the_card_names_a_file_that_is_there(layout, tmp_path):
    record = json.loads((layout()[0] / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({**record, "files": record["files"][2:]}))
    write_browser_card(tmp_path, "me/animals")
    [script] = blocks(ModelCard.load(tmp_path / "README.md").text, "python")
    assert 'InferenceSession("onnx/model_quantized.onnx")' in script and "model.onnx" not in script


def test_every_opset_is_one_that_browsers_take(layout):
    for path in (layout()[0] / "onnx").iterdir():
        versions = {each.domain: each.version for each in onnx.load(path).opset_import}
        assert versions.pop("") == 20
        assert versions.keys() <= {"com.microsoft", "ai.onnx.ml"}
        onnxruntime.InferenceSession(path)
