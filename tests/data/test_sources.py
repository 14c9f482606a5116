"""Where images and labels come from: digits, folders, named datasets and their splits; and what is refused."""

import collections

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Image, Value
from helpers.images import encode, grey, level, rows
from helpers.refusals import refusal

from modeling_deit_distill.data.decoding import decode_image
from modeling_deit_distill.data.sources import ImageData, load_digits, load_image_data

TWO = {"cat": 3, "dog": 3}


@pytest.fixture
def folder(tmp_path):
    """`folder(name, {"cat": 3, ...})`: a folder of so many images per class, each of its own grey level."""

    def write(name: str, images: dict[str, int]) -> str:
        count = 0
        for class_name, number in images.items():
            (tmp_path / name / class_name).mkdir(parents=True)
            for index in range(number):
                grey(count, size=(6, 5)).save(tmp_path / name / class_name / f"{index}.png")
                count += 1
        return str(tmp_path / name)

    return write


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits().cast_column("image", Image(decode=False))


@pytest.fixture(scope="module")
def cut_digits() -> ImageData:
    return load_image_data("digits", validation_fraction=0.2)


def test_digits_are_scikit_learn_s(digits):
    from sklearn.datasets import load_digits as reference

    original = reference()
    assert len(digits) == 1797
    assert digits.features["label"].names == list("0123456789")
    assert digits["label"][:] == original.target.tolist()
    for index in (0, 1000, 1796):
        row = digits[index]
        assert row["image"]["bytes"].startswith(b"\x89PNG")
        image = decode_image(row["image"])
        assert image.size == (8, 8)
        # 0 to 16 became 0 to 255
        np.testing.assert_allclose(np.asarray(image)[..., 0] * (16 / 255), original.images[index], atol=16 / 255 / 2)


def test_the_cut_of_the_digits_is_stratified_and_complete(digits, cut_digits):
    data = cut_digits
    assert (len(data.train), len(data.validation)) == (1437, 360)
    assert data.class_names == list("0123456789")
    counts = collections.Counter(data.validation["label"])
    totals = counts + collections.Counter(data.train["label"])
    assert all(abs(counts[digit] - 0.2 * totals[digit]) <= 1 for digit in range(10))
    parts = collections.Counter(row["image"]["bytes"] for split in (data.train, data.validation) for row in split)
    assert parts == collections.Counter(row["image"]["bytes"] for row in digits)
    assert data.source == "digits" and "20%" in data.validation_source


def test_the_cut_does_not_depend_on_any_seed(cut_digits):
    np.random.seed(1)
    torch.manual_seed(1)
    again = load_image_data("digits", validation_fraction=0.2)
    held_out = [[row["image"]["bytes"] for row in data.validation] for data in (cut_digits, again)]
    assert held_out[0] == held_out[1]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_per_class(folder):
    data = load_image_data(train_dir=folder("photos", {"dog": 10, "cat": 10}), validation_fraction=0.2)
    assert data.class_names == ["cat", "dog"]
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert collections.Counter(data.validation["label"]) == {0: 2, 1: 2}
    for row in [*data.train, *data.validation]:  # dogs were written first, in levels 0 to 9
        assert data.class_names[row["label"]] == ("dog" if level(row) < 10 else "cat")


def test_a_folder_per_class_with_its_validation(folder):
    held_out = folder("more", {"cat": 1, "dog": 2})
    data = load_image_data(train_dir=folder("photos", TWO), validation_dir=held_out)
    assert (len(data.train), len(data.validation)) == (6, 3)
    assert data.validation["label"][:] == [0, 1, 1]
    assert data.validation_source == str(held_out)


def test_a_validation_folder_may_lack_a_class(folder):
    data = load_image_data(train_dir=folder("photos", TWO), validation_dir=folder("more", {"dog": 2}))
    assert data.class_names == ["cat", "dog"]
    assert data.validation["label"][:] == [1, 1]


def test_what_is_no_image_is_no_class(folder, tmp_path):
    train_dir = folder("photos", TWO)
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("a cat")
    data = load_image_data(train_dir=train_dir)
    assert len(data.train) + len(data.validation) == 6


def test_a_folder_may_be_called_as_a_split(folder):
    for name in ("test", "validation", "train_photos"):
        data = load_image_data(train_dir=folder(name, {"cat": 3, "test": 3}))
        assert data.class_names == ["cat", "test"], name
        assert len(data.train) + len(data.validation) == 6, name


