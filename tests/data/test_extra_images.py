"""Images without labels beside those with labels: which are read, which are left out, and how they are known again."""

import shutil

import pytest
from helpers.images import grey

from modeling_deit_distill import InputError
from modeling_deit_distill.data.columns import NO_LABEL, label_column
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.decoding import can_read_heic, decode_pixels
from modeling_deit_distill.data.listing import UNLABELLED, are_listed, are_listed_unlabelled
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.data.views import AugmentationSettings, View


def save(path, level):
    """A grey picture of that level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey(level).save(path)


@pytest.fixture
def folders(tmp_path):
    """Four training and two held-out images of two classes, and three without labels at several depths."""
    for number, name in enumerate(("train/a/0", "train/a/1", "train/b/2", "train/b/3", "held/a/4", "held/b/5")):
        save(tmp_path / f"{name}.png", 10 * number)
    for number, name in enumerate(("100", "a/101", "deep/er/102")):
        save(tmp_path / f"more/{name}.png", 100 + number)
    return tmp_path


def load(folders, listing=None, more="more"):
    where = {"train_dir": str(folders / "train"), "validation_dir": str(folders / "held")}
    return load_image_data(**where, unlabeled_dir=str(folders / more), listing=listing)


def names(rows):
    return [image["path"].rsplit("/", 1)[-1] for image in rows["image"][:]]


def test_the_student_is_shown_the_labelled_images_and_then_those_without(folders):
    data = load(folders)
    assert names(data.unlabelled) == ["100.png", "101.png", "102.png"]
    assert names(data.shown) == [*(f"{number}.png" for number in range(4)), "100.png", "101.png", "102.png"]
    assert label_column(data.shown).tolist() == [0, 0, 1, 1, NO_LABEL, NO_LABEL, NO_LABEL]
    assert len(data.train) == 4 and data.class_names == ["a", "b"]
    views = ViewDataset(data.shown, AugmentationSettings(16))
    assert (len(views), views.num_unlabelled) == (7, 3)


def test_without_such_a_folder_nothing_changes(folders):
    data = load_image_data(train_dir=str(folders / "train"), validation_dir=str(folders / "held"))
    assert data.shown is data.train and data.unlabelled is None and data.unlabelled_fingerprint() is None
    assert UNLABELLED not in data.listing
    assert ViewDataset(data.shown, AugmentationSettings(16)).num_unlabelled == 0


def test_they_go_with_images_in_tables(folders):
    data = load_image_data("digits", unlabeled_dir=str(folders / "more"))
    assert len(data.shown) == len(data.train) + 3
    views = ViewDataset(data.shown, AugmentationSettings(16, mixup_alpha=0.0, cutmix_alpha=0.0))
    batch = views.__getitems__([View(len(data.train) + 1, epoch=0, position=0)])
    assert batch["labels"].tolist() == [NO_LABEL] and (batch["pixel_values"] == 101).all()


@pytest.mark.parametrize("kind", ["copy", "link", "another name", "held out"])
def test_images_that_have_a_label_already_are_left_out_and_named(folders, kind):
    sources = {
        "copy": "train/a/1.png",
        "link": "train/b/2.png",
        "another name": "train/b/3.png",
        "held out": "held/a/4.png",
    }
    copied = folders / "more" / "deep" / "copied.png"
    if kind == "link":
        copied.symlink_to(folders / sources[kind])
    else:
        shutil.copy(folders / sources[kind], copied)
    data = load(folders)
    assert names(data.unlabelled) == ["100.png", "101.png", "102.png"]
    assert data.skipped == f"of unlabeled_dir: 1 image found among the training or held-out images too: {copied}"


def test_a_folder_of_all_photographs_goes_with_a_table_of_a_few(folders):
    shutil.copytree(folders / "train", folders / "more" / "labelled")
    paths = [f"more/labelled/{name}.png,{name[0]}" for name in ("a/0", "a/1", "b/2", "b/3")]
    (folders / "labels.csv").write_text("path,label\n" + "\n".join(paths))
    data = load_image_data(
        train_csv=str(folders / "labels.csv"), validation_fraction=0.5, unlabeled_dir=str(folders / "more")
    )
    assert names(data.unlabelled) == ["100.png", "101.png", "102.png"]


def test_what_is_no_image_is_counted_and_named(folders):
    (folders / "more" / "notes.txt").write_text("no image")
    (folders / "more" / "zero.jpg").touch()
    (folders / "more" / "Thumbs.db").write_text("not the user's")
    data = load(folders)
    assert len(data.unlabelled) == 3
    assert data.skipped == "of unlabeled_dir: 1 file of no image format: notes.txt; 1 empty file: zero.jpg"


@pytest.mark.skipif(not can_read_heic(), reason="needs pillow-heif")
def test_heic_is_read(folders):
    import pillow_heif

    pillow_heif.from_pillow(grey(77, (64, 64))).save(folders / "more" / "phone.HEIC")
    data = load(folders)
    phone = [image for image in data.unlabelled["image"][:] if image["path"].endswith(".HEIC")]
    assert decode_pixels(phone[0]).shape == (3, 64, 64)


def test_links_in_a_circle_end(folders):
    (folders / "more" / "round").symlink_to(folders / "more")
    data = load(folders)
    assert len(data.unlabelled) == 3 and "link to a folder that is read already: round" in data.skipped


def test_what_cannot_be_such_a_folder_is_refused(folders):
    with pytest.raises(InputError, match="unlabeled_dir '.*/none' is not a folder; give one of images"):
        load(folders, more="none")
    (folders / "empty").mkdir()
    (folders / "empty" / "zero.png").touch()
    with pytest.raises(
        InputError, match=r"unlabeled_dir '.*/empty' holds no images; .* \(skipped: 1 empty file: zero.png\)"
    ):
        load(folders, more="empty")
    shutil.copytree(folders / "train", folders / "copy")
    with pytest.raises(
        InputError, match="unlabeled_dir '.*/copy' holds no other images than the training and held-out"
    ):
        load(folders, more="copy")


def test_the_fingerprint_is_of_the_images_wherever_they_are(folders):
    known, labelled = load(folders).unlabelled_fingerprint(), load(folders).fingerprint()
    shutil.copytree(folders / "more", folders / "elsewhere")
    assert load(folders, more="elsewhere").unlabelled_fingerprint() == known
    save(folders / "elsewhere" / "100.png", 99)
    other = load(folders, more="elsewhere")
    assert other.unlabelled_fingerprint() != known
    assert other.fingerprint() == labelled  # a teacher that was trained on the labelled ones stays theirs


def test_one_that_is_gone_later_keeps_its_number(folders):
    before = load(folders)
    before.keep_fingerprint()
    (folders / "more" / "a" / "101.png").unlink()
    after = load(folders, before.listing)
    assert names(after.unlabelled) == names(before.unlabelled)
    assert after.unlabelled_fingerprint() == before.unlabelled_fingerprint()
    assert len(load(folders).unlabelled) == 2


def test_names_are_those_below_the_folder_however_few_are_left(folders):
    (folders / "more" / "a" / "101.png").unlink()
    save(folders / "more" / "deep" / "er" / "100.png", 103)
    before = load(folders)
    (folders / "more" / "100.png").unlink()  # all that are left lie deeper now, one of them under its name
    after = load(folders, before.listing)
    assert after.unlabelled["image"][:] == before.unlabelled["image"][:]


@pytest.mark.parametrize("change", ["deleted", "moved", "edited"])
@pytest.mark.parametrize("labelled", ["train/a/1.png", "held/a/6.png"])
def test_one_whose_image_with_a_label_is_gone_later_stays_left_out(folders, labelled, change):
    copy = folders / "more" / "deep" / "copy.png"
    save(folders / "held" / "a" / "6.png", 60)
    if change != "moved":
        shutil.copy(folders / labelled, copy)
    before = load(folders)
    before.keep_fingerprint()
    if change == "edited":
        save(folders / labelled, 250)
    elif change == "moved":
        shutil.move(folders / labelled, copy)
    else:
        (folders / labelled).unlink()
    after = load(folders, before.listing)
    assert names(after.shown) == names(before.shown)
    assert after.unlabelled_fingerprint() == before.unlabelled_fingerprint()
    assert (after.fingerprint() == before.fingerprint()) == (change != "edited")
    assert after.skipped == (
        f"of unlabeled_dir: 1 image found among the training or held-out images when the run was begun: {copy}"
    )


def test_one_that_the_run_has_not_seen_is_no_image_of_it(folders):
    before = load(folders)
    before.keep_fingerprint()
    (folders / "train" / "a" / "1.png").unlink()
    save(folders / "more" / "new.png", 200)
    assert len(load(folders, before.listing).unlabelled) == 4


def test_a_listing_tells_images_with_labels_from_those_without(folders):
    data = load_image_data(
        train_dir=str(folders / "train"), validation_fraction=0.5, unlabeled_dir=str(folders / "more")
    )
    save(folders / "others" / "100.png", 200)  # another image under the same name
    paths = [str(folders / name) for name in ("train/a/0.png", "more/100.png", "others/100.png")]
    assert are_listed(paths, data.listing) == [True, False, False]
    assert are_listed_unlabelled(paths, data.listing) == [False, False, False]
    data.keep_fingerprint()
    assert are_listed(paths, data.listing) == [True, False, False]
    assert are_listed_unlabelled(paths, data.listing) == [False, True, False]
