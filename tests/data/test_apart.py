"""Folders that lie in each other are refused before anything is read."""

from types import SimpleNamespace

import pytest

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import DataArguments
from modeling_deit_distill.data.apart import check_folders_apart
from modeling_deit_distill.plan import Plan


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of training images, one of others, and links to them; the current folder is around them."""
    for name in ("photos/train/cat", "photos/train/extra", "photos/validation/cat"):
        (tmp_path / name).mkdir(parents=True)
    for name, target in (("link", "photos/train"), ("all", "photos")):
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)


def check(output_dir="out", teacher_store=None, **data):
    check_folders_apart(DataArguments(**data), SimpleNamespace(output_dir=output_dir, teacher_store=teacher_store))


@pytest.mark.parametrize(
    ("train", "validation", "how"),
    [
        ("photos/train", "photos/train", "are the same"),
        ("photos/train/", "photos/validation/../train", "are the same"),
        ("photos/train", "link", "are the same"),
        ("photos/train", "link/extra", "lie in each other"),
        ("photos/train/extra", "all", "lie in each other"),
    ],
)
def test_training_and_validation_images_that_are_one_set_are_refused(here, train, validation, how):
    message = f"^train_dir '{train}' and validation_dir '{validation}' {how}, .*give others as validation_dir"
    with pytest.raises(InputError, match=message):
        check(train_dir=train, validation_dir=validation)


def test_the_same_table_or_split_is_refused(here, tmp_path):
    (tmp_path / "images.csv").write_text("image,label\n")
    with pytest.raises(InputError, match="train_csv .* and validation_csv .* are the same"):
        check(train_csv="images.csv", validation_csv=str(tmp_path / "images.csv"))
    with pytest.raises(InputError, match="train_split and validation_split are both 'train'"):
        check(dataset_name="digits", validation_split="train")


@pytest.mark.parametrize("output_dir", ["photos/train", "link/run", "photos/train/a/new/one", "all/train"])
@pytest.mark.parametrize("images", ["train_dir", "dataset_name"])
def test_a_run_does_not_write_among_its_images(here, tmp_path, output_dir, images):
    with pytest.raises(InputError, match=f"^output_dir '{output_dir}' and {images} 'photos/train' "):
        check(output_dir, **{images: "photos/train"})
    with pytest.raises(
        InputError, match=f"^teacher_store '{output_dir}' and {images} .*choose another teacher_store outside"
    ):
        check(teacher_store=output_dir, **{images: "photos/train"})
    arguments = SimpleNamespace(output_dir=output_dir, teacher_store=None, distillation_type="none", do_train=True)
    with pytest.raises(InputError, match="output_dir"):  # before anything is loaded or made
        Plan((None, DataArguments(streaming=False, **{images: "photos/train"}), arguments), [])
    assert not (tmp_path / "photos/train/a").exists() and not (tmp_path / "photos/train/run").exists()


def test_folders_beside_each_other_are_taken(here):
    check("photos/out", "photos/answers", train_dir="photos/train", validation_dir="photos/validation")
    check("photos/train-2", train_dir="photos/train")
    assert check(dataset_name="owner/name", validation_split="test") is None


@pytest.mark.parametrize(("unlabelled", "how"), [("photos/train", "are the same"), ("all", "lie in each other")])
@pytest.mark.parametrize("images", ["train_dir", "dataset_name"])
def test_images_without_labels_lie_apart_from_those_with(here, images, unlabelled, how):
    with pytest.raises(InputError, match=f"^unlabeled_dir '{unlabelled}' and {images} 'link' {how}, .*outside of it"):
        check(**{images: "link"}, unlabeled_dir=unlabelled)


def test_images_without_labels_lie_apart_from_those_to_judge_by(here):
    held_out = "photos/validation"
    with pytest.raises(InputError, match="^unlabeled_dir .* and validation_dir 'photos/validation' are the same"):
        check(train_dir="photos/train", validation_dir=held_out, unlabeled_dir="photos/validation/")
    check(train_dir="photos/train", unlabeled_dir=held_out)


def test_a_run_does_not_write_among_images_without_labels(here):
    with pytest.raises(
        InputError, match="^output_dir .* and unlabeled_dir .* this one writes for images without labels"
    ):
        check("photos/validation/run", train_dir="photos/train", unlabeled_dir="photos/validation")
    # The run's own teacher and answers lie in its folder, which may lie beside the images.
    check("photos/run", train_dir="photos/train", unlabeled_dir="photos/validation")