def test_a_folder_may_have_brackets_in_its_name(folder):
    assert load_image_data(train_dir=folder("photos [2024]", TWO)).class_names == ["cat", "dog"]


def test_a_local_folder_with_splits(folder, tmp_path):
    folder("animals/train", TWO)
    folder("animals/test", {"cat": 1, "dog": 1})
    data = load_image_data(str(tmp_path / "animals"))
    assert data.class_names == ["cat", "dog"]
    assert (len(data.train), len(data.validation)) == (6, 2)
    assert "test" in data.validation_source


def test_a_folder_that_is_not_there(tmp_path):
    assert "train_dir" in refusal(train_dir=str(tmp_path / "none"))
    message = refusal(train_dir=str(tmp_path), validation_dir=str(tmp_path / "none"))
    assert "validation_dir" in message and str(tmp_path / "none") in message


def test_a_folder_without_images(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    assert str(tmp_path / "photos") in refusal(train_dir=str(tmp_path / "photos"))


def test_splits_are_no_classes(folder, tmp_path):
    folder("animals/train", TWO)
    folder("animals/test", TWO)
    message = refusal(train_dir=str(tmp_path / "animals"))
    assert "--train_dir" in message and str(tmp_path / "animals" / "train") in message and "--dataset_name" in message


def test_a_validation_class_that_training_does_not_know(folder):
    message = refusal(train_dir=folder("photos", TWO), validation_dir=folder("more", {"cat": 1, "cow": 1}))
    assert "cow" in message and "cat" not in message


def test_one_class_only(folder):
    message = refusal(train_dir=folder("photos", {"cat": 4}))
    assert "one class only" in message and "photos" in message


def test_images_in_no_class_folder(folder):
    message = refusal(train_dir=folder("photos", {"": 4}))
    assert "photos" in message and "4 images in no class folder: 0.png, 1.png, 2.png and 1 more" in message


# --- named datasets ---------------------------------------------------------------------------------------------------


def test_a_path_that_is_not_there_does_not_go_to_the_hub():
    for name in ("./nowhere", "/nowhere", "~/nowhere", "a/b/c", "nowhere.parquet"):
        assert f"dataset_name {name!r} does not exist" in refusal(name)


def test_a_dataset_that_cannot_be_had():  # the tests are offline
    for name in ("nobody/nothing", "nothing"):
        assert f"dataset_name {name!r}" in refusal(name)


def test_a_parquet_file(tmp_path):
    rows([1, 0] * 5, ["cat", "dog"]).to_parquet(tmp_path / "animals.parquet")
    data = load_image_data(str(tmp_path / "animals.parquet"), validation_fraction=0.2)
    assert data.class_names == ["cat", "dog"]
    assert (len(data.train), len(data.validation)) == (8, 2)
    assert all(row["label"] == 1 - level(row) % 2 for row in [*data.train, *data.validation])


def test_a_broken_parquet_file(tmp_path):
    (tmp_path / "animals.parquet").write_bytes(b"nothing of the sort")
    assert "animals.parquet' could not be read" in refusal(str(tmp_path / "animals.parquet"))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["cow", "ape"] * 5, ["ape", "cow"]),
        ([10, 9] * 5, ["9", "10"]),  # as numbers, not as words
        (["10", "9"] * 5, ["10", "9"]),
    ],
)
def test_plain_labels_become_sorted_classes(saved, labels, classes):
    data = load_image_data(saved(rows(labels)))
    assert data.class_names == classes
    assert isinstance(data.train.features["label"], ClassLabel)
    for row in [*data.train, *data.validation]:
        assert classes[row["label"]] == str(labels[level(row)])


def test_plain_labels_of_both_splits_have_the_same_indices(saved):
    data = load_image_data(saved(rows(["b", "c", "a"]), test=rows(["c", "b"])))
    assert data.train["label"][:] == [1, 2, 0]
    assert data.validation["label"][:] == [2, 1]


def test_names_of_plain_labels(saved):
    for name in ("label", "labels", "class", "target"):
        assert load_image_data(saved(rows(["a", "b"] * 3, label=name))).class_names == ["a", "b"], name


