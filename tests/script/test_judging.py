"""`train_deit.py --do_train false` and `--do_predict true` on a finished run."""

import csv
import json
import re
import shutil
import signal

import pytest
from helpers.runs import arguments, files, one_run, words_of

import train_deit
from modeling_deit_distill import InputError, predict
from modeling_deit_distill.conversion.checkpoint import load_checkpoint
from modeling_deit_distill.conversion.saving import save_native
from modeling_deit_distill.signals import Interrupted

QUIET = {"use_cpu": "true", "bf16": "false", "disable_tqdm": "true", "report_to": "none", "do_train": "false"}


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def judge(**settings):
    return train_deit.main(words_of({**QUIET, **settings}))


@pytest.mark.slow
def test_the_recipe_judges_its_own_model_on_its_own_images(run, photos, capsys):
    folder, results = run
    before = files(folder)
    words = arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder, do_train="false")
    judged = train_deit.main(words)
    same = [key for key in results if key.startswith("eval_accuracy") or key in ("eval_macro_f1", "eval_loss")]
    assert len(same) > 5
    assert {key: judged[key] for key in same} == pytest.approx({key: results[key] for key in same})
    printed = capsys.readouterr().out
    assert "nothing is trained" in printed and "of the model's 3" in printed and "warning" not in printed
    assert f"{100 * results['eval_accuracy']:.2f} %" in printed and "balanced accuracy" in printed
    assert files(folder) == before
    assert train_deit.main([*words, "--dry_run", "true"]) == {}


@pytest.mark.slow
def test_another_folder_is_judged_by_name_with_all_classes_of_the_model(run, photos, tmp_path, capsys):
    for theirs, ours in (("Red", "red"), ("blue", "blue")):  # two of three, in another order
        shutil.copytree(photos / ours, tmp_path / "other" / theirs)
    settings = {"validation_dir": tmp_path / "other", "output_dir": tmp_path / "out"}
    judged = judge(model_name_or_path=run[0], do_predict="true", **settings)
    printed = capsys.readouterr().out
    assert f"held out   32 images, {tmp_path / 'other'}\n" in printed and "2 of the model's 3" in printed
    assert "warning: the run in" in printed and "held out 12 images" in printed
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 32 and {row["label"] for row in rows} == {"red", "blue"}
    right = sum(row["class"] == row["label"] for row in rows) / 32
    assert judged["eval_accuracy"] == pytest.approx(right) and right > 0.5


@pytest.mark.slow
def test_what_conversion_reads_is_judged_too(run, photos, tmp_path):
    (tmp_path / "native").mkdir()
    save_native(load_checkpoint(str(run[0])), tmp_path / "native")
    expected = judge(model_name_or_path=run[0], validation_dir=photos, output_dir=tmp_path / "out")
    judged = judge(model_name_or_path=tmp_path / "native", validation_dir=photos, output_dir=tmp_path / "out")
    assert judged["eval_accuracy_distillation"] == expected["eval_accuracy_distillation"]


