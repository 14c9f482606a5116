"""`examples/evaluate_checkpoint.py` on every kind of checkpoint, against models asked directly."""

import json
import runpy
import sys

import numpy as np
import onnx
import PIL.Image
import pytest
import timm
import torch
from helpers.examples import load_example
from helpers.paths import ROOT
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    pipeline,
)

from modeling_deit_distill import DistillationTrainer, DistillationTrainingArguments, InputError
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.sources import load_image_data

SCRIPT = ROOT / "examples" / "evaluate_checkpoint.py"
COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def script():
    return load_example("evaluate_checkpoint")


@pytest.fixture(scope="module")
def photos(save_photos):
    """Eight noisy pictures of each of three colours, wider than high."""
    return save_photos(COLOURS, 8, deviation=90)


def labels(names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


@pytest.fixture(scope="module")
def save_student(tiny_model, tmp_path_factory):
    """`save_student(names, **overrides)`: a folder with a student of these classes."""

    def save(names, **overrides):
        folder = tmp_path_factory.mktemp("student")
        tiny_model(num_labels=len(names), **labels(names), **overrides).save_pretrained(folder)
        evaluation_processor(32, 0.9).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def student(save_student):
    """Ours; its classes in another order than the folders'."""
    return save_student(["red", "blue", "green"])


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A checkpoint of transformers' own, which knows more classes than the data, at another size."""
    folder = tmp_path_factory.mktemp("native")
    torch.manual_seed(1)
    names = ["Green", "yellow", "red", "black", "blue", "white"]
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels(names))
    ResNetForImageClassification(config).save_pretrained(folder)
    evaluation_processor(24, mean=(0.5,) * 3, std=(0.25,) * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory):
    """The files of a timm repository."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(2)
    model = timm.create_model("test_efficientnet", num_classes=3)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    view = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.3] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    names = {"num_classes": 3, "label_names": ["green", "red", "blue"]}
    config = {"architecture": "test_efficientnet", **names, "pretrained_cfg": view}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def export(folder, checkpoint, **changes):
    """What `examples/export_onnx.py` leaves behind."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    pixel_values = torch.zeros(2, 3, 32, 32)
    torch.onnx.export(
        Logits(model).eval(),
        (pixel_values,),
        folder / "model.onnx",
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    config = {"image_size": 32, "id2label": {str(index): name for index, name in model.config.id2label.items()}}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "preprocessor_config.json").write_bytes((checkpoint / "preprocessor_config.json").read_bytes())


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


WEIGHTS = np.random.default_rng(0).normal(size=(3 * 32 * 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """An ONNX model of a linear map by `WEIGHTS`, its classes in the order of the folders."""
    folder = tmp_path_factory.mktemp("linear")
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["pixel_values"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "linear",
        [onnx.helper.make_tensor_value_info("pixel_values", kind, ["batch", 3, 32, 32])],
        [onnx.helper.make_tensor_value_info("logits", kind, ["batch", 3])],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"image_size": 32, "id2label": dict(enumerate(COLOURS))}))
    evaluation_processor(32, 0.9).save_pretrained(folder)
    return folder


def linear_logits(folder, rows):
    images = EvaluationDataset(rows, evaluation_transform(AutoImageProcessor.from_pretrained(folder)))
    return np.stack([images[row]["pixel_values"].flatten().numpy() for row in range(len(rows))]) @ WEIGHTS