def test_columns_are_called_image_and_label_and_stay_encoded(saved):
    other = {"caption": (["x"] * 6, Value("string"))}
    data = load_image_data(saved(rows([0, 1] * 3, ["a", "b"], label="kind", **other)))
    for split in (data.train, data.validation):
        assert set(split.column_names) == {"image", "label"}
        assert split[0]["image"]["bytes"].startswith(b"\x89PNG")


TWO_IMAGES = {"mask": ([encode(grey(200))] * 6, Image())}
TWO_LABELS = {"breed": ([0, 1, 2] * 2, ClassLabel(names=["p", "q", "r"]))}


@pytest.mark.parametrize(
    ("option", "columns", "names"),
    [("image_column", TWO_IMAGES, ["image", "mask"]), ("label_column", TWO_LABELS, ["label", "breed"])],
)
def test_two_columns_that_fit(saved, option, columns, names):
    message = refusal(saved(rows([0, 1] * 3, ["a", "b"], **columns)))
    assert f"--{option}" in message and all(name in message for name in names)


def test_a_named_image_column(saved):
    data = load_image_data(saved(rows([0, 1] * 3, ["a", "b"], **TWO_IMAGES)), image_column="mask")
    assert level(data.train[0]) == 200


def test_a_named_label_column(saved):
    path = saved(rows([0, 1] * 3, ["a", "b"], **TWO_LABELS))
    assert load_image_data(path, label_column="breed").class_names == ["p", "q", "r"]
    assert load_image_data(path, label_column="label").class_names == ["a", "b"]


def test_a_named_column_of_paths(tmp_path):
    for name in ("0.png", "1.png"):
        grey(9).save(tmp_path / name)
    paths = [str(tmp_path / f"{index % 2}.png") for index in range(6)]
    Dataset.from_dict({"file": paths, "label": ["a", "b"] * 3}).save_to_disk(tmp_path)
    data = load_image_data(str(tmp_path), image_column="file")
    assert level(data.train[0]) == 9


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_a_named_column_that_is_not_there(saved, option):
    message = refusal(saved(rows([0, 1], ["a", "b"])), **{option: "nope"})
    assert f"{option} 'nope'" in message and "image, label" in message


def test_no_column_that_fits(saved):
    message = refusal(saved(Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]})))
    assert "--image_column" in message and "text, label" in message
    message = refusal(saved(rows(["a", "b"], label="kind")))
    assert "--label_column" in message and "image, kind" in message


def test_one_column_cannot_be_both(saved):
    assert "label_column" in refusal(saved(rows([0, 1], ["a", "b"])), label_column="image")


# --- splits -----------------------------------------------------------------------------------------------------------


def test_the_split_to_evaluate_on_is_found(saved):
    others = {"test": rows([0, 1], ["a", "b"], start=100), "extra": rows([0], ["a", "b"], start=150)}
    for name in ("validation", "val", "valid", "dev", "test"):
        found = rows([1, 0], ["a", "b"], start=200)
        data = load_image_data(saved(rows([0, 1], ["a", "b"]), **{**others, name: found}))
        assert [level(row) for row in data.validation] == [200, 201], name
        assert name in data.validation_source


def test_named_splits(saved):
    path = saved(
        rows([0, 1], ["a", "b"]),
        test=rows([0, 1], ["a", "b"], start=100),
        extra=rows([0, 1, 1], ["a", "b"], start=200),
    )
    data = load_image_data(path, train_split="extra", validation_split="train")
    assert (level(data.train[0]), level(data.validation[0])) == (200, 0)


def test_the_training_split_is_not_its_own_validation(saved):
    path = saved(rows([0, 1], ["a", "b"], start=100), test=rows([0, 1] * 10, ["a", "b"]))
    data = load_image_data(path, train_split="test")
    levels = [{level(row) for row in split} for split in (data.train, data.validation)]
    assert levels[0].isdisjoint(levels[1]) and levels[0] | levels[1] == set(range(20))


@pytest.mark.parametrize("option", ["train_split", "validation_split"])
def test_a_split_that_is_not_there(saved, option):
    message = refusal(saved(rows([0, 1], ["a", "b"]), test=rows([0, 1], ["a", "b"])), **{option: "nope"})
    assert f"{option} 'nope'" in message and "train, test" in message


def test_a_split_without_labels_is_skipped(saved):
    for labels, classes in [([-1, -1], ["a", "b"]), ([None, None], ["a", "b"]), ([None, "a"], None)]:
        train = rows([0, 1] * 5, classes) if classes else rows(["a", "b"] * 5)
        known = rows([0, 1], classes, start=100) if classes else rows(["a", "b"], start=100)
        data = load_image_data(saved(train, validation=rows(labels, classes), test=known))
        assert [level(row) for row in data.validation] == [100, 101], labels