def test_what_cannot_be_judged_is_one_line(run, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "new")
    (tmp_path / "new" / "red").rename(tmp_path / "new" / "purple")
    new = {"validation_dir": tmp_path / "new", "output_dir": tmp_path / "out"}
    known = {"validation_dir": photos, "output_dir": tmp_path / "out"}
    for settings, message in (
        (known, "output_dir .*out' holds no finished model to judge; give .* --model_name_or_path"),
        ({**new, "model_name_or_path": run[0]}, "no certain match among the model's 3: 'purple'"),
        ({**known, "output_dir": run[0], "model_name_or_path": "me/it"}, "which model is to be judged.*'me/it'"),
        ({**known, "model_name_or_path": run[0], "push_to_hub": "true"}, "push_to_hub is about training"),
        ({**known, "model_name_or_path": run[0], "do_train": "true"}, "no images to train on.*--do_train false"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            judge(**settings)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("record", "words"), [("{", "is no JSON"), ("[]", "holds a list, not names")])
def test_a_record_that_cannot_be_read_is_one_line(run, photos, tmp_path, record, words):
    folder = shutil.copytree(run[0], tmp_path / "run")
    (folder / "run.json").write_text(record)
    with pytest.raises(InputError, match=f"run.json' {words}"):
        judge(model_name_or_path=folder, validation_dir=photos, output_dir=tmp_path / "out")


def test_main_returns_the_results_and_do_predict_writes_the_answers(run, photos, tmp_path, capsys):
    """Of a run that trains, and of one that is finished already."""
    folder = shutil.copytree(run[0], tmp_path / "out")
    words = arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder, do_predict="true")
    assert train_deit.main(words) == run[1]
    decisions = json.loads((folder / "predictions.json").read_text())
    names = ["blue", "green", "red"]
    rows = rows_of(folder / "predictions.csv")
    for column, kept in (("class", "fused"), ("cls", "cls"), ("distillation", "distillation"), ("label", "labels")):
        assert [row[column] for row in rows] == [names[index] for index in decisions[kept]]
    assert f"{folder / 'predictions.csv'} has the answers on 12 images" in capsys.readouterr().out
    shorter = {"overwrite_output_dir": "true", "max_steps": "1", "save_strategy": "no", "eval_strategy": "no"}
    words = arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder, **shorter)
    results = train_deit.main(words)
    assert results == json.loads((folder / "all_results.json").read_text())
    assert not (folder / "predictions.csv").exists()  # it was the earlier run's
    printed = capsys.readouterr().out
    # After one step the teacher is the one to keep.
    assert f"Use the teacher:  python -m modeling_deit_distill.predict {folder / 'teacher'} FOLDER_OR_FILES" in printed
    assert f"Or the student:   python -m modeling_deit_distill.predict {folder} FOLDER_OR_FILES" in printed


def test_photos_that_were_moved_since_are_named_among_those_the_run_was_trained_on(run, photos, tmp_path, capsys):
    folder, moved = shutil.copytree(run[0], tmp_path / "out"), shutil.copytree(photos, tmp_path / "photos")
    for number, path in enumerate(sorted((moved / "red").iterdir())):
        path.rename(path.with_name(f"{99 - number}.png"))  # as many as before; others are held out
    train_deit.main(arguments(train_dir=moved, validation_fraction=0.25, output_dir=folder, do_predict="true"))
    printed = capsys.readouterr().out
    assert "held out 12 images" in printed and "these are 12 images" in printed
    assert re.search(r"It was trained on [1-4] of them: give the data's arguments as then, and the same", printed)


def test_a_copy_that_was_trained_on_is_no_reason_to_warn(run, photos, tmp_path, capsys):
    twice = tmp_path / "photos"
    for name in ("red", "blue", "green"):
        (twice / name).mkdir(parents=True)
        for path in list((photos / name).iterdir())[:6]:
            shutil.copy(path, twice / name / path.name)
            shutil.copy(path, twice / name / f"copy of {path.name}")
    settings = {"max_steps": 1, "validation_fraction": 0.25, "do_predict": "true"}
    settings |= {"teacher_store": tmp_path / "answers"}  # so that the listing has checksums
    one_run(twice, tmp_path / "out", run[0] / "teacher", **settings)
    assert "num_trained" in (tmp_path / "out" / "images.json").read_text()
    assert "It was trained on" not in capsys.readouterr().out


def test_a_run_predicts_after_its_training(run, photos, tmp_path):
    one_run(photos, tmp_path / "out", run[0] / "teacher", max_steps=1, validation_fraction=0.25, do_predict="true")
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 12


def test_a_signal_while_a_finished_run_predicts_names_the_command_that_predicts(
    run, photos, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(run[0], tmp_path / "out")
    words = arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder, do_predict="true")
    with monkeypatch.context() as patched:
        patched.setattr(predict, "write_predictions", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match="is finished; go on with .*python train_deit.py .*--do_predict true"):
            train_deit.main(words)
    capsys.readouterr()
    train_deit.main([*words, "--resume_from_checkpoint", "true"])
    assert (folder / "predictions.csv").exists() and "resuming from" not in capsys.readouterr().out


def test_the_predict_command_answers_as_do_predict(run, photos, tmp_path):
    predict.main([str(run[0]), str(photos), "--output", str(tmp_path / "all.csv"), "--num_workers", "0"])
    answers = {row["path"]: row["class"] for row in rows_of(tmp_path / "all.csv")}
    judge(model_name_or_path=run[0], validation_dir=photos, output_dir=tmp_path / "out", do_predict="true")
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert {row["path"]: row["class"] for row in rows} == answers and len(rows) == 48