def logits_of(checkpoint, rows, class_names):
    """(images, classes of the data) asked directly, one image at a time."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    theirs = {name.lower(): index for index, name in model.config.id2label.items()}
    images = EvaluationDataset(rows, evaluation_transform(AutoImageProcessor.from_pretrained(checkpoint)))
    with torch.no_grad():
        logits = torch.cat([model(images[row]["pixel_values"][None]).logits for row in range(len(rows))])
    return logits[:, [theirs[name] for name in class_names]].numpy()


def evaluated(script, tmp_path, *words):
    """The report as it is written."""
    script.main([*map(str, words), "--output", str(tmp_path / "report.json")])
    return json.loads((tmp_path / "report.json").read_text())


def test_every_kind_is_measured_as_if_asked_directly(
    script, photos, student, native, of_timm, linear, tmp_path, capsys
):
    kinds = [student, native, of_timm, linear]
    report = evaluated(script, tmp_path, *kinds, "--validation_dir", photos, "--batch_size", 5)
    table = capsys.readouterr().out
    assert report["data"] == {
        "source": str(photos),
        "held_out": str(photos),
        "num_images": 24,
        "bad_held_out_images": 0,
        "num_classes": 3,
    }
    assert [result["run_by"] for result in report["models"]] == ["transformers"] * 3 + ["onnxruntime"]
    rows = load_image_data(train_dir=str(photos), validation_dir=str(photos)).validation
    truth = np.array(rows["label"][:])
    expected = [logits_of(folder, rows, list(COLOURS)) for folder in (student, native, of_timm)]
    expected.append(linear_logits(linear, rows))
    decisions = [logits.argmax(axis=1) for logits in expected]
    assert len({tuple(decided) for decided in decisions}) == 4  # they decide differently
    for kind, result, logits, decided in zip(kinds, report["models"], expected, decisions, strict=True):
        assert result["model"] == str(kind)
        assert result["top1_accuracy"] == np.mean(decided == truth)
        assert f"{100 * result['top1_accuracy']:.2f} %" in table
        assert "top5_accuracy" not in result  # three classes
        assert sum(result["bin_count"]) == 24
        confidence = torch.tensor(logits).softmax(-1).amax(-1).mean().item()
        mean = np.dot([part or 0 for part in result["bin_confidence"]], result["bin_count"]) / 24
        assert mean == pytest.approx(confidence, abs=1e-6)
        assert f"{100 * result['expected_calibration_error']:.2f} %" in table
    agreements = [result.get("teacher_agreement") for result in report["models"]]
    assert agreements == [None, *(np.mean(decided == decisions[0]) for decided in decisions[1:])]
    assert [result.get("disagreement") for result in report["models"][1:]] == [
        np.mean(decided != decisions[0]) for decided in decisions[1:]
    ]
    assert [word in table for word in ("top-1", "top-5", "calibration error", "agrees with first")] == [1, 0, 1, 1]


@pytest.mark.slow
def test_an_exported_student_answers_as_the_student(script, photos, student, tmp_path):
    export(tmp_path, student)
    report = evaluated(script, tmp_path, student, tmp_path, "--validation_dir", photos)
    assert [result["run_by"] for result in report["models"]] == ["transformers", "onnxruntime"]
    assert report["models"][1]["teacher_agreement"] == 1.0
    assert report["models"][0]["top1_accuracy"] == report["models"][1]["top1_accuracy"]


@pytest.mark.slow
def test_the_trainers_evaluation_and_this_agree(script, save_student, tmp_path):
    folder = save_student(DIGITS, use_distillation_token=False)
    report = evaluated(script, tmp_path, folder, "--dataset_name", "digits", "--validation_fraction", 0.2)
    (result,) = report["models"]
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = load_image_data("digits", validation_fraction=0.2).validation
    args = DistillationTrainingArguments(
        str(tmp_path),
        distillation_type="none",
        report_to="none",
        per_device_eval_batch_size=32,
        disable_tqdm=True,
        bf16=False,
    )
    trainer = DistillationTrainer(
        AutoModelForImageClassification.from_pretrained(folder),
        args,
        eval_dataset=EvaluationDataset(rows, evaluation_transform(processor)),
        processing_class=processor,
    )
    trained = trainer.evaluate()
    assert result["top1_accuracy"] == trained["eval_accuracy"]
    assert result["top5_accuracy"] == trained["eval_top5_accuracy"]
    assert report["data"]["held_out"] == "20% of split 'train'"


def test_logits_are_those_of_the_pipelines_answer(script, photos, student):
    rows = load_image_data(train_dir=str(photos), validation_fraction=0.25).validation
    model, classify = script.PipelineModel(str(student)), pipeline("image-classification", model=str(student))
    images = [PIL.Image.open(row["image"]["path"]) for row in rows]
    for logits, answer in zip(model(rows, 4), classify(images, top_k=3), strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        shares = torch.tensor(logits).softmax(-1).tolist()
        assert scores == pytest.approx(dict(zip(model.class_names, shares, strict=True)), abs=1e-6)


def test_two_classes_of_one_name_are_kept_apart(script, save_student, photos):
    folder = save_student(["crane", "red", "crane"])
    rows = load_image_data(train_dir=str(photos), validation_fraction=0.25).validation
    model, direct = script.PipelineModel(str(folder)), AutoModelForImageClassification.from_pretrained(folder).eval()
    images = EvaluationDataset(rows, evaluation_transform(AutoImageProcessor.from_pretrained(folder)))
    for row, logits in enumerate(model(rows, 4)):
        with torch.no_grad():
            expected = direct(images[row]["pixel_values"][None]).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert script.classes_of(model.name, model.class_names, ["crane", "crane2", "red"]) == [0, 2, 1]


def test_data_are_those_of_the_arguments(script, photos, tmp_path):
    def held_out(*words):
        return script.load_held_out(script.parse_options(["model", *map(str, words)]))

    alone = held_out("--validation_dir", photos)
    assert len(alone.validation) == 24
    cut, same = (
        held_out("--train_dir", photos, "--validation_fraction", 0.5),
        load_image_data(train_dir=str(photos), validation_fraction=0.5),
    )
    assert cut.fingerprint() == same.fingerprint()
    assert len(held_out("--train_dir", photos, "--validation_dir", photos).validation) == 24
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{name}/0.png,{name}\n" for name in ("blue", "green", "red")))
    for name in ("blue", "green", "red"):
        (tmp_path / name).symlink_to(photos / name)
    assert len(held_out("--validation_csv", table).validation) == 3
    for words, message in (
        ([], "no data: give --dataset_name"),
        (["--dataset_name", "digits", "--validation_dir", photos], "validation_dir goes with train_dir"),
        (["--dataset_name", "digits", "--validation_fraction", 2], "validation_fraction is 2.0"),
    ):
        with pytest.raises(InputError, match=message):
            held_out(*words)


def test_other_images_than_the_run_held_out_are_warned_of(script, photos, save_student, tmp_path, capsys):
    folder = save_student(["red", "blue", "green"])
    (folder / "run.json").write_text(json.dumps({"facts": {"held out": "12 images, 50% of split 'train'"}}))
    evaluated(script, tmp_path, folder, "--train_dir", photos, "--validation_fraction", "0.5")
    assert "warning" not in capsys.readouterr().err
    evaluated(script, tmp_path, folder, "--train_dir", photos, "--validation_fraction", "0.25")
    assert f"the run in {folder} held out 12 images, 50% of split 'train'; these are 6" in capsys.readouterr().err


def test_a_broken_image_is_named_and_left_out(script, student, photos, tmp_path, caplog):
    for name in COLOURS:
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.png").write_bytes((photos / name / "0.png").read_bytes())
    (tmp_path / "photos" / "green" / "1.png").write_bytes(b"not an image")
    report = evaluated(script, tmp_path, student, "--validation_dir", tmp_path / "photos")
    assert (report["data"]["num_images"], report["data"]["bad_held_out_images"]) == (3, 1)
    assert any("green/1.png is a bad image" in record.getMessage() for record in caplog.records)
    for number in range(1, 6):
        (tmp_path / "photos" / "red" / f"{number}.png").write_bytes(b"not an image")
    words = [str(student), "--validation_dir", str(tmp_path / "photos"), "--max_bad_image_fraction"]
    with pytest.raises(InputError, match="6 held-out images cannot be read, .* --max_bad_image_fraction 0.2 of 9: "):
        script.main([*words, "0.2"])
    script.main([*words, "0.7"])


def test_nothing_is_run_before_all_models_fit(script, photos, student, save_student, monkeypatch):
    monkeypatch.setattr(script, "logits_of", None)
    for wrong, message in (
        ("no/such-model", "model 'no/such-model' is no folder here and cannot be read from the Hub"),
        (save_student(["blue", "green"]), r"no certain match among the model's 2: 'red'; name them alike in id2label"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            script.main([str(student), str(wrong), "--validation_dir", str(photos)])
        assert "teacher" not in str(caught.value)


def test_what_cannot_be_loaded_is_one_line(script, photos, student, save_student, tmp_path):
    data = ["--validation_dir", str(photos)]
    without = save_student(list(COLOURS))
    (without / "preprocessor_config.json").unlink()
    cut = save_student(list(COLOURS))
    (cut / "model.safetensors").write_bytes((student / "model.safetensors").read_bytes()[:1000])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"nothing")
    (broken / "config.json").write_text(json.dumps({"id2label": dict(enumerate(COLOURS))}))
    (broken / "preprocessor_config.json").write_bytes((student / "preprocessor_config.json").read_bytes())
    for folder in (without, cut, broken):
        with pytest.raises(InputError, match=r"model '.*' cannot be loaded \(") as caught:
            script.main([str(folder), *data])
        assert "\n" not in str(caught.value)
    (broken / "config.json").write_text("{}")
    with pytest.raises(InputError, match="config.json has no id2label as transformers writes it"):
        script.main([str(broken), *data])


def test_an_onnx_model_must_fit_its_config_and_processor(script, photos, linear, tmp_path):
    rows = load_image_data(train_dir=str(photos), validation_fraction=0.25).validation
    for name, processor, classes, message in (
        ("names", evaluation_processor(32), [*COLOURS, "grey"], r"logits are \(1, 3\) for one image.* names 4 classes"),
        ("size", evaluation_processor(40), COLOURS, r"does not run on pixel_values \(1, 3, 40, 40\)"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes((linear / "model.onnx").read_bytes())
        (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(classes))}))
        processor.save_pretrained(folder)
        with pytest.raises(InputError, match=message):
            next(script.OnnxModel(str(folder))(rows, 4))


def test_a_model_that_answers_nonsense_is_refused(script, photos, save_student):
    folder = save_student(list(COLOURS))
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(InputError, match="answers with NaN or infinity to 24 of 24 images, the first row 0"):
        script.main([str(folder), "--validation_dir", str(photos)])


def test_an_error_is_one_line_before_anything_runs(monkeypatch, capsys):
    for words, message in (
        (["--batch_size", "0"], "batch_size is 0; it must be at least 1"),
        (["--output", "no/such/folder/report.json"], "output 'no/such/folder/report.json' cannot be written"),
        (["--output", "."], "output '.' cannot be written"),
    ):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "model", "--dataset_name", "digits", *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert left.value.code == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1
        assert captured.out == ""


def test_the_help_lists_every_data_argument(script, capsys):
    with pytest.raises(SystemExit):
        script.parse_options(["--help"])
    text = capsys.readouterr().out
    arguments = "dataset_name dataset_config_name train_dir validation_dir train_split validation_split"
    for name in (*arguments.split(), "validation_fraction", "image_column", "label_column", "batch_size", "output"):
        assert f"--{name} " in text
    assert "--streaming" not in text and "--crop_pct" not in text
