"""What earlier versions wrote is still read.

`earlier_version.tar.gz` holds a checkpoint and a store of version 0.1.0, made before settings got the names of the
arguments: `views_trainer(folder, rows(26), max_steps=8)` stopped after three steps, and a store of 24 answers.
"""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.stores import whole
from helpers.trainers import rows, views_trainer

from modeling_deit_distill import InputError
from modeling_deit_distill.output_folder import damage
from modeling_deit_distill.teachers.agreement import of_views
from modeling_deit_distill.teachers.command_line import main
from modeling_deit_distill.teachers.store import TeacherStore, create_store
from modeling_deit_distill.teachers.upgrade import upgrade

# Whoever compares the version of the augmentation; that of the files is 1, which the checkpoint does not mention.
COMPARERS = ("training.checkpoints", "teachers.agreement")


def augment_as(version, monkeypatch):
    for name in COMPARERS:
        monkeypatch.setattr(f"modeling_deit_distill.{name}.AUGMENTATION_VERSION", version)


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    augment_as(1, monkeypatch)
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


def test_where_the_augmentation_gives_other_pixels_both_are_refused(earlier, monkeypatch):
    augment_as(2, monkeypatch)
    run = views_trainer(earlier, rows(26), max_steps=8)
    words = "was made with augmentation_version 1, this run has 2; go on with the version of this library that made it"
    with pytest.raises(InputError, match=words):
        run.train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="answers for augmentation_version 1, this run has 2.*fill a new one"):
        TeacherStore(earlier / "store").check(of_views(run.args, run.train_dataset))


@pytest.mark.parametrize("changes", [{"balanced_views": True}, {"class_weights": "balanced"}])
def test_what_was_not_there_before_is_refused(earlier, changes):
    name = next(iter(changes))
    run = views_trainer(earlier, rows(26), max_steps=8, **changes)
    with pytest.raises(InputError, match=f"checkpoint-3 was made with {name} (false|null), this run has"):
        run.train(resume_from_checkpoint=True)


def test_images_were_decoded_whole(earlier):
    run = views_trainer(earlier, rows(26), max_steps=8)
    run.train_dataset.settings = run.train_dataset.settings.__class__(16, scaled_decoding=True)
    with pytest.raises(InputError, match="was made with scaled_decoding false, this run has true"):
        run.train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="answers for scaled_decoding false, this run has true; pass --scaled_dec"):
        TeacherStore(earlier / "store").check(of_views(run.args, run.train_dataset))


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


def test_a_store_without_checksums_is_said_once(earlier, caplog):
    for _ in range(2):
        TeacherStore(earlier / "store").read(0, np.arange(26))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "was written by an earlier version, without checksums" in said[0]
    assert f"store_cli upgrade {earlier / 'store'}` adds them" in said[0]


def test_a_store_is_upgraded_and_says_the_same(earlier, capsys):
    folder = earlier / "store"
    before = TeacherStore(folder)
    entries, known = before.read(0, np.arange(26))
    before.write_validation("16 pixels", 0.5, np.array([3, 1]), np.array([3, 6]), [0.5, 1.0])
    with pytest.raises(InputError, match="has no checksums yet; run `store_cli upgrade"):
        main(["push", str(folder), "me/answers"])
    assert main(["upgrade", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == ["epoch-00000.bin: 24 answers", f"{folder} has checksums now"]
    after = TeacherStore(folder)
    assert after.has_checksums and after.fingerprint == {**before.fingerprint, "format": 2}
    again = after.read(0, np.arange(26))
    assert (again[0] == entries).all() and (again[1] == known).all()
    assert (folder / "epoch-00000.bin").read_bytes() == whole(after, entries)
    assert after.read_validation("16 pixels") == before.read_validation("16 pixels") | {
        "identity": after.identity,
        "checksum": after.read_validation("16 pixels")["checksum"],
    }
    run = views_trainer(earlier / "out", rows(26))
    after.check(of_views(run.args, run.train_dataset))
    with pytest.raises(InputError, match="is of format 2 already; there is nothing to upgrade"):
        main(["upgrade", str(folder)])


def test_an_upgrade_that_was_cut_short_is_read_and_gone_on_with(earlier):
    folder = earlier / "store"
    shutil.copy(folder / "epoch-00000.bin", folder / "epoch-00001.bin")
    next(upgrade(str(folder)))  # killed after the first of two files
    store = TeacherStore(folder)
    for epoch in (0, 1):
        assert store.read(epoch, np.arange(24))[0].tolist() == [position % 7 + 1 for position in range(24)]
    store.write(0, np.arange(24, 26), np.array([1, 2], store.dtype))
    assert [name for name, _ in upgrade(str(folder))] == ["epoch-00001.bin"]
    store = TeacherStore(folder)
    assert store.has_checksums and (store.count(0), store.count(1)) == (26, 24)


def test_an_upgrade_leaves_out_what_no_answer_is(earlier, caplog):
    folder = earlier / "store"
    content = np.fromfile(folder / "epoch-00000.bin", "<i2")
    content[5] = 300
    content.tofile(folder / "epoch-00000.bin")
    assert list(upgrade(str(folder))) == [("epoch-00000.bin", 23)]
    assert "epoch-00000.bin is damaged (view 5)" in caplog.text
    content[:5].tofile(folder / "epoch-00000.bin")
    assert not TeacherStore(folder).read(0, np.arange(26))[1].any()


def test_a_file_of_another_size_is_refused_and_left_alone(earlier):
    store = TeacherStore(earlier / "store")
    for size in (1, 50, 54, 4096):
        os.truncate(store.path(0), size)
        before = store.path(0).read_bytes()
        for use in (
            lambda: store.read(0, np.arange(2)),
            lambda: store.write(0, np.arange(2), np.array([1, 2], store.dtype)),
            lambda: store.count(0),
            lambda: store.holds({0: 1}),
            lambda: list(upgrade(str(earlier / "store"))),
        ):
            with pytest.raises(InputError, match=rf"epoch-00000.bin has {size:,} bytes .*52.*delete it .*fetch it"):
                use()
            assert store.path(0).read_bytes() == before
