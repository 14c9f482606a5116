"""The script with a store of its teacher's answers."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import runs
from helpers.labelling import forget
from helpers.paths import ROOT
from helpers.runs import STUDENT, arguments, without_teacher

import train_deit
from modeling_deit_distill import (
    DeiTDistillConfig,
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.teachers.store import TeacherStore
from modeling_deit_distill.teachers.upgrade import upgrade


def from_store(photos, output, store, **changes):
    """Train with stored answers; the results and the student's bytes."""
    given = {"validation_fraction": 0.25, "train_dir": photos, "output_dir": output, "teacher_store": store}
    quick = {"eval_strategy": "no", "save_strategy": "no"}
    train_deit.main(arguments(**{**given, **quick, **changes}))
    return json.loads((output / "all_results.json").read_text()), (output / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def stored(run, photos, tmp_path_factory):
    """A store that a run with the teacher of `run` has filled, and what came of that run."""
    folder = tmp_path_factory.mktemp("stored")
    given = {"train_teacher": "false", "teacher_config_name": "", "teacher_config_overrides": "{}"}
    words = {**given, "teacher_name_or_path": run[0] / "teacher"}
    return folder / "answers", words, from_store(photos, folder / "out", folder / "answers", **words)


def test_a_run_that_writes_a_store_is_the_live_run(run, stored):
    answers, _, (results, weights) = stored
    assert weights == (run[0] / "model.safetensors").read_bytes()
    assert results["teacher_views_asked"] == run[1]["teacher_views_asked"] == 4 * 32
    assert sorted(path.name for path in answers.glob("epoch-*")) == [f"epoch-0000{epoch}.bin" for epoch in range(4)]
    assert {path.stat().st_size for path in answers.glob("epoch-*")} == {32 + 2 * 36 + 4}


def test_a_full_store_needs_no_teacher(run, stored, photos, tmp_path, monkeypatch, capsys):
    answers, words, (before, weights) = stored
    monkeypatch.setattr("modeling_deit_distill.plan.load_teachers", None)
    results, again = from_store(photos, tmp_path / "named", answers, **words)
    assert again == weights and "teacher_num_parameters" not in results
    assert "not measured: all its answers are stored, so it is not loaded" in capsys.readouterr().out
    monkeypatch.setattr(runs, "RECIPE", without_teacher())
    unnamed, and_again = from_store(photos, tmp_path / "unnamed", answers)
    assert and_again == weights
    for found in (results, unnamed):
        assert found["teacher_views_asked"] == 0
        for key in ("teacher_accuracy", "eval_teacher_agreement", "eval_accuracy"):
            assert found[key] == before[key] == run[1][key]


def test_a_teacher_that_the_run_trained_is_measured_though_its_answers_are_stored(photos, tmp_path):
    words = {"teacher_num_train_epochs": 2, "num_train_epochs": 1, "allow_weak_teacher": "true", "data_seed": 42}
    first, _ = from_store(photos, tmp_path / "out", tmp_path / "answers", **words)
    again, _ = from_store(photos, tmp_path / "out", tmp_path / "answers", **words, seed=1, overwrite_output_dir="true")
    assert again["teacher_views_asked"] == 0 < first["teacher_views_asked"]
    assert again["teacher_num_parameters"] == first["teacher_num_parameters"] > 0


def test_a_teacher_to_be_trained_is_not_trained_for_a_full_store(run, photos, tmp_path, capsys):
    short = {"teacher_num_train_epochs": 2, "num_train_epochs": 1, "allow_weak_teacher": "true"}
    _, weights = from_store(photos, tmp_path / "first", tmp_path / "answers", **short)
    capsys.readouterr()
    results, again = from_store(photos, tmp_path / "second", tmp_path / "answers", **short, seed=1, data_seed=42)
    assert again != weights  # another student
    printed = capsys.readouterr().out
    assert "a resnet, trained before; all its answers are stored" in printed
    assert "not measured: all its answers are stored, so it is not loaded" in printed
    assert results["teacher_views_asked"] == 0 and not (tmp_path / "second" / "teacher").exists()
    with pytest.raises(InputError, match="teacher_training.num_train_epochs 2.0, this run has 1.0; train the teacher"):
        from_store(photos, tmp_path / "third", tmp_path / "answers", **{**short, "teacher_num_train_epochs": 1})
    longer = {**short, "num_train_epochs": 2}  # than the store: a teacher of another training cannot fill it
    with pytest.raises(InputError, match="teacher_training.seed 42, this run has 1; train the teacher alike"):
        from_store(photos, tmp_path / "fourth", tmp_path / "answers", **longer, seed=1, data_seed=42)
    assert not (tmp_path / "fourth" / "teacher").exists()


def test_holes_are_asked_again(stored, photos, tmp_path):
    answers, words, (_, weights) = stored
    shutil.copytree(answers, tmp_path / "answers")
    (tmp_path / "answers" / "epoch-00002.bin").unlink()
    forget(TeacherStore(tmp_path / "answers"), [10, 11], epoch=1)
    results, again = from_store(photos, tmp_path / "out", tmp_path / "answers", **words)
    assert again == weights
    assert results["teacher_views_asked"] == 32 + 2
    for name in ("epoch-00002.bin", "epoch-00001.bin"):
        assert (tmp_path / "answers" / name).read_bytes() == (answers / name).read_bytes()


def as_earlier_versions_wrote_it(folder):
    """Take headers and checksums from a store."""
    store, kept = TeacherStore(folder), json.loads((folder / "store.json").read_text())
    for epoch in store.epochs():
        store.path(epoch).write_bytes(store.read(epoch, np.arange(store.num_views))[0].tobytes())
    kept["fingerprint"]["format"] = 1
    (folder / "store.json").write_text(json.dumps({name: kept[name] for name in ("fingerprint", "about")}))


@pytest.mark.slow
def test_a_store_of_an_earlier_version_gives_the_same_weights_before_and_after_its_upgrade(
    stored, photos, tmp_path, monkeypatch
):
    answers, _, (_, weights) = stored
    shutil.copytree(answers, tmp_path / "answers")
    as_earlier_versions_wrote_it(tmp_path / "answers")
    monkeypatch.setattr(runs, "RECIPE", without_teacher())
    for name in ("before", "after"):
        results, again = from_store(photos, tmp_path / name, tmp_path / "answers")
        assert again == weights and results["teacher_views_asked"] == 0
        if name == "before":
            assert len(list(upgrade(tmp_path / "answers"))) == 4
    for path in answers.glob("epoch-*"):
        assert (tmp_path / "answers" / path.name).read_bytes() == path.read_bytes()


def test_a_store_that_lacks_views_asks_for_the_teacher(stored, photos, tmp_path, monkeypatch):
    answers, _, _ = stored
    monkeypatch.setattr(runs, "RECIPE", without_teacher())
    with pytest.raises(InputError, match="has not all the views of this run.*--teacher_name_or_path"):
        from_store(photos, tmp_path / "longer", answers, num_train_epochs=5)


def test_damaged_answers_are_asked_again_and_refused_where_nobody_can_be_asked(stored, photos, tmp_path, monkeypatch):
    answers, words, (_, weights) = stored
    shutil.copytree(answers, tmp_path / "answers")
    path = tmp_path / "answers" / "epoch-00002.bin"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    (tmp_path / "answers" / "epoch-00001.bin").write_bytes((answers / "epoch-00001.bin").read_bytes()[:50])
    shutil.copytree(tmp_path / "answers", tmp_path / "unnamed")
    results, again = from_store(photos, tmp_path / "out", tmp_path / "answers", **words)
    assert again == weights
    assert results["teacher_views_asked"] == 2 * 32
    for name in ("epoch-00002.bin", "epoch-00001.bin"):
        assert (tmp_path / "answers" / name).read_bytes() == (answers / name).read_bytes()
    monkeypatch.setattr(runs, "RECIPE", without_teacher())
    with pytest.raises(InputError, match=r"lacks 64, .*epoch-00002.bin is damaged \(views 0 to 35\).*give --teacher"):
        from_store(photos, tmp_path / "out2", tmp_path / "unnamed")


def test_exchanged_files_are_refused(stored, photos, tmp_path):
    answers, words, _ = stored
    shutil.copytree(answers, tmp_path / "answers")
    shutil.copy(answers / "epoch-00002.bin", tmp_path / "answers" / "epoch-00001.bin")
    with pytest.raises(InputError, match="epoch-00001.bin holds the answers of epoch 2, not of epoch 1"):
        from_store(photos, tmp_path / "out", tmp_path / "answers", **words)


def test_a_teacher_that_sees_other_pixels_is_refused(stored, run, photos, tmp_path):
    answers, words, _ = stored
    shutil.copytree(run[0] / "teacher", tmp_path / "teacher")
    path = tmp_path / "teacher" / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    path.write_text(json.dumps({**processor, "image_mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(InputError, match="teacher_mean .*0.485.*this run has .*0.1, 0.2, 0.3"):
        from_store(photos, tmp_path / "out", answers, **{**words, "teacher_name_or_path": tmp_path / "teacher"})


def test_a_trainer_refuses_answers_about_other_views(stored, photos, tmp_path):
    answers, _, _ = stored
    data = load_image_data(train_dir=str(photos), validation_fraction=0.25)
    settings = {"rand_augment_magnitude": 0.0, "random_erasing_prob": 0.0, "mixup_alpha": 0.2, "report_to": "none"}
    settings |= {"repeated_augmentation": 1, "per_device_train_batch_size": 8, "bf16": False}
    student = DeiTDistillForImageClassification(DeiTDistillConfig(**STUDENT, image_size=16, patch_size=4, num_labels=3))

    def trainer(seed=42, cutmix_alpha=0.0):
        args = DistillationTrainingArguments(output_dir=str(tmp_path), **settings, cutmix_alpha=cutmix_alpha)
        views = ViewDataset(data.train, AugmentationSettings.from_arguments(args, 16), seed)
        return DistillationTrainer(student, args, teacher_store=TeacherStore(answers), train_dataset=views)

    assert trainer().answers.store.num_views == 36
    with pytest.raises(InputError, match="data_seed 42, this run has 1"):
        trainer(seed=1)
    with pytest.raises(InputError, match="cutmix_alpha 0.0, this run has 1.0"):
        trainer(cutmix_alpha=1.0)


@pytest.mark.slow
def test_soft_answers_are_read_as_they_were_written(stored, photos, tmp_path):
    _, words, _ = stored
    soft = {**words, "distillation_type": "soft", "num_train_epochs": 2, "teacher_store_top_k": 3}
    written, weights = from_store(photos, tmp_path / "first", tmp_path / "answers", **soft)
    read, again = from_store(photos, tmp_path / "second", tmp_path / "answers", **soft)
    assert again == weights
    assert (written["teacher_views_asked"], read["teacher_views_asked"]) == (64, 0)
    assert {path.stat().st_size for path in (tmp_path / "answers").glob("epoch-*")} == {32 + 36 * (4 * 3 + 4) + 4}
    # Live, without a store: the same but for the rounding of logits to half precision.
    train_deit.main(arguments(validation_fraction=0.25, train_dir=photos, output_dir=tmp_path / "live", **soft))
    live = json.loads((tmp_path / "live" / "all_results.json").read_text())
    assert live["train_loss"] == pytest.approx(written["train_loss"], rel=1e-3)


def script(photos, output, store, words, *launcher, **changes):
    """The command of a run with a store, as a process of its own."""
    given = {"validation_fraction": 0.25, "train_dir": photos, "output_dir": output, "teacher_store": store, **words}
    command = [sys.executable, *launcher, str(ROOT / "train_deit.py"), *arguments(**given, **changes)]
    return command, {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_a_killed_writer_loses_and_corrupts_nothing(stored, photos, tmp_path):
    answers, words, (_, weights) = stored
    command, environment = script(photos, tmp_path / "killed", tmp_path / "answers", words)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "answers" / "epoch-00001.bin").exists():
        pass
    process.kill()
    assert process.wait() == -9
    killed, whole = TeacherStore(tmp_path / "answers"), TeacherStore(answers)
    for epoch in killed.epochs():
        found, known = killed.read(epoch, np.arange(36))
        assert (found[known] == whole.read(epoch, np.arange(36))[0][known]).all()
    assert not killed.damaged
    results, again = from_store(photos, tmp_path / "again", tmp_path / "answers", **words)
    assert again == weights
    assert 0 < results["teacher_views_asked"] < 4 * 32


@pytest.mark.slow
def test_two_processes_write_what_one_reads(stored, photos, tmp_path):
    answers, words, (_, weights) = stored
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command, environment = script(
        photos, tmp_path / "two", tmp_path / "answers", words, *launcher, per_device_train_batch_size=4
    )
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for path in answers.glob("epoch-*"):
        assert (tmp_path / "answers" / path.name).read_bytes() == path.read_bytes()
    written = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert written["teacher_views_asked"] == 4 * 32
    results, again = from_store(photos, tmp_path / "one", tmp_path / "answers", **words)
    assert again == weights and results["teacher_views_asked"] == 0
