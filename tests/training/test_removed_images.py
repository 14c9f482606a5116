"""Broken images that are removed between a checkpoint and its resumption: the run goes on with the same views."""

import json

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import DatasetDict, Image
from helpers.images import rows
from helpers.pictures import draw_blank_pictures
from helpers.runs import COLOURS

import train_deit
from modeling_deit_distill import InputError, plan
from modeling_deit_distill.data.listing import aligned, listed
from modeling_deit_distill.data.sources import ImageData, load_image_data

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEACHER = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
RECIPE = {
    **SIZES,
    "image_size": 16,
    "patch_size": 4,
    "teacher_config_name": "resnet",
    "train_teacher": "true",
    "teacher_config_overrides": json.dumps(TEACHER),
    "teacher_num_train_epochs": 1,
    "allow_weak_teacher": "true",
    "validation_fraction": 0.2,
    "max_bad_image_fraction": 0.2,
    "per_device_train_batch_size": 4,
    "repeated_augmentation": 1,
    "max_steps": 16,
    "learning_rate": "1e-2",
    "save_strategy": "steps",
    "save_steps": 8,
    "report_to": "none",
    "use_cpu": "true",
    "bf16": "false",
    "disable_tqdm": "true",
    "resume_from_checkpoint": "true",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and blank pictures."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    draw_blank_pictures(monkeypatch)


@pytest.fixture
def photos(tmp_path):
    """Twenty noisy pictures of each of three colours."""
    draws = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.clip(draws.normal(colour, 25, size=(24, 40, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def files(data: ImageData) -> dict[str, list[str]]:
    """The files of both parts, in order."""
    parts = {"train": data.train, "validation": data.validation}
    return {name: [row["image"]["path"] for row in rows] for name, rows in parts.items()}


def run(photos, folder, **changes):
    words = {**RECIPE, "train_dir": photos, "output_dir": folder, **changes}
    train_deit.main([word for key, value in words.items() if value for word in (f"--{key}", str(value))])
    return json.loads((folder / "all_results.json").read_text())


def fail_at(monkeypatch, step: int):
    """The student's training fails once, in this step."""
    compute_loss, calls = train_deit.DistillationTrainer.compute_loss, []

    def fail(self, model, *args, **kwargs):
        calls.append(model.training)
        if sum(calls) == step:
            raise MemoryError
        return compute_loss(self, model, *args, **kwargs)

    monkeypatch.setattr(train_deit.DistillationTrainer, "compute_loss", fail)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["validation", "train"])
def test_a_broken_image_is_removed_and_the_run_goes_on_with_the_same_views(photos, tmp_path, monkeypatch, caplog, part):
    before = files(load_image_data(train_dir=str(photos), validation_fraction=0.2))
    broken = before[part][1]
    with open(broken, "wb") as file:
        file.write(b"no image")
    whole = run(photos, tmp_path / "whole")
    assert whole["bad_held_out_images"] == (part == "validation")
    assert whole["bad_images"] == (part == "train")  # an epoch of 48 views in 16 steps of 4, so it was shown

    fail_at(monkeypatch, 12)
    with pytest.raises(MemoryError):
        run(photos, tmp_path / "run")
    (photos / broken).unlink()
    results = run(photos, tmp_path / "run")
    assert "1 of 60 images are gone since the run was begun" in caplog.text
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]
    for key in ("bad_held_out_images", "bad_images", "eval_accuracy", "eval_loss", "teacher_accuracy"):
        assert results[key] == whole[key], key
    predictions = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("run", "whole")]
    assert predictions[0] == predictions[1] and len(predictions[0]["labels"]) == 12 - (part == "validation")
    card, record = ((tmp_path / "run" / name).read_text() for name in ("README.md", "run.json"))
    assert ("1 held-out image(s) could not be read" in card) == (part == "validation")
    assert ("1 held-out image(s) that cannot be read" in record) == (part == "validation")
    assert str(tmp_path) not in record
    text = (tmp_path / "run" / "images.json").read_text()
    assert str(tmp_path) not in text and len(json.loads(text)["train"]["names"]) == 60


def test_a_broken_held_out_image_is_refused_before_a_teacher_is_trained(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "find_or_train_teacher", None)
    broken = files(load_image_data(train_dir=str(photos), validation_fraction=0.2))["validation"][1]
    with open(broken, "wb") as file:
        file.write(b"no image")
    with pytest.raises(InputError, match="held-out /.* is a bad image: .*; repair it or move it away"):
        run(photos, tmp_path / "run", on_bad_image="error")
    words = [f"--{key}={value}" for key, value in {**RECIPE, "train_dir": photos, "on_bad_image": "error"}.items()]
    for look in ("check", "live_teacher"):  # the labelling script asks for the teacher alone
        with pytest.raises(InputError, match="held-out /.* is a bad image"):
            getattr(plan.Plan.from_arguments([*words, f"--output_dir={tmp_path / look}"]), look)()


def test_a_stream_without_its_broken_held_out_images(tmp_path):
    train, held_out = rows([0, 1] * 8, ["a", "b"]), rows([0, 1] * 8, ["a", "b"])
    images = [{"bytes": b"", "path": None} if row == 3 else each for row, each in enumerate(encoded(held_out))]
    held_out = held_out.remove_columns("image").add_column("image", images, feature=Image())
    DatasetDict(train=train, validation=held_out).save_to_disk(tmp_path / "saved")
    alone = {"distillation_type": "none", **{key: None for key in RECIPE if "teacher" in key}}
    changes = {"train_dir": None, "dataset_name": tmp_path / "saved", "streaming": "true", "max_steps": 2}
    results = run(None, tmp_path / "run", **alone, **changes)
    assert results["bad_held_out_images"] == 1
    assert len(json.loads((tmp_path / "run" / "predictions.json").read_text())["labels"]) == 15


def encoded(data):
    return data.cast_column("image", Image(decode=False))["image"][:]


def test_without_its_listing_a_removed_image_makes_another_run(photos, tmp_path, monkeypatch):
    fail_at(monkeypatch, 10)
    alone = {"distillation_type": "none", **{key: None for key in RECIPE if "teacher" in key}}
    with pytest.raises(MemoryError):
        run(photos, tmp_path / "run", **alone)
    (tmp_path / "run" / "images.json").unlink()
    (photos / "red" / "3.png").unlink()
    with pytest.raises(InputError, match="was made with num_images 48, this run has 47"):
        run(photos, tmp_path / "run", **alone)


# --- the listing ------------------------------------------------------------------------------------------------------


def test_rows_are_aligned_by_hand(photos):
    photographed = load_image_data(train_dir=str(photos)).train.select([5, 3, 30, 9])
    known = listed(photographed)
    assert known["names"] == [
        path.removeprefix(f"{photos}/") for path in (row["image"]["path"] for row in photographed)
    ]
    assert aligned(photographed, known) is photographed and aligned(photographed, None) is photographed
    fewer = aligned(photographed.select([3, 0, 2]), known)  # in another order, and the second is gone
    assert fewer["label"][:] == photographed["label"][:]
    assert [row["image"]["path"] for row in fewer] == [row["image"]["path"] for row in photographed]


def test_rows_that_do_not_fit_stay_as_they_are(photos):
    photographed = load_image_data(train_dir=str(photos)).train.select(range(20))
    known = listed(photographed.select(range(10)))
    assert aligned(photographed, known) is photographed  # more files than there were
    assert aligned(photographed, {**known, "classes": ["a", "b"]}) is photographed
    digits = load_image_data("digits").train
    assert listed(digits) is None and aligned(digits, known) is digits


def test_the_fingerprint_stays_if_a_file_is_gone_and_not_if_another_has_changed(photos):
    data = load_image_data(train_dir=str(photos))
    data.keep_fingerprint()
    fingerprint, paths = data.fingerprint(), [row["image"]["path"] for row in data.train]
    (photos / paths[7]).unlink()
    again = load_image_data(train_dir=str(photos), listing=data.listing)
    assert files(again) == files(data)
    assert again.fingerprint() == fingerprint
    assert load_image_data(train_dir=str(photos)).fingerprint() != fingerprint
    PIL.Image.new("RGB", (8, 8)).save(paths[8])
    assert load_image_data(train_dir=str(photos), listing=data.listing).fingerprint() != fingerprint
