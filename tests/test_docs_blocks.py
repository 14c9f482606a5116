"""The Python blocks of the docs run, each file's in their order, with small things in place of what a reader has."""

import json
import os

import numpy as np
import PIL.Image
import pytest
import timm
import torch
import transformers
from helpers.docs import FILES, blocks, name_of
from helpers.paths import ROOT
from helpers.teachers import teacher_in

from modeling_deit_distill.data.evaluation import evaluation_processor

WITH_BLOCKS = [name_of(path) for path in FILES if blocks(path, "python")]
ELSEWHERE = "docs/change_the_method.md"  # see test_docs_examples.py
SMALLER = {  # in place of a run's length, batch and model
    '"tiny",': '"tiny", hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,',
    "num_train_epochs=100": "num_train_epochs=1, use_cpu=True, report_to='none', repeated_augmentation=1",
    "per_device_train_batch_size=128": "per_device_train_batch_size=2",
    '"regnety_160"': '"test_resnet"',
}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_model):
    """The working folder of a reader: a photo, a run's folder; names on the Hub lead to that."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (40, 30), "teal").save("photo.jpg")
    model = tmp_path / "outputs" / "photos"
    tiny_model(num_labels=10).save_pretrained(model)
    evaluation_processor(32).save_pretrained(model)
    classes = list(range(10))
    (model / "predictions.json").write_text(json.dumps({"labels": classes, "fused": classes}))

    def pipeline(task, model=None, revision=None, **kwargs):
        local = str(tmp_path / "outputs" / "photos") if model == "me/my-deit" else model
        return transformers.pipeline(task, model=local, **kwargs)

    return {"pipeline": pipeline, "transformers": transformers, "json": json, "PIL": PIL, "torch": torch}


def run(name: str, found: dict, upto: int | None = None):
    """Run a file's blocks, one after the other, in one namespace."""
    for code in blocks(ROOT / name, "python")[:upto]:
        for written, instead in SMALLER.items():
            code = code.replace(written, instead)
        exec(code.replace("from transformers import pipeline\n", ""), found)
    return found


def test_every_file_with_blocks_is_run():
    covered = {test.removeprefix("test_") for test in globals() if test.startswith("test_")}
    names = {name.removesuffix(".md").replace("/", "_").lower() for name in WITH_BLOCKS if name != ELSEWHERE}
    assert names <= covered, names - covered


def test_readme(place):
    assert run("README.md", place)["classify"]("photo.jpg")


def test_docs_publishing(place):
    loaded = []
    run(
        "docs/publishing.md", {**place, "pipeline": lambda *words, **kw: loaded.append(place["pipeline"](*words, **kw))}
    )
    assert len(loaded) == 2 and all(each.model.num_labels == 10 for each in loaded)


@pytest.mark.slow
def test_docs_results(place, capsys):
    assert run("docs/results.md", place)["measured"].balanced_accuracy == 1
    assert capsys.readouterr().out.startswith("1.0 1.0 ")


def test_docs_images(place):
    os.makedirs("photos/hat")
    PIL.Image.new("RGB", (2048, 1000), "teal").save("photos/hat/1.png")
    run("docs/images.md", {**place, "image": PIL.Image.fromarray(np.zeros((4, 4), np.uint16))})
    assert PIL.Image.open("night.png").mode == "I;16"
    assert PIL.Image.open("photos_small/hat/1.png.jpg").size == (1024, 500)


@pytest.mark.slow
def test_docs_trainer(place):
    sample = {"pixel_values": torch.zeros(3, 224, 224), "labels": 1}
    given = {"train_dataset": [sample] * 4, "eval_dataset": [sample] * 2}
    teacher = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())  # three channels, three classes
    run("docs/trainer.md", {**place, "teacher": teacher, **given}, upto=1)  # test_docs.py runs the second
    assert os.path.exists("outputs/mine/model.safetensors")


def test_docs_teachers(place):
    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=3).state_dict()}, "checkpoint.pth.tar")
    model = run("docs/teachers.md", place)["model"].eval()
    teacher = teacher_in("my_teacher", ["shoe", "hat", "shirt"])
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher.model(pixels).logits, model(pixels))
    assert teacher.classes.tolist() == [2, 0, 1]


@pytest.mark.slow
def test_docs_export(place, capsys):
    pytest.importorskip("onnxruntime")
    from modeling_deit_distill.export.__main__ import main

    main(["outputs/photos", "DESTINATION", "--formats", "onnx"])
    found = run("docs/export.md", dict(place), upto=1)
    assert capsys.readouterr().out.splitlines()[-1].startswith("LABEL_")
    pytest.importorskip("executorch")  # for the second block
    main(["outputs/photos", "phone", "--formats", "executorch", "--precisions", "fp32"])
    os.replace("phone/model.pte", "DESTINATION/model.pte")
    assert run("docs/export.md", {**found, "image": PIL.Image.open("photo.jpg")})["logits"].shape == (1, 10)


@pytest.mark.slow
def test_examples_metrics_readme(place, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        batch = {"pixel_values": torch.eye(6), "labels": torch.arange(6)}
        model = lambda pixel_values: transformers.modeling_outputs.ImageClassifierOutput(logits=pixel_values)  # noqa: E731
        found = run("examples/metrics/README.md", {**place, "share_of_this_process": [batch], "model": model})
        assert found["result"] == {"top1_accuracy": 1.0, "top5_accuracy": 1.0}
    finally:
        torch.distributed.destroy_process_group()
