"""Dry runs of the script: what they try and say, and that they leave nothing behind."""

import re
import shutil

import pytest
from helpers.runs import arguments, files, one_run, without_teacher, words_of

import train_deit
from modeling_deit_distill import InputError, dry_run


@pytest.fixture
def at_once(monkeypatch, tmp_path):
    """Dry runs that measure three steps alone; where they put what they write."""
    monkeypatch.setattr(dry_run, "SECONDS", 0.0)
    monkeypatch.setattr(dry_run.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def estimates(capsys) -> tuple[str, list[str]]:
    """All that was printed, and the lines of the estimate."""
    printed = capsys.readouterr().out
    head, found, lines = printed.partition("How long it will take on this machine, as busy as it is now\n")
    assert found and "loss" not in head
    return printed, [re.sub(" {2,}", "  ", line).strip() for line in lines.splitlines()]


def test_a_dry_run_tries_both_phases_and_leaves_nothing(photos, tmp_path, capsys, at_once):
    train_deit.main(arguments(train_dir=photos, output_dir=tmp_path / "out", dry_run="true", save_steps=2))
    printed, (teacher, student, in_all) = estimates(capsys)
    for words in ("images", "3: blue, green, red", "hidden 16", "0.01", "hard", "4 epochs, 20 steps"):
        assert words in printed
    assert "a new resnet, trained first for 4 epochs, 20 steps" in printed
    words = r"  \d+ s  20 steps of .* s, 4 evaluations of .* s, 4 checkpoints of .* s"
    assert re.fullmatch("1 of 2: teacher" + words, teacher) and re.fullmatch("2 of 2: student" + words, student)
    assert re.fullmatch(r"in all  \d+ s", in_all)
    assert not (tmp_path / "out").exists() and not list(at_once.iterdir())


@pytest.mark.slow
def test_a_dry_run_with_a_teacher_that_is_there_or_none(run, photos, tmp_path, capsys, at_once):
    before = files(run[0])
    named = {**without_teacher(), "teacher_name_or_path": run[0] / "teacher", "max_steps": 3, "eval_strategy": "no"}
    settings = {"train_dir": photos, "dry_run": "true", "save_strategy": "no"}
    train_deit.main(words_of({**named, **settings, "output_dir": tmp_path / "out"}))
    assert re.fullmatch(r"student  \d+ s  3 steps of [\d.e-]+ s", *estimates(capsys)[1])
    alone = {**without_teacher(), "distillation_type": "none", **settings, "output_dir": tmp_path / "out"}
    train_deit.main(words_of(alone))
    assert estimates(capsys)[1][0].startswith("student")
    stopping = {"early_stopping_patience": 1, "load_best_model_at_end": "true", "metric_for_best_model": "accuracy"}
    train_deit.main(arguments(**{**settings, **stopping, "save_strategy": "epoch", "output_dir": tmp_path / "out"}))
    assert estimates(capsys)[1][0].startswith("1 of 2: teacher")
    found = {"validation_fraction": 0.25, "overwrite_output_dir": "true", **settings, "output_dir": run[0]}
    train_deit.main(arguments(**found))
    assert estimates(capsys)[1][0].startswith("student")
    assert files(run[0]) == before and not (tmp_path / "out").exists() and not list(at_once.iterdir())


@pytest.mark.slow
def test_a_dry_run_reads_stored_answers_and_writes_none(run, photos, tmp_path, capsys, at_once):
    store = {"teacher_store": tmp_path / "answers", "distillation_type": "soft"}
    settings = {"train_dir": photos, "output_dir": tmp_path / "out", "dry_run": "true", "max_steps": 3, **store}
    teacher = {**without_teacher(), "teacher_name_or_path": run[0] / "teacher"}
    train_deit.main(words_of({**teacher, **settings}))
    assert estimates(capsys)[1][0].startswith("student")
    assert not (tmp_path / "answers").exists()
    one_run(photos, tmp_path / "filled", run[0] / "teacher", **store)
    before = files(tmp_path / "answers")
    capsys.readouterr()
    train_deit.main(words_of({**without_teacher(), **settings}))
    printed, lines = estimates(capsys)
    assert "no teacher is loaded or trained" in printed and lines[0].startswith("student")
    assert files(tmp_path / "answers") == before
    with pytest.raises(InputError, match="has not all the views of this run"):
        train_deit.main(words_of({**without_teacher(), **settings, "max_steps": 30}))
    assert not (tmp_path / "out").exists() and not list(at_once.iterdir())


@pytest.fixture
def student_steps(run, photos, tmp_path, capsys, at_once):
    """`student_steps(**changes)`: what a dry run with the teacher of `run` says of its steps, without their seconds."""
    given = {**without_teacher(), "teacher_name_or_path": run[0] / "teacher", "train_dir": photos, "dry_run": "true"}
    given |= {"output_dir": tmp_path / "out", "eval_strategy": "no", "save_strategy": "no"}

    def steps(**changes):
        train_deit.main(words_of({**given, **changes}))
        (line,) = estimates(capsys)[1]
        assert not (tmp_path / "out").exists() and not list(at_once.iterdir())
        return re.fullmatch(r"student  \S+ s  (.*)", re.sub(r"of [\d.e-]+ s\b", "of T", line))[1]

    return steps


def test_a_dry_run_tells_steps_that_ask_the_teacher_from_others(student_steps):
    assert student_steps(view_epochs=1) == "5 steps of T asking the teacher, 15 steps of T"


@pytest.mark.slow
def test_a_dry_run_takes_what_a_store_lacks_for_what_is_asked(student_steps, run, photos, tmp_path, capsys):
    assert student_steps() == "20 steps of T"
    store = {"teacher_store": tmp_path / "answers"}
    one_run(photos, tmp_path / "filled", run[0] / "teacher", **store)  # three steps
    before = files(tmp_path / "answers")
    capsys.readouterr()
    assert student_steps(**store) == "17 steps of T asking the teacher, 3 steps of T"
    assert student_steps(**store, view_epochs=1) == "2 steps of T asking the teacher, 18 steps of T"
    assert student_steps(**store, max_steps=3) == "3 steps of T"
    assert files(tmp_path / "answers") == before


def test_what_will_go_poorly_is_said_once_and_before_anything_is_trained(photos, tmp_path, capsys, caplog, at_once):
    changes = {"num_train_epochs": 1, "warmup_epochs": 3, "dry_run": "true"}
    train_deit.main(arguments(train_dir=photos, output_dir=tmp_path / "out", **changes))
    printed = capsys.readouterr().out
    assert "the warm-up takes 15 steps but the run has 5" in printed and "warm-up" not in caplog.text
    assert "43 images are few to start from scratch" in printed
    assert "finetune_own_images.yaml" in printed


def test_the_summary_knows_a_teacher_that_was_trained_before(run, photos, tmp_path, capsys, at_once):
    shutil.copytree(run[0] / "teacher", tmp_path / "out" / "teacher")
    settings = {"train_dir": photos, "output_dir": tmp_path / "out", "dry_run": "true"}
    train_deit.main(arguments(validation_fraction=0.25, **settings))
    assert "a resnet, trained before for 4 epochs, found in the output folder" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds a teacher trained with another learning_rate"):
        train_deit.main(arguments(validation_fraction=0.25, teacher_learning_rate=1, **settings))