def test_a_cut_where_the_only_other_split_has_no_labels(saved):
    data = load_image_data(saved(rows([0, 1] * 5, ["a", "b"]), test=rows([-1, -1], ["a", "b"])))
    assert len(data.train) + len(data.validation) == 10
    assert "train" in data.validation_source


def test_a_split_without_a_label_column_is_skipped(saved):
    bare = rows([0, 1], ["a", "b"]).remove_columns("label")
    assert len(load_image_data(saved(rows([0, 1] * 5, ["a", "b"]), test=bare)).train) == 9


def test_a_named_split_without_labels(saved):
    path = saved(rows([0, 1] * 5, ["a", "b"]), test=rows([0, -1], ["a", "b"]))
    assert "--validation_split" in refusal(path, validation_split="test")


def test_training_images_without_a_label(saved):
    for labels, classes in [
        ([0, -1, 1, 0] * 3, ["a", "b"]),
        ([0, None, 1, 0] * 3, ["a", "b"]),
        (["a", None, "b", "a"] * 3, None),
    ]:
        message = refusal(saved(rows(labels, classes)))
        assert "train" in message and "without a label" in message, labels
        assert "--train_split" in message


def test_labels_of_validation_that_training_does_not_know(saved):
    message = refusal(saved(rows(["a", "b"] * 3), test=rows(["a", "zebra"])))
    assert "zebra" in message


def test_class_names_that_differ(saved):
    for theirs, unknown in ((["a", "b", "c"], ["c"]), (["x", "y"], ["x", "y"])):
        message = refusal(saved(rows([0, 1] * 3, ["a", "b"]), test=rows([0, 1], theirs)))
        assert str(unknown) in message and str(["a", "b"]) in message


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], ["b", "b", "b", "b"]])
def test_one_class_in_a_dataset(saved, labels):
    message = refusal(saved(rows(labels, ["a", "b"] if isinstance(labels[0], int) else None)))
    assert "one class only (b)" in message


def test_one_image_cannot_be_cut(saved):
    assert "at least two" in refusal(saved(rows([0], ["a", "b"])))


# --- fingerprint ------------------------------------------------------------------------------------------------------


def image_data(labels=(0, 1, 0, 1), names=("a", "b"), images=(0, 1, 2, 3), held_out=2) -> ImageData:
    names = list(names)
    train = rows(list(labels), names).cast_column("image", Image(decode=False)).remove_columns("image")
    train = train.add_column("image", [encode(grey(value)) for value in images], feature=Image(decode=False))
    return ImageData(train, rows([0] * held_out, names), names, "somewhere", "elsewhere")


def test_the_same_data_has_the_same_fingerprint(tmp_path):
    data = image_data()
    assert data.fingerprint() == image_data().fingerprint()
    data.source, data.validation_source = "moved", "renamed"
    assert data.fingerprint() == image_data().fingerprint()
    for index in range(4):
        grey(index).save(tmp_path / f"{index}.png")
    files = [{"bytes": None, "path": str(tmp_path / f"{index}.png")} for index in range(4)]
    data.train = data.train.remove_columns("image").add_column("image", files, feature=Image(decode=False))
    assert data.fingerprint() == image_data().fingerprint()  # a file or its bytes


def test_other_data_has_another_fingerprint():
    same = image_data().fingerprint()
    for what, change in {
        "pixels": {"images": (0, 1, 2, 4)},
        "order": {"images": (0, 2, 1, 3)},
        "label": {"labels": (0, 1, 1, 1)},
        "class name": {"names": ("a", "c")},
        "classes": {"names": ("a", "b", "c")},
        "length": {"labels": (0, 1, 0), "images": (0, 1, 2)},
        "held out": {"held_out": 3},
    }.items():
        assert image_data(**change).fingerprint() != same, what


def test_one_changed_pixel_changes_the_fingerprint():
    data, image = image_data(), grey(3)
    image.putpixel((2, 1), (3, 3, 4))
    changed = [*data.train["image"][:3], encode(image)]
    data.train = data.train.remove_columns("image").add_column("image", changed, feature=Image(decode=False))
    assert data.fingerprint() != image_data().fingerprint()
