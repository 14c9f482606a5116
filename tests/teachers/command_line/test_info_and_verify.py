"""Stores looked into, and checked against their teacher."""

import shutil

import numpy as np
import pytest
from helpers.labelling import content, forget
from helpers.store_commands import NUM_VIEWS, REPOSITORY, cli, contents, facts, refused, save_undecided_resnet
from helpers.stores import change

from modeling_deit_distill import InputError
from modeling_deit_distill.teachers.command_line import main
from modeling_deit_distill.teachers.store import TeacherStore, create_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own call
    pytest.mark.usefixtures("waits"),
]

# info


def test_info_names_teacher_coverage_and_size(filled, capsys):
    assert cli("info", filled.answers) == 0
    printed = facts(capsys.readouterr().out)
    size = sum(len(content) for content in contents(filled.answers).values())
    assert printed["teacher"] == str(filled.teacher)
    assert printed["views known"] == f"36 of at most {2 * NUM_VIEWS}, 2 epoch(s)"
    assert printed["size"] == f"{size:,} bytes, 2 a view"
    assert printed["teacher on validation"] == "75.00%"
    assert printed["image_size"] == "16"
    assert printed["teacher_weights"] == TeacherStore(filled.answers).fingerprint["teacher_weights"]
    assert printed["distillation_type"] == "hard"


def test_info_of_an_incomplete_store_counts_what_is_known(place, capsys):
    forget(TeacherStore(place.answers), range(5, NUM_VIEWS), epoch=1)
    cli("info", place.answers)
    assert facts(capsys.readouterr().out)["views known"] == f"{18 + 5} of at most {2 * NUM_VIEWS}, 2 epoch(s)"


@pytest.fixture
def empty(filled, tmp_path):
    store = TeacherStore(filled.answers)
    create_store(tmp_path / "empty", store.fingerprint, store.about)
    return tmp_path / "empty"


def test_an_empty_store_is_reported_and_neither_verified_nor_pushed(empty, capsys):
    cli("info", empty)
    assert facts(capsys.readouterr().out)["views known"] == "none, 0 epoch(s)"
    assert "holds no answers yet; there is nothing to verify" in refused("verify", empty)
    assert "holds no answers yet; there is nothing to push" in refused("push", empty, REPOSITORY)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    assert refused("info", tmp_path) == f"teacher_store {str(tmp_path)!r} is no store: it has no store.json"


# verify


def test_the_right_teacher_answers_as_stored(filled, capsys):
    assert cli("verify", filled.answers) == 0
    assert "answers 36 of 36 views as stored" in capsys.readouterr().out
    assert cli("verify", filled.answers, "--num_samples", 8) == 0
    assert "answers 8 of 8 views as stored" in capsys.readouterr().out


def test_soft_answers_are_verified_by_their_most_likely_class(place, tmp_path, capsys):
    place.fill("0", tmp_path / "soft", distillation_type="soft")
    assert cli("verify", tmp_path / "soft") == 0
    assert "answers 18 of 18 views as stored" in capsys.readouterr().out


def test_the_answers_of_several_teachers_are_labelled_and_verified(place, tmp_path, capsys):
    save_undecided_resnet(tmp_path / "second", bias=0.01)
    teachers = [place.teacher, tmp_path / "second"]
    place.fill("0", tmp_path / "both", teacher_name_or_path=teachers, teacher_image_size=[16, 20])
    store = TeacherStore(tmp_path / "both")
    assert store.about["teacher"] == list(map(str, teachers)) and len(store.validation()["members"]) == 2
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "both")]) == 0
    assert "answers 18 of 18 views as stored" in capsys.readouterr().out
    (tmp_path / "second").rename(tmp_path / "moved")
    moved = ["--teacher_name_or_path", str(place.teacher), str(tmp_path / "moved")]
    assert main(["verify", str(tmp_path / "both"), *moved]) == 0
    with pytest.raises(InputError, match="holds the answers of 2 teachers, 1 named here; name what it was made with"):
        main(["verify", str(tmp_path / "both"), *moved[:2]])
    with pytest.raises(InputError, match="weights of teacher 1 .*; name the teacher that the store was made with"):
        main(["verify", str(tmp_path / "both"), moved[0], moved[2], moved[1]])


def test_tampered_answers_are_found(place, capsys):
    store = TeacherStore(place.answers)
    store.write(0, np.arange(16), 3 - content(store)[:16])  # the other one of two classes
    assert cli("verify", place.answers) == 1
    printed = capsys.readouterr()
    assert "answers 20 of 36 views as stored" in printed.out
    assert printed.err.splitlines()[-1] == "error: that is too few; the store does not hold this teacher's answers"


def test_another_teacher_is_refused_by_its_weights(place, tmp_path):
    save_undecided_resnet(tmp_path / "other", bias=1.0)
    message = refused("verify", place.answers, "--teacher_name_or_path", tmp_path / "other")
    assert "answers for teacher_weights" in message


def test_data_and_teacher_may_have_moved(place, tmp_path, capsys):
    shutil.copytree(place.photos, tmp_path / "elsewhere")
    shutil.copytree(place.teacher, tmp_path / "teacher elsewhere")
    data = {**TeacherStore(place.answers).about["data"], "train_dir": "gone"}
    change(place.answers / "store.json", about={"teacher": "gone", "data": data})
    assert "gone" in refused("verify", place.answers)
    for option in ("--train_dir", "--dataset_name"):
        data = [option, tmp_path / "elsewhere"]
        assert "teacher_name_or_path 'gone'" in refused("verify", place.answers, *data)
        assert cli("verify", place.answers, *data, "--teacher_name_or_path", tmp_path / "teacher elsewhere") == 0
        assert "answers 36 of 36" in capsys.readouterr().out


def test_other_data_are_refused(place, tmp_path):
    shutil.copytree(place.photos, tmp_path / "fewer")
    (tmp_path / "fewer" / "day" / "3.png").unlink()
    assert "answers for dataset" in refused("verify", place.answers, "--train_dir", tmp_path / "fewer")


def test_nothing_compared_is_no_success(place):
    assert "num_samples is 0" in refused("verify", place.answers, "--num_samples", 0)
    for epoch in (0, 1):
        forget(TeacherStore(place.answers), range(1, NUM_VIEWS), epoch)  # one view, without its partner
    assert "no pair of answers" in refused("verify", place.answers)


def test_a_device_that_is_not_there_is_named(filled):
    assert "device 'abacus' cannot be used" in refused("verify", filled.answers, "--device", "abacus")
