"""What earlier versions wrote is still read.

`earlier_version.tar.gz` holds a checkpoint and a store of version 0.1.0, made before settings got the names of the
arguments: `views_trainer(folder, rows(26), max_steps=8)` stopped after three steps, and a store of 24 answers.
"""

import json
import tarfile

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.trainers import rows, views_trainer

from modeling_deit_distill import InputError
from modeling_deit_distill.output_folder import damage
from modeling_deit_distill.teachers.agreement import of_views
from modeling_deit_distill.teachers.store import TeacherStore, create_store


@pytest.fixture
def earlier(tmp_path):
    with tarfile.open(ROOT / "tests" / "earlier_version.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_the_files_have_the_earlier_names(earlier):
    for path, key in (("checkpoint-3/complete.json", "facts"), ("store/store.json", "fingerprint")):
        assert {"crop_scale", "flip_prob", "erasing_prob"} <= json.loads((earlier / path).read_text())[key].keys()


def test_a_checkpoint_is_resumed(earlier):
    assert damage(earlier / "checkpoint-3") is None
    run = views_trainer(earlier, rows(26), max_steps=8, save_strategy="steps", save_steps=3)
    assert run.train(resume_from_checkpoint=True).global_step == 8
    whole = views_trainer(earlier / "whole", rows(26), max_steps=8)
    whole.train()
    assert run.seen == whole.seen[4 * 3 :]
    assert run.progress.counts()["teacher_views_asked"] == 4 * 8  # those of the first three steps were written down
    assert damage(earlier / "checkpoint-6") is None


def test_a_checkpoint_of_another_run_is_refused_by_the_new_name(earlier):
    run = views_trainer(earlier, rows(26), max_steps=8)
    run.train_dataset.settings = run.train_dataset.settings.__class__(16, horizontal_flip_prob=0.25)
    with pytest.raises(InputError, match="was made with horizontal_flip_prob 0.5, this run has 0.25"):
        run.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("changes", [{"balanced_views": True}, {"class_weights": "balanced"}])
def test_what_was_not_there_before_is_refused(earlier, changes):
    name = next(iter(changes))
    run = views_trainer(earlier, rows(26), max_steps=8, **changes)
    with pytest.raises(InputError, match=f"checkpoint-3 was made with {name} (false|null), this run has"):
        run.train(resume_from_checkpoint=True)


def test_a_store_is_read(earlier):
    store = TeacherStore(earlier / "store")
    run = views_trainer(earlier / "out", rows(26))
    store.check(of_views(run.args, run.train_dataset))
    entries, known = store.read(0, np.arange(26))
    assert known.tolist() == [True] * 24 + [False] * 2
    assert (entries[:24] - 1).tolist() == [position % 7 for position in range(24)]
    run.args.balanced_views = True
    with pytest.raises(InputError, match="answers for balanced_views false, this run has true"):
        store.check(of_views(run.args, run.train_dataset))
    run.args.balanced_views = False
    settings = run.train_dataset.settings.__class__(16, random_crop_scale=(0.5, 1.0))
    run.train_dataset.settings = settings
    with pytest.raises(InputError, match=r"answers for random_crop_scale \[0.08, 1.0\], this run has \[0.5, 1.0\]"):
        store.check(of_views(run.args, run.train_dataset))


def test_a_store_that_is_filled_on_is_the_same(earlier):
    store = TeacherStore(earlier / "store")
    again = create_store(earlier / "store", store.fingerprint, {})
    again.write(0, np.arange(24, 26), np.array([1, 2], store.dtype))
    assert TeacherStore(earlier / "store").count(0) == 26
