"""Held-out images that a teacher of an earlier run was trained on."""

import json

import pytest
from helpers.images import grey
from helpers.runs import SHORT_RUN, words_of
from helpers.teachers import save_resnet

from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.teachers.trained_on import known_held_out


@pytest.fixture
def photos(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            grey(100 * label + number).save(tmp_path / "photos" / name / f"{number:02}.png")
    return tmp_path / "photos"


def load(photos, **more):
    return load_image_data(train_dir=str(photos), validation_fraction=0.25, **more)


@pytest.fixture
def teacher(tmp_path, photos):
    """The folder of a teacher that a run on the photos left, and what it was trained on."""
    folder, data = tmp_path / "run" / "teacher", load(photos)
    data.keep_fingerprint()
    folder.mkdir(parents=True)
    (folder / "teacher_training.json").write_text(json.dumps({"dataset": data.fingerprint()}))
    (folder.parent / "images.json").write_text(json.dumps(data.listing))
    return folder, set(names(data.train))


def names(rows):
    return [row["image"]["path"] for row in rows]


def test_the_same_photos_need_no_words(teacher, photos):
    assert known_held_out(str(teacher[0]), load(photos)) is None
    assert known_held_out("timm/resnet", load(photos)) is None  # nobody knows, and it is none of ours


def test_a_photo_more_draws_others_that_the_teacher_knows(teacher, photos):
    folder, trained = teacher
    grey(50).save(photos / "cat" / "new.png")
    data = load(photos)
    number = len(trained & set(names(data.validation)))
    assert 0 < number < len(data.validation)
    words = known_held_out(str(folder), data)
    assert words.startswith(
        f"{folder} seems to have been trained on {number} of the 11 held-out images: its accuracy is then too high; "
    )
    assert "take the images as they were" in words and "--validation_dir" in words and "\n" not in words


def test_where_the_run_kept_no_listing_of_its_own_it_is_said_that_nobody_knows(teacher, photos):
    folder, _ = teacher
    grey(50).save(photos / "cat" / "new.png")
    data = load(photos)
    words = f"{folder} was trained on another set, perhaps on some of the 11 held-out images, and may seem too good; "
    data.keep_fingerprint()
    (folder.parent / "images.json").write_text(json.dumps(data.listing))  # of a later run into the folder
    assert known_held_out(str(folder), data).startswith(words)
    (folder.parent / "images.json").unlink()
    assert known_held_out(str(folder), data).startswith(words)


def test_other_photos_and_held_out_ones_of_their_own_need_no_words(teacher, photos, tmp_path):
    folder, _ = teacher
    own = tmp_path / "own"
    for label, name in enumerate(("cat", "dog")):
        (own / name).mkdir(parents=True)
        grey(200 + label).save(own / name / "0.png")
    assert known_held_out(str(folder), load(photos, validation_dir=str(own))) is None
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        grey(number, size=(20, 20)).save(path)
    assert known_held_out(str(folder), load(photos)) is None


def test_photos_that_were_moved_to_a_validation_folder_are_known_too(teacher, photos, tmp_path):
    folder, trained = teacher
    moved = sorted(photos.rglob("*.png"))[::6]
    for path in moved:
        target = tmp_path / "own" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    number = len(trained & {str(path) for path in moved})
    words = known_held_out(str(folder), load(photos, validation_dir=str(tmp_path / "own")))
    assert words.startswith(
        f"{folder} seems to have been trained on {number} of the {len(moved)} held-out images: its accuracy is"
    )
    (folder.parent / "images.json").unlink()  # then nobody knows, and they may well be others
    assert known_held_out(str(folder), load(photos, validation_dir=str(tmp_path / "own"))) is None


def test_the_summary_says_it_beside_the_teacher(teacher, photos, tmp_path):
    folder, _ = teacher
    save_resnet(folder, ["cat", "dog"])
    given = {**SHORT_RUN, "train_dir": photos, "teacher_name_or_path": folder, "output_dir": tmp_path / "out"}
    assert "teacher's images" not in Plan.from_arguments(words_of(given)).summary()
    grey(50).save(photos / "cat" / "new.png")
    summary = Plan.from_arguments(words_of(given)).summary()
    assert summary["teacher's images"].startswith(f"{folder} seems to have been trained on ")
    assert list(summary).index("teacher's images") == list(summary).index("teacher") + 1
