"""`predict`: one row a file, the answers of the model asked directly, and figures by hand."""

import csv
import json
import re
import runpy
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from helpers.runs import COLOURS

from modeling_deit_distill import InputError, predict
from modeling_deit_distill.analysis import ClassFigures
from modeling_deit_distill.classifiers import load_any_classifier
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.image_files import Skipped
from modeling_deit_distill.data.listing import are_listed
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.data.unlabelled import find_images
from modeling_deit_distill.predict import (
    NOTHING,
    Outcome,
    Truth,
    classes_table,
    find_truth,
    main,
    measured,
    measured_in_words,
)

NAMES = ["red", "blue", "green", "grey"]  # another order than the folders', and one class more
HEADER = ["path", "class", "probability", "next_class", "next_probability", "cls", "distillation"]


@pytest.fixture(scope="module")
def photos(save_photos):
    return save_photos(COLOURS, 5)


@pytest.fixture(scope="module")
def student(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    tiny_model(num_labels=4, **labels).save_pretrained(folder)
    evaluation_processor(32, 0.9).save_pretrained(folder)
    return str(folder)


def predicted(tmp_path, *words):
    """The header and the rows that are written."""
    output = tmp_path / "new" / "predictions.csv"
    assert main([*map(str, words), "--output", str(output)]) is None
    assert [path.name for path in output.parent.iterdir()] == ["predictions.csv"]
    with open(output, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return reader.fieldnames, rows


def asked_directly(student, photos):
    """By path what the model says of the image that evaluation shows."""
    rows = load_image_data(train_dir=str(photos), validation_dir=str(photos)).validation
    classifier = load_any_classifier(student, "cpu")
    images = EvaluationDataset(rows, evaluation_transform(classifier.processor))
    answers = {}
    for row in range(len(rows)):
        outputs = classifier.model(images[row]["pixel_values"][None])
        answers[rows[row]["image"]["path"]] = {
            "shares": outputs.logits[0].softmax(-1).tolist(),
            "cls": NAMES[outputs.cls_logits[0].argmax()],
            "distillation": NAMES[outputs.distillation_logits[0].argmax()],
        }
    return answers


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_has_the_answers_of_the_model_to_what_evaluation_shows(student, photos, tmp_path, workers):
    header, rows = predicted(tmp_path, student, photos, "--batch_size", 4, "--num_workers", workers, "--no_measure")
    assert header == [*HEADER, "error"]
    expected = asked_directly(student, photos)
    assert [row["path"] for row in rows] == sorted(expected) and len(rows) == 15
    for row in rows:
        answer = expected[row["path"]]
        best, second = np.argsort(answer["shares"])[::-1][:2]
        assert (row["class"], row["next_class"]) == (NAMES[best], NAMES[second])
        assert float(row["probability"]) == pytest.approx(answer["shares"][best], abs=1e-5)
        assert float(row["next_probability"]) == pytest.approx(answer["shares"][second], abs=1e-5)
        assert (row["cls"], row["distillation"], row["error"]) == (answer["cls"], answer["distillation"], "")


def test_a_bad_image_is_a_row_with_the_reason_in_its_place(student, photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    PIL.Image.open(photos / "red" / "0.png").save(folder / "deep" / "a.png")
    (folder / "deep" / "er" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    _, rows = predicted(tmp_path, student, folder, "--num_workers", 0)
    assert [row["path"].removeprefix(f"{folder}/") for row in rows] == ["deep/a.png", "deep/er/broken.jpg", "empty.jpg"]
    assert rows[0]["error"] == "" and rows[0]["class"] in NAMES
    assert rows[1]["error"] and rows[2]["error"] == "empty file"
    assert [rows[place][name] for place in (1, 2) for name in HEADER[1:]] == [""] * 12
    printed = capsys.readouterr().out
    assert f"skipped   1 file of no image format: {folder}/notes.txt\n" in printed
    assert f"2 images that cannot be read: {folder}/deep/er/broken.jpg (" in printed
    assert re.search(r"\w+ +1  100\.0 % ", printed)  # of the images that could be read


def test_nothing_but_bad_images_is_still_a_row_each(student, tmp_path, capsys):
    (tmp_path / "empty.jpg").write_bytes(b"")
    _, rows = predicted(tmp_path, student, tmp_path / "empty.jpg")
    assert len(rows) == 1 and rows[0]["error"] == "empty file"
    assert "1 image that cannot be read" in capsys.readouterr().out


def test_class_folders_are_measured_and_it_says_so(student, photos, tmp_path, capsys):
    header, rows = predicted(tmp_path, student, photos, "--num_workers", 0)
    assert header == [*HEADER, "label", "error"]
    assert [row["label"] for row in rows] == [name for name in COLOURS for _ in range(5)]
    printed = capsys.readouterr().out
    assert "measured  15 images, in 3 folder(s) named like classes of the model (--no_measure leaves" in printed
    right = np.mean([row["class"] == row["label"] for row in rows])
    assert re.search(rf"^accuracy +{100 * right:.2f} %$", printed, re.MULTILINE)
    assert "macro-F1" in printed and "balanced accuracy" in printed
    predicted(tmp_path / "other", student, photos, "--no_measure")
    assert "measured" not in capsys.readouterr().out.lower()


def test_folders_that_are_no_class_are_named(student, photos, tmp_path, capsys):
    for name in ("Red", "day", "night"):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        PIL.Image.open(photos / "red" / "0.png").save(tmp_path / "mixed" / name / "0.png")
    PIL.Image.open(photos / "red" / "0.png").save(tmp_path / "mixed" / "loose.png")
    _, rows = predicted(tmp_path, student, tmp_path / "mixed", "--num_workers", 0)
    assert [row["label"] for row in rows] == ["red", "", "", ""]
    printed = capsys.readouterr().out
    assert "measured  1 image, in 1 folder(s) named like classes of the model" in printed
    assert "but not 2 images in folders named like no class of the model: day (1), night (1)" in printed
    assert "but not 1 image in no class folder" in printed and "Measured on 1 image by" in printed
    header, _ = predicted(tmp_path / "other", student, tmp_path / "mixed" / "day", tmp_path / "mixed" / "night")
    assert header == [*HEADER, "error"]
    for name in ("Red", "day"):
        shutil.rmtree(tmp_path / "mixed" / name)
    capsys.readouterr()
    predicted(tmp_path / "third", student, tmp_path / "mixed", "--num_workers", 0)
    assert "measured  nothing: all folders are named like no class of the model: night (1)" in capsys.readouterr().out


def test_images_that_the_model_was_made_from_are_counted_apart(student, photos, save_photos, tmp_path, capsys):
    model = shutil.copytree(student, tmp_path / "run")
    data = load_image_data(train_dir=str(photos), validation_fraction=0.2)
    (model / "images.json").write_text(json.dumps(data.listing))  # by name, as some runs know them
    said = "measured  15 images, 15 of which the model was made from, so the figures say nothing of new images, in 3"
    predicted(tmp_path / "first", model, photos, "--num_workers", 0)
    assert said in capsys.readouterr().out
    data.keep_fingerprint()
    (model / "images.json").write_text(json.dumps(data.listing))
    predicted(tmp_path / "second", shutil.copytree(student, model / "teacher"), photos, "--num_workers", 0)
    assert said in capsys.readouterr().out
    for name in COLOURS:  # other images under the same names
        for place in range(5):
            path = tmp_path / "photos" / name / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (9, 9), (place, 1, 2)).save(path)
    predicted(tmp_path / "third", model, tmp_path / "photos", "--num_workers", 0)
    assert "of which the model" not in capsys.readouterr().out


def test_images_that_the_model_was_trained_on_without_labels_are_counted_as_such(student, photos, tmp_path, capsys):
    model, labelled = shutil.copytree(student, tmp_path / "run"), tmp_path / "labelled"
    for name in COLOURS:
        (labelled / name).mkdir(parents=True)
        for place in range(2):
            shutil.copy(photos / name / f"{place}.png", labelled / name)
    data = load_image_data(train_dir=str(labelled), validation_fraction=0.5, unlabeled_dir=str(photos))
    data.keep_fingerprint()
    (model / "images.json").write_text(json.dumps(data.listing))
    predicted(tmp_path / "first", model, photos, "--num_workers", 0)
    said = "15 of which the model was made from (9 of them without labels), so the figures say nothing of new images, "
    assert f"measured  15 images, {said}" in capsys.readouterr().out
    # The run's teacher was trained on the six with labels alone.
    predicted(tmp_path / "second", shutil.copytree(student, model / "teacher"), photos, "--num_workers", 0)
    assert "of which the model" not in capsys.readouterr().out


def test_held_out_images_of_a_folder_of_their_own_are_new(photos, tmp_path):
    held_out = tmp_path / "held_out"
    for name in COLOURS:
        (held_out / name).mkdir(parents=True)
        PIL.Image.new("RGB", (9, 9), COLOURS[name]).save(held_out / name / "0.png")
    data = load_image_data(train_dir=str(photos), validation_dir=str(held_out))
    data.keep_fingerprint()
    assert are_listed([str(held_out / "red" / "0.png"), str(photos / "red" / "0.png")], data.listing) == [False, True]


def test_figures_by_hand(photos):
    images = find_images([str(photos)])
    truth = find_truth(["green", "blue"], images)
    assert truth.folders == {"blue": 1, "green": 0} and truth.others == {"red": 5}
    assert truth.labels.tolist() == [1] * 5 + [0] * 5 + [NOTHING] * 5
    # blue: 3 of 5 right, one unreadable; green: 2 of 5; of red nothing is known
    decisions = np.array([1, 1, 1, 0, NOTHING, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0], np.int32)
    results = measured(Outcome(decisions, np.zeros(2)), truth)
    assert results.accuracy == pytest.approx(5 / 9)
    assert results.balanced_accuracy == pytest.approx((2 / 5 + 3 / 4) / 2)
    assert results.macro_f1 == pytest.approx((0.5 + 0.6) / 2)
    assert results.classes == [
        ClassFigures(0, *map(pytest.approx, (2 / 3, 2 / 5, 0.5)), 5, 3),
        ClassFigures(1, *map(pytest.approx, (3 / 6, 3 / 4, 0.6)), 4, 6),
    ]
    assert measured(Outcome(np.full(15, NOTHING), np.zeros(2)), truth) is None


def test_of_very_many_classes_the_worst_are_listed():
    labels = np.arange(60)
    decisions = np.where(labels < 7, 59, labels)
    results = measured(Outcome(decisions, np.zeros(61)), Truth(labels, {}, {}))
    names = [f"class {index}" for index in range(61)]
    assert measured_in_words(results, names, 63).startswith(
        "Measured on 60 images by the names of the folders; 3 of the 63 cannot be read\n"
    )
    lines = measured_in_words(results, names, 60).splitlines()
    assert lines[0] == "Measured on 60 images by the names of the folders"
    assert lines[6].split() == ["class", "precision", "recall", "F1", "images"]
    assert lines[7].split() == ["class", "0", "–", "0.0", "%", "0.0", "%", "1"]
    assert lines[-1] == "These are the classes with the lowest F1; 40 others are left out."


def test_the_summary_of_classes_counts_and_names():
    outcome = Outcome(np.array([2, 0, 2, NOTHING]), np.array([0.5, 0.0, 1.5]), Skipped())
    assert classes_table(outcome, ["hat", "shirt", "shoe"]).splitlines() == [
        "class  images   share  mean probability",
        "shoe        2  66.7 %              0.75",
        "hat         1  33.3 %              0.50",
        "never answered: shirt",
    ]
    unread = Outcome(np.array([NOTHING]), np.zeros(3), Skipped())
    assert "never answered" not in classes_table(unread, ["hat", "shirt", "shoe"])
    many = Outcome(np.arange(30), np.ones(1000))
    lines = classes_table(many, [str(index) for index in range(1000)]).splitlines()
    assert lines[-2:] == ["and 10 more classes", "never answered: 970 classes"] and len(lines) == 23


def test_a_model_of_one_class_has_no_next_one(tiny_model, photos, tmp_path):
    tiny_model(num_labels=1, id2label={0: "red"}, label2id={"red": 0}, use_distillation_token=False).save_pretrained(
        tmp_path / "one"
    )
    header, rows = predicted(tmp_path, tmp_path / "one", photos / "red" / "0.png")
    assert header == ["path", "class", "probability", "next_class", "next_probability", "error"]
    assert rows == [dict(zip(header, [str(photos / "red" / "0.png"), "red", "1.000000", "", "", ""], strict=True))]


def test_a_model_that_answers_nonsense_is_refused_and_nothing_is_written(student, photos, tmp_path, tiny_model):
    model = tiny_model(num_labels=4)
    with torch.no_grad():
        model.cls_classifier.weight.fill_(3e38)  # finite, and too large
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match="answers with NaN or infinity, first to .*blue/0.png; its weights are broken"):
        main([str(tmp_path / "broken"), str(photos), "--output", str(tmp_path / "out.csv")])
    assert not [path for path in tmp_path.iterdir() if "csv" in path.name]


def test_wrong_input_is_one_line_before_anything_runs(student, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for words, message in (
        ([student, "nowhere"], "'nowhere' is no file and no folder"),
        ([student, photos, "--batch_size", 0], "batch_size is 0; it must be at least 1"),
        ([student, photos, "--num_workers", -1], "num_workers is -1; it must be at least 0"),
        ([student, photos, "--output", tmp_path], "output .* is a folder; give a file"),
        ([student, photos, "--output", tmp_path / "file" / "out.csv"], "output .* cannot be written"),
        ([photos, photos], "has no config.json"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            main([*map(str, words)])
        assert "\n" not in str(caught.value)


def test_several_processes_are_refused(student, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="launched in 2 processes.*python -m modeling_deit_distill.predict"):
        predicted(tmp_path, student, photos)


def test_a_log_without_a_terminal_has_no_bars(student, photos, tmp_path, capfd):
    transformers.utils.logging.enable_progress_bar()
    predicted(tmp_path, student, photos, "--num_workers", 0)
    assert "\r" not in "".join(capfd.readouterr()) and "Loading" not in capfd.readouterr().err


def test_the_command_has_help_and_an_error_of_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict", "model", "nowhere"])
    monkeypatch.delitem(sys.modules, "modeling_deit_distill.predict")  # runpy would warn of it
    with pytest.raises(SystemExit) as left:
        runpy.run_module("modeling_deit_distill.predict", run_name="__main__")
    assert left.value.code == 2 and capsys.readouterr().err.startswith("error: 'nowhere' is no file")
    with pytest.raises(SystemExit):
        predict.parse_options(["--help"])
    assert "FOLDER_OR_FILES" in capsys.readouterr().out
