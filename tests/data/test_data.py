"""Where images and labels come from, what is refused, how images are decoded, and what a batch of views holds."""

import collections
import dataclasses
import functools
import io
import itertools
import os
import subprocess
import sys
import traceback
from pathlib import Path

import accelerate
import datasets
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from helpers.paths import ROOT
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from modeling_deit_distill import InputError
from modeling_deit_distill.data.bad_images import BadImages
from modeling_deit_distill.data.datasets import (
    MAX_REPLACEMENTS,
    StreamingViewDataset,
    ViewDataset,
    collate,
    crop_and_resize,
    encoded_row,
)
from modeling_deit_distill.data.decoding import BadImageError, decode_image, decode_pixels
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.sources import ImageData, load_digits, load_image_data
from modeling_deit_distill.data.views import AugmentationSettings, View, ViewSampler, crop_box, draw_uniforms

BICUBIC = PIL.Image.Resampling.BICUBIC
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TWO = {"cat": 3, "dog": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(
        datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False
    )  # a sleep after each stream
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def encode(image: PIL.Image.Image, format: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.copy().save(buffer, format=format, **options)  # Pillow leaves one format's settings on what it saved
    return {"bytes": buffer.getvalue(), "path": None}


def grey(level: int, size=(4, 4)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, (level, level, level))


def rows(labels: list, classes: list[str] | None = None, *, label="label", start=0, **columns) -> Dataset:
    """Rows with one image each, of grey level `start`, `start` + 1, ...; `columns`: name=(values, feature)."""
    plain = Value("string" if any(isinstance(value, str) for value in labels) else "int64")
    features = {"image": Image(), label: ClassLabel(names=classes) if classes else plain}
    values = {"image": [encode(grey(start + index)) for index in range(len(labels))], label: labels}
    for name, (content, feature) in columns.items():
        values[name], features[name] = content, feature
    return Dataset.from_dict(values, features=Features(features))


def picture(width: int, height: int) -> PIL.Image.Image:
    noise = np.random.RandomState(0).randint(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((width, height))


def level(row: dict) -> int:
    return decode_image(row["image"]).getpixel((0, 0))[0]


@pytest.fixture
def saved(tmp_path_factory):
    """`saved(rows)` or `saved(train=rows, test=rows)`: the folder where `save_to_disk` put them."""

    def save(train: Dataset, **splits) -> str:
        path = tmp_path_factory.mktemp("saved")
        (DatasetDict(train=train, **splits) if splits else train).save_to_disk(path)
        return str(path)

    return save


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


def refusal(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        load_image_data(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


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
    data = load_image_data(train_dir=folder("photos", TWO), validation_dir=folder("more", {"cat": 1, "dog": 2}))
    assert (len(data.train), len(data.validation)) == (6, 3)
    assert data.validation["label"][:] == [0, 1, 1]
    assert "validation" in data.validation_source


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


@pytest.mark.parametrize(
    ("images", "words"), [({"": 4}, "lies in no class folder"), ({"cat/big": 2, "dog": 2}, "lies 2 folders deep")]
)
def test_every_image_lies_in_a_class_folder(folder, images, words):
    message = refusal(train_dir=folder("photos", images))
    assert "photos" in message and words in message


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
    for theirs in (["b", "a"], ["a", "b", "c"], ["x", "y"]):
        message = refusal(saved(rows([0, 1] * 3, ["a", "b"]), test=rows([0, 1], theirs)))
        assert str(theirs) in message and str(["a", "b"]) in message


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], ["b", "b", "b", "b"]])
def test_one_class_in_a_dataset(saved, labels):
    message = refusal(saved(rows(labels, ["a", "b"] if isinstance(labels[0], int) else None)))
    assert "one class only (b)" in message


def test_one_image_cannot_be_cut(saved):
    assert "at least two" in refusal(saved(rows([0], ["a", "b"])))


def test_classes_with_a_single_image_can_be_cut(saved):
    data = load_image_data(saved(rows(list(range(20)), [f"class {index}" for index in range(20)])))
    assert (len(data.train), len(data.validation)) == (18, 2)


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_images_are_upright():
    stored = PIL.Image.new("RGB", (32, 16), "white")
    stored.paste((0, 0, 0), (0, 0, 16, 16))  # the left half is dark
    for orientation, size, dark, light in [
        (1, (32, 16), (0, 0), (31, 15)),
        (3, (32, 16), (31, 15), (0, 0)),  # half a turn
        (6, (16, 32), (0, 0), (15, 31)),  # a quarter clockwise: the left side comes to the top
        (8, (16, 32), (15, 31), (0, 0)),
    ]:
        image = decode_image(encode(stored, "JPEG", exif=oriented(orientation)))
        assert image.size == size, orientation
        assert max(image.getpixel(dark)) < 30 and min(image.getpixel(light)) > 225, orientation


def test_every_mode_becomes_rgb_as_in_a_pipeline():
    for image, colour in [
        (PIL.Image.new("L", (2, 2), 77), (77, 77, 77)),
        (PIL.Image.new("LA", (2, 2), (77, 255)), (77, 77, 77)),
        (PIL.Image.new("1", (2, 2), 1), (255, 255, 255)),
        (PIL.Image.new("RGBA", (2, 2), (10, 20, 30, 255)), (10, 20, 30)),
        (PIL.Image.new("RGB", (2, 2), (10, 20, 30)).quantize(), (10, 20, 30)),  # a palette
    ]:
        encoded = encode(image)
        decoded = decode_image(encoded)
        assert decoded.mode == "RGB" and decoded.getpixel((1, 1)) == colour, image.mode
        assert np.array_equal(decoded, load_image(PIL.Image.open(io.BytesIO(encoded["bytes"])))), image.mode


def test_an_image_given_by_its_path(tmp_path):
    grey(50).save(tmp_path / "x.png")
    assert decode_image({"bytes": None, "path": str(tmp_path / "x.png")}).getpixel((0, 0)) == (50, 50, 50)


def oriented(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


PHOTO = picture(80, 60)
TURNED = PHOTO.transpose(PIL.Image.Transpose.ROTATE_270)  # as orientation 6 says: a quarter clockwise
GREY, PALETTE, BLACK_AND_WHITE = PHOTO.convert("L"), PHOTO.quantize(64), PHOTO.convert("1")
SEE_THROUGH = PHOTO.copy()
SEE_THROUGH.putalpha(GREY)


def two_frames() -> dict:
    return {"save_all": True, "append_images": [PIL.Image.new("RGB", PHOTO.size, "red")]}


ORIENTATION_IN_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)

# name: encoded image, what it shows; odd, but nothing is wrong with them
JPEGS = {
    "jpeg": (encode(PHOTO, "JPEG", quality=90), PHOTO),
    "jpeg, coarse": (encode(PHOTO, "JPEG", quality=40), PHOTO),
    "jpeg, progressive": (encode(PHOTO, "JPEG", progressive=True), PHOTO),
    "jpeg, not in YCbCr": (encode(PHOTO, "JPEG", keep_rgb=True), PHOTO),
    "jpeg, grey": (encode(GREY, "JPEG"), GREY),
    "jpeg, CMYK": (encode(PHOTO.convert("CMYK"), "JPEG"), PHOTO),
    "jpeg, orientation 1": (encode(PHOTO, "JPEG", exif=oriented(1)), PHOTO),
    "jpeg, orientation 6": (encode(PHOTO, "JPEG", exif=oriented(6)), TURNED),
    "jpeg, orientation 9": (encode(PHOTO, "JPEG", exif=oriented(9)), PHOTO),  # there is none
    "jpeg, broken EXIF": (encode(PHOTO, "JPEG", exif=b"Exif\0\0nonsense"), PHOTO),
    "jpeg, two frames": (encode(PHOTO, "MPO", **two_frames()), PHOTO),
    "jpeg, one pixel wide": (encode(PHOTO.crop((9, 0, 10, 60)), "JPEG"), PHOTO.crop((9, 0, 10, 60))),
}
LOSSLESS = {
    "png": (encode(PHOTO), PHOTO),
    "png, grey": (encode(GREY), GREY),
    "png, palette": (encode(PALETTE), PALETTE),
    "png, transparent palette": (encode(PALETTE, transparency=3), PALETTE),
    "png, half-transparent palette": (encode(PALETTE, transparency=bytes(range(64))), PALETTE),
    "png, alpha": (encode(SEE_THROUGH), PHOTO),
    "png, grey and alpha": (encode(SEE_THROUGH.convert("LA")), GREY),
    "png, black and white": (encode(BLACK_AND_WHITE), BLACK_AND_WHITE),
    "png, orientation 6": (encode(PHOTO, exif=oriented(6)), TURNED),
    "png, animated": (encode(PHOTO, **two_frames()), PHOTO),
    "gif": (encode(PALETTE, "GIF"), PALETTE),
    "gif, animated": (encode(PALETTE, "GIF", **two_frames()), PALETTE),
    "webp": (encode(PHOTO, "WEBP", lossless=True), PHOTO),
    "webp, animated": (encode(PHOTO, "WEBP", lossless=True, **two_frames()), PHOTO),
    "bmp": (encode(PHOTO, "BMP"), PHOTO),
    "tiff": (encode(PHOTO, "TIFF"), PHOTO),
    "tiff, compressed": (encode(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO),
    "tiff, two pages": (encode(PHOTO, "TIFF", **two_frames()), PHOTO),
    "tiff, orientation 6": (encode(PHOTO, "TIFF", exif=oriented(6)), TURNED),
}


def as_array(pixels: torch.Tensor) -> np.ndarray:
    """(3, height, width) pixels as (height, width, 3) levels that can be subtracted."""
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy().astype(int)


def both_ways(image: dict) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(decode_image(image)).astype(int), as_array(decode_pixels(image))


def test_training_and_evaluation_see_the_same_pixels():
    for name, (encoded, shown) in LOSSLESS.items():
        for pixels in both_ways(encoded):
            np.testing.assert_array_equal(pixels, np.asarray(shown.convert("RGB")), err_msg=name)


def test_training_and_evaluation_see_the_same_jpeg():
    differences = {}
    for name, (encoded, shown) in JPEGS.items():
        for_evaluation, for_training = both_ways(encoded)
        assert for_training.shape == for_evaluation.shape, name
        differences[name] = abs(for_training - for_evaluation).max()
        assert abs(for_evaluation - np.asarray(shown.convert("RGB"))).mean() < 6, name
    assert max(differences.values()) <= 2, differences


def why(decode, image: dict) -> str:
    """Why an image cannot be decoded."""
    with pytest.raises(BadImageError) as caught:
        decode(image)
    reason = str(caught.value)
    assert reason and "\n" not in reason
    return reason


def as_text(orientation: int) -> PIL.PngImagePlugin.PngInfo:
    """EXIF in a PNG's text, as ImageMagick writes it."""
    exif, info = oriented(orientation).tobytes(), PIL.PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8d}\n{exif.hex()}\n")
    return info


def test_an_orientation_is_found_wherever_it_stands():
    for format, options in [
        ("JPEG", {"xmp": ORIENTATION_IN_XMP}),
        ("WEBP", {"xmp": ORIENTATION_IN_XMP}),
        ("WEBP", {"exif": oriented(6)}),
        ("PNG", {"pnginfo": as_text(6)}),
    ]:
        for pixels in both_ways(encode(PHOTO, format, **options)):
            assert pixels.shape == (80, 60, 3), (format, *options)
            assert abs(pixels - np.asarray(TURNED)).mean() < 6, (format, *options)


def test_a_broken_exif_block_spoils_no_image():
    for format in ("PNG", "WEBP"):
        for pixels in both_ways(encode(PHOTO, format, exif=b"Exif\0\0nonsense", lossless=True)):
            np.testing.assert_array_equal(pixels, np.asarray(PHOTO), err_msg=format)


def test_sixteen_bits_are_scaled():
    levels = np.array([[0, 256, 257 * 77, 257 * 200, 65535]] * 2, dtype=np.uint16)
    expected = np.tile([[[0], [0], [77], [200], [255]]], (2, 1, 3))
    for format in ("PNG", "TIFF", "PPM"):
        for pixels in both_ways(encode(PIL.Image.fromarray(levels), format)):
            np.testing.assert_array_equal(pixels, expected, err_msg=format)


def refuse(*args):
    raise RuntimeError("this decoder is strict")


def test_what_torchvision_refuses_is_read_by_pillow(monkeypatch):
    monkeypatch.setattr("modeling_deit_distill.data.decoding.decode_jpeg", refuse)
    for name, (encoded, _) in JPEGS.items():
        for_evaluation, for_training = both_ways(encoded)
        np.testing.assert_array_equal(for_training, for_evaluation, err_msg=name)


def test_ordinary_jpegs_are_read_by_torchvision(monkeypatch):
    monkeypatch.setattr("modeling_deit_distill.data.decoding.decode_jpeg", lambda *args: "torchvision")
    for name in ("jpeg", "jpeg, progressive", "jpeg, grey", "jpeg, orientation 1"):
        assert decode_pixels(JPEGS[name][0]) == "torchvision", name


def test_pillow_need_not_look_at_a_plain_jpeg(monkeypatch):
    monkeypatch.setattr("modeling_deit_distill.data.decoding._open", refuse)
    for name in ("jpeg", "jpeg, coarse", "jpeg, progressive", "jpeg, not in YCbCr", "jpeg, grey"):
        encoded, shown = JPEGS[name]
        pixels = as_array(decode_pixels(encoded))
        np.testing.assert_allclose(pixels, np.asarray(shown.convert("RGB")), atol=60, err_msg=name)


def test_every_cut_of_a_jpeg_is_bad_in_both_ways():
    encoded = JPEGS["jpeg"][0]["bytes"]
    headers = range(2, encoded.index(b"\xff\xda"))  # cuts within the header, which is read by hand
    for length in headers:
        cut_off = {"bytes": encoded[:length], "path": None}
        assert why(decode_pixels, cut_off) == why(decode_image, cut_off), length


# --- images that are none ---------------------------------------------------------------------------------------------


def cut(image: dict, share: float) -> bytes:
    return image["bytes"][: int(share * len(image["bytes"]))]


ONE_PIXEL = PHOTO.crop((0, 0, 1, 1))
# name: the file's bytes, a word of the reason
BROKEN = {
    **{
        f"{name}, cut at {share}": (cut({**JPEGS, **LOSSLESS}[name][0], share), "")
        for name in ("jpeg", "jpeg, grey", "jpeg, CMYK", "jpeg, progressive", "png", "png, palette", "gif", "webp")
        for share in (0.4, 0.9)
    },
    "bmp, cut": (cut(LOSSLESS["bmp"][0], 0.9), "truncated"),
    "tiff, cut": (cut(LOSSLESS["tiff"][0], 0.9), "truncated"),
    "png, cut early": (cut(LOSSLESS["png"][0], 0.6), "truncated"),
    "jpeg, turned and cut": (cut(JPEGS["jpeg, orientation 6"][0], 0.8), "truncated"),
    "jpeg, header only": (JPEGS["jpeg"][0]["bytes"][:20], "cannot identify"),
    "jpeg, empty": (b"", "empty"),
    "png, empty": (b"", "empty"),
    "jpeg, text": (b"404: no such picture\n", "cannot identify"),
    "png, a page": (b"<!DOCTYPE html><html><body>moved</body></html>", "cannot identify"),
    "jpeg, zeros": (bytes(1000), "cannot identify"),
    "jpeg, one pixel": (encode(ONE_PIXEL, "JPEG")["bytes"], "one pixel"),
    "png, one pixel": (encode(ONE_PIXEL)["bytes"], "one pixel"),
    "gif, one pixel": (encode(ONE_PIXEL, "GIF")["bytes"], "one pixel"),
}
BOMB = encode(PIL.Image.new("1", (120, 100)))
both_decoders = pytest.mark.parametrize("decode", [decode_image, decode_pixels])


@both_decoders
def test_a_bad_image_has_a_reason(decode):
    for name, (encoded, word) in BROKEN.items():
        assert word in why(decode, {"bytes": encoded, "path": None}), name


@both_decoders
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_not_opened(monkeypatch, decode):
    for limit in (9000, 4000):  # more pixels than that, and more than twice as many
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        assert "decompression bomb" in why(decode, BOMB), limit


@both_decoders
def test_a_jpeg_that_claims_to_be_huge_takes_no_memory(decode):
    encoded = bytearray(JPEGS["jpeg"][0]["bytes"])
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # height and width 65500: 13 GB
    assert "decompression bomb" in why(decode, {"bytes": bytes(encoded), "path": None})


@both_decoders
def test_without_a_limit_there_is_no_bomb(monkeypatch, decode):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert decode(BOMB) is not None


@both_decoders
def test_a_missing_file_has_a_reason(decode, tmp_path):
    path = str(tmp_path / "gone.jpg")
    assert path in why(decode, {"bytes": None, "path": path})


@both_decoders
def test_the_reason_is_the_same_each_time(decode):
    assert "0x" not in why(decode, {"bytes": b"no picture", "path": None})


def undecoded(images: list[dict | None], labels: list[int] | None = None) -> Dataset:
    """Rows as `load_image_data` returns them; each row's label is its own number unless given."""
    values = {"image": images, "label": list(range(len(images))) if labels is None else labels}
    return Dataset.from_dict(values, features=Features({"image": Image(decode=False), "label": Value("int64")}))


def with_bad_rows(number: int, bad: dict[int, bytes]) -> Dataset:
    """Rows of which those in `bad` cannot be read; row i is a plain image of grey level i, of label i, in `i.png`."""
    images = [{"bytes": bad.get(row, encode(grey(row))["bytes"]), "path": f"{row}.png"} for row in range(number)]
    return undecoded(images)


@pytest.fixture
def warnings(caplog):
    """`warnings()`: what was logged as a warning so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def complaint(bad_images: BadImages, rows: list[int]) -> str:
    with pytest.raises(InputError) as caught:
        bad_images.note(rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bad_row_is_named_once(warnings):
    bad_images = BadImages(with_bad_rows(9, {3: b"", 5: BROKEN["png, cut early"][0]}), max_fraction=1.0)
    bad_images.note([])
    assert warnings() == []
    bad_images.note([3, 3])
    bad_images.note([5, 3])
    bad_images.note([5])
    first, second = warnings()
    assert "row 3 (3.png)" in first and "the file is empty" in first
    assert "row 5 (5.png)" in second and "truncated" in second
    assert bad_images.seen == {3, 5}


def test_a_row_without_a_file_is_named_by_its_number(warnings):
    BadImages(undecoded([encode(grey(1)), {"bytes": b"", "path": None}])).note([1])
    assert "row 1 is" in warnings()[0] and "None" not in warnings()[0]


def test_a_null_image_is_a_bad_image(warnings):
    data = undecoded([encode(grey(1)), None])
    batch = ViewDataset(data, PLAIN).__getitems__([View(1, 0, 0)])
    assert set(batch["bad_images"]) == {1}
    BadImages(data).note([1])
    assert "row 1" in warnings()[0]


def test_the_first_bad_image_stops_the_run_if_it_is_told_so(warnings):
    data = with_bad_rows(9, {3: b""})
    BadImages(data).note([3])
    message = complaint(BadImages(data, on_bad_image="error"), [3])
    assert message.startswith("row 3 (3.png) is a bad image: the file is empty") and "on_bad_image" in message
    assert warnings()[0].startswith("row 3 (3.png) is a bad image: the file is empty")  # the same words
    assert len(warnings()) == 1


def test_more_than_the_fraction_stops_the_run():
    data = with_bad_rows(10, dict.fromkeys(range(10), b""))
    # of ten rows; one is always allowed
    for max_fraction, num_processes, allowed in [(0.3, 1, 3), (0.0, 1, 1), (0.01, 1, 1), (0.4, 2, 2), (0.4, 100, 1)]:
        bad_images = BadImages(data, max_fraction=max_fraction, num_processes=num_processes)
        bad_images.note(list(range(allowed)))
        bad_images.note([0, 0])
        message = complaint(bad_images, [allowed])
        assert "max_bad_image_fraction" in message and f"{max_fraction:g}" in message
        assert message.startswith(f"{allowed + 1} "), (max_fraction, num_processes)


def test_any_share_may_be_bad_if_it_is_allowed():
    data = with_bad_rows(10, dict.fromkeys(range(10), b""))
    bad_images = BadImages(data, max_fraction=1.0)
    bad_images.note(list(range(10)))
    assert bad_images.seen == set(range(10))


# --- the evaluation transform -----------------------------------------------------------------------------------------


def test_evaluation_by_hand():
    # resized: the shorter side at image_size / crop_pct, the other in proportion; corner: half of what is left over
    for size, image_size, crop_pct, resized, corner in [
        ((600, 400), 224, 0.875, (384, 256), (80, 16)),
        ((300, 450), 224, 0.875, (256, 384), (16, 80)),
        ((120, 80), 32, 1.0, (48, 32), (8, 0)),
        ((80, 100), 32, 0.8, (40, 50), (4, 9)),
    ]:
        image = picture(*size)
        pixels = evaluation_transform(evaluation_processor(image_size, crop_pct))(image)
        assert pixels.shape == (3, image_size, image_size) and pixels.dtype == torch.float32
        left, top = corner
        box = (left, top, left + image_size, top + image_size)
        crop = image.resize(resized, PIL.Image.Resampling.BICUBIC).crop(box)
        levels = 255 * (pixels.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN)
        # PIL and torch round apart.
        np.testing.assert_allclose(levels, np.asarray(crop), rtol=0, atol=2.01, err_msg=f"{size}")


def test_evaluation_uses_imagenet_s_statistics():
    pixels = evaluation_transform(evaluation_processor(8))(PIL.Image.new("RGB", (9, 12), (255, 51, 0)))
    # (1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225
    for channel, value in zip(pixels, (2.24891, -1.14286, -1.80444), strict=True):
        torch.testing.assert_close(channel, torch.full((8, 8), value), atol=1e-4, rtol=0)


def test_evaluation_with_other_statistics():
    processor = evaluation_processor(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(evaluation_transform(processor)(grey(255)), torch.ones(3, 8, 8))


def test_the_saved_processor_is_the_same_transform(tmp_path):
    processor = evaluation_processor(32, 0.8)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    image = picture(80, 100)
    assert torch.equal(evaluation_transform(loaded)(image), evaluation_transform(processor)(image))


# --- batches of evaluation --------------------------------------------------------------------------------------------


def test_evaluation_rows():
    seen = []

    def transform(image):
        seen.append(image.mode)
        return torch.full((3, 2, 2), float(image.getpixel((0, 0))[0]))

    dataset = EvaluationDataset(undecoded([encode(grey(level)) for level in (7, 8, 9)], [1, 0, 1]), transform)
    assert len(dataset) == 3
    batch = collate([dataset[np.int64(2)], dataset[0]])
    assert seen == ["RGB", "RGB"]
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [9.0, 7.0]
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 1]


def bad_validation() -> EvaluationDataset:
    return EvaluationDataset(with_bad_rows(4, {2: b""}), evaluation_transform(evaluation_processor(8)))


def test_a_bad_image_makes_evaluation_impossible():
    dataset = bad_validation()
    assert dataset[1]["pixel_values"].shape == (3, 8, 8)
    with pytest.raises(InputError) as caught:
        dataset[2]
    message = str(caught.value)
    assert "validation row 2 (2.png)" in message and "the file is empty" in message and "\n" not in message


def test_a_bad_image_in_a_worker_is_one_line_too():
    with pytest.raises(InputError) as caught:
        list(DataLoader(bad_validation(), batch_size=2, collate_fn=collate, num_workers=1))
    assert str(caught.value).startswith("validation row 2 (2.png)") and "\n" not in str(caught.value)
    traceback.clear_frames(
        caught.tb
    )  # frees the iterator; the garbage collector would wait five seconds for its worker


# --- cropping ---------------------------------------------------------------------------------------------------------


BOXES = [
    (0, 0, 120, 160),
    (7, 11, 100, 90),
    (20, 30, 70, 66),
    (3, 5, 40, 50),
    (50, 60, 32, 32),
    (10, 20, 13, 17),
    (119, 158, 1, 2),
    (60, 60, 1, 1),
    (8, 9, 110, 7),
]


def pillows_crop(levels: np.ndarray, box: tuple[int, int, int, int], side: int) -> np.ndarray:
    """In two steps: Pillow takes the cheaper direction first, and cuts what leaves 0 to 255 between the two."""
    top, left, height, width = box
    crop = PIL.Image.fromarray(levels).crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((side, height), BICUBIC).resize((side, side), BICUBIC)).astype(int)


def test_cropping_and_resizing_is_pillow_s():
    levels = np.random.RandomState(0).randint(0, 256, (120, 160, 3), dtype=np.uint8)
    pixels, worst, shares = torch.from_numpy(levels).permute(2, 0, 1), {}, {}
    for side, box in itertools.product((32, 64, 96), BOXES):
        output = torch.zeros(2, 3, side, side, dtype=torch.uint8)
        crop_and_resize(pixels, box, output[0])
        difference = abs(as_array(output[0]) - pillows_crop(levels, box, side))
        worst[side, box], shares[side, box] = int(difference.max()), float((difference > 1).mean())
        assert not output[1].any(), (side, box)  # the neighbour's slot
    assert max(worst.values()) <= 2, worst
    assert max(shares.values()) < 1e-3, shares


# --- rows -------------------------------------------------------------------------------------------------------------


REARRANGED = {
    "as they are": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "selected": lambda rows: rows.select([4, 0, 2]),
    "cut": lambda rows: rows.train_test_split(test_size=0.4, seed=0)["test"],
    "put together": lambda rows: datasets.concatenate_datasets([rows.select([5, 1]), rows.shuffle(seed=2), rows]),
}


def test_a_row_is_found_without_formatting(tmp_path):
    plain = rows([0, 1, 2, 0, 1, 2], classes=["a", "b", "c"]).cast_column("image", Image(decode=False))
    plain.to_parquet(tmp_path / "rows.parquet")
    from_files = load_image_data(str(tmp_path / "rows.parquet"), validation_fraction=0.5).train
    rearranged = {name: rearrange(plain) for name, rearrange in REARRANGED.items()} | {"read from files": from_files}
    for name, some in rearranged.items():
        for row in range(len(some)):
            expected = some[row]
            assert encoded_row(some, row) == (expected["image"], expected["label"]), name


# --- views ------------------------------------------------------------------------------------------------------------

SETTINGS = AugmentationSettings(image_size=16)
PLAIN = AugmentationSettings(image_size=16, mixup_alpha=0.0, cutmix_alpha=0.0)  # any view may come alone
BAD_PHOTOS = (4, 17, 30)


def photos(bad=BAD_PHOTOS) -> Dataset:
    """Rows of several sizes and formats; those in `bad` are broken."""
    images = []
    for row in range(48):
        image = picture(40 + row, 90 - row).rotate(row)
        encoded = encode(image, "PNG") if row % 5 == 0 else encode(image, "JPEG")
        images.append({"bytes": b"broken", "path": None} if row in bad else encoded)
    return undecoded(images)


@pytest.fixture(scope="module")
def dataset() -> ViewDataset:
    return ViewDataset(photos(), SETTINGS, seed=5)


def views_of(dataset: ViewDataset, epoch: int = 0, repeats: int = 3) -> list[View]:
    sampler = ViewSampler(len(dataset), 16, repeats, dataset.seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def loader(dataset: ViewDataset, batch_size: int, num_workers: int = 0, epoch: int = 1) -> DataLoader:
    sampler = ViewSampler(len(dataset), 16, 3, dataset.seed)
    sampler.set_epoch(epoch)
    return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate, num_workers=num_workers)


def by_position(batches) -> dict[int, tuple[bytes, ...]]:
    """All that batches say of each view, its pair's mixing included, as bytes: `==` compares bit by bit."""
    seen = {}
    for batch in batches:
        for slot, position in enumerate(batch["position"].tolist()):
            own = [batch[name][slot] for name in ("pixel_values", "labels", "epoch")]
            for field in dataclasses.fields(batch["draws"]):
                values = getattr(batch["draws"], field.name)
                if values is not None:
                    own.append(values[slot // 2 if field.name.startswith("mix") else slot])
            assert position not in seen
            seen[position] = tuple(np.asarray(value).tobytes() for value in own)
    return seen


@pytest.fixture(scope="module")
def expected(dataset) -> dict[int, tuple[bytes, ...]]:
    """The second epoch, in one process and batches of 16."""
    return by_position(loader(dataset, 16))


def test_what_a_batch_holds(dataset):
    views = views_of(dataset, epoch=2)[6:14]
    batch = collate(dataset.__getitems__(views))
    assert set(batch) == {"pixel_values", "labels", "epoch", "position", "draws", "bad_images"}
    assert batch["pixel_values"].shape == (8, 3, 16, 16) and batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].shape == (8,) and batch["labels"].dtype == torch.int64
    assert isinstance(batch["epoch"], np.ndarray) and batch["epoch"].tolist() == [2] * 8
    assert isinstance(batch["position"], np.ndarray) and batch["position"].tolist() == list(range(6, 14))
    draws = batch["draws"]
    assert draws.flip.shape == (8,) and draws.operations.shape == draws.arguments.shape == (8, 2)
    assert draws.erased_box.shape == (8, 4) and draws.noise_seed.shape == (8,)
    assert draws.mix_ratio.shape == (4,) and draws.mix_box.shape == (4, 4)
    assert len(dataset) == 48


def test_a_batch_without_mixing():
    draws = ViewDataset(photos(), PLAIN).__getitems__([View(1, 0, 0)])["draws"]
    assert draws.mix_ratio is None and draws.mix_box is None


def test_a_view_is_the_drawn_crop_of_its_image():
    data = undecoded([encode(picture(90, 70), "PNG"), encode(picture(50, 80), "PNG")])
    views = [View(position % 2, 3, position) for position in range(20)]
    batch = ViewDataset(data, PLAIN, seed=7).__getitems__(views)
    uniforms = draw_uniforms(7, 3, range(20))
    assert batch["labels"].tolist() == [view.image for view in views]
    for view, pixels, draws in zip(views, batch["pixel_values"], uniforms, strict=True):
        image = decode_image(data[view.image]["image"])
        top, left, height, width = crop_box(draws, image.height, image.width, PLAIN.crop_scale)
        crop = image.crop((left, top, left + width, top + height)).resize((16, 16), BICUBIC)
        np.testing.assert_allclose(as_array(pixels), np.asarray(crop), rtol=0, atol=2)


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 8), (1, 16), (3, 8)])
def test_workers_and_batch_sizes_change_nothing(dataset, expected, num_workers, batch_size):
    assert sorted(expected) == list(range(48))
    batches = list(loader(dataset, batch_size, num_workers))
    assert [len(batch["labels"]) for batch in batches] == [batch_size] * (48 // batch_size)
    assert by_position(batches) == expected


def test_another_epoch_or_seed_is_another_view(dataset, expected):
    others = by_position(loader(dataset, 16, epoch=0)), by_position(loader(ViewDataset(photos(), SETTINGS, 6), 16))
    for other in others:
        assert sum(other[position][0] == expected[position][0] for position in expected) < 5


def test_the_order_of_pairs_changes_nothing(dataset, expected):
    views = views_of(dataset, epoch=1)
    pairs = [views[start : start + 2] for start in range(0, 48, 2)]
    for batch_size in (2, 12, 48):
        mixed_up = [view for index in torch.randperm(24) for view in pairs[index]]
        batches = [dataset.__getitems__(mixed_up[start : start + batch_size]) for start in range(0, 48, batch_size)]
        assert by_position(batches) == expected, batch_size


def test_the_order_of_views_changes_nothing():
    dataset = ViewDataset(photos(), PLAIN)
    views = views_of(dataset)
    expected = by_position([dataset.__getitems__(views)])
    for batch_size in (1, 5, 48):
        mixed_up = [views[index] for index in torch.randperm(48)]
        batches = [dataset.__getitems__(mixed_up[start : start + batch_size]) for start in range(0, 48, batch_size)]
        assert by_position(batches) == expected, batch_size


@pytest.fixture
def decodes(monkeypatch) -> collections.Counter:
    """How often each image was decoded for training."""
    counts = collections.Counter()

    def counting(image):
        counts[image["bytes"]] += 1
        return decode_pixels(image)

    monkeypatch.setattr("modeling_deit_distill.data.datasets.decode_pixels", counting)
    return counts


def test_an_image_is_decoded_once_for_all_its_views_in_a_batch(decodes):
    dataset = ViewDataset(undecoded([encode(grey(row)) for row in range(48)]), SETTINGS)
    for repeats, batch_size in itertools.product((1, 3, 4), (6, 8, 24, 48)):
        views = views_of(dataset, repeats=repeats)
        for start in range(0, 48, batch_size):
            batch = views[start : start + batch_size]
            decodes.clear()
            dataset.__getitems__(batch)
            assert len(decodes) == sum(decodes.values()) == len({view.image for view in batch})
            assert repeats == 1 or len(decodes) < batch_size


def test_kept_images_are_decoded_once_and_seen_alike(decodes):
    encoded = [b"broken" if row == 5 else encode(grey(row))["bytes"] for row in range(48)]
    rows = undecoded([{"bytes": content, "path": None} for content in encoded])
    dataset, kept = ViewDataset(rows, SETTINGS, seed=5), ViewDataset(rows, SETTINGS, seed=5, keep_decoded=True)
    views = [*views_of(dataset, repeats=1, epoch=0), *views_of(dataset, repeats=1, epoch=1)]
    batches = [views[start : start + 8] for start in range(0, 96, 8)]
    expected = [dataset.__getitems__(batch) for batch in batches]
    decodes.clear()
    for batch, one in zip(batches, expected, strict=True):
        other = kept.__getitems__(batch)
        assert torch.equal(other["pixel_values"], one["pixel_values"])
        assert (other["labels"].tolist(), other["bad_images"]) == (one["labels"].tolist(), one["bad_images"])
    assert set(decodes.values()) == {1}


@pytest.mark.parametrize(("num_processes", "process_index"), [(1, 0), (2, 0), (2, 1)])
def test_skipped_batches_decode_nothing(decodes, num_processes, process_index):
    dataset, batch_size = ViewDataset(photos(bad=()), SETTINGS), 8 // num_processes
    expected = by_position(loader(dataset, 16))
    prepared = prepare_data_loader(
        loader(dataset, batch_size),
        device=torch.device("cpu"),
        num_processes=num_processes,
        process_index=process_index,
    )
    skipped = accelerate.skip_first_batches(prepared, 4)  # of six
    skipped.set_epoch(1)  # in this order, as Trainer does; Accelerate starts at epoch 0 whatever the sampler says
    decodes.clear()
    seen = by_position(skipped)
    rest = views_of(dataset, epoch=1)[32:]
    rest = [view for view in rest if view.position // batch_size % num_processes == process_index]
    assert seen == {view.position: expected[view.position] for view in rest}
    assert set(decodes) == {dataset.rows[view.image]["image"]["bytes"] for view in rest}


# --- bad images in training -------------------------------------------------------------------------------------------


def test_a_replacement_brings_its_label_and_does_not_depend_on_the_batch():
    bad = {3: b"", 4: b"text", 9: b""}
    dataset = ViewDataset(with_bad_rows(30, bad), PLAIN)
    views = [View(position % 12, 0, position) for position in range(120)]
    together = dataset.__getitems__(views)
    assert set(together["bad_images"]) == {3, 4, 9}
    # level and label of an image are its row's number
    shown = together["pixel_values"][:, 0, 0, 0].tolist()
    assert shown == together["labels"].tolist()
    for view, row in zip(views, shown, strict=True):
        assert row not in bad if view.image in bad else row == view.image
    assert len({row for view, row in zip(views, shown, strict=True) if view.image == 3}) > 2  # the view's own draw
    alone = [dataset.__getitems__([view]) for view in views]
    assert by_position(alone) == by_position([together])
    for view, batch in zip(views, alone, strict=True):
        assert (view.image in batch["bad_images"]) == (view.image in bad)


def test_a_dataset_of_bad_images_is_refused():
    dataset = ViewDataset(with_bad_rows(20, dict.fromkeys(range(20), b"")), PLAIN)
    with pytest.raises(InputError, match=f"{MAX_REPLACEMENTS} images .* could not be read"):
        dataset.__getitems__([View(0, 0, 0)])


@pytest.fixture
def damaged_folder(tmp_path, monkeypatch) -> tuple[ImageData, set[str]]:
    """A folder of 128 images, 62 of them odd or damaged; and the names of those that cannot be read."""
    odd = [(name, image["bytes"]) for name, (image, _) in {**JPEGS, **LOSSLESS}.items()]
    broken = [(name, encoded) for name, (encoded, _) in BROKEN.items()]
    broken += [("png, bomb", BOMB["bytes"]), ("jpeg, missing", JPEGS["jpeg"][0]["bytes"])]
    assert len(odd) + len(broken) >= 50
    good = [(f"png, {index}", encode(grey(index))["bytes"]) for index in range(128 - len(odd) - len(broken))]
    names = set()
    for index, (name, content) in enumerate(odd + broken + good):
        path = tmp_path / "photos" / ("cat" if index % 2 else "dog") / f"{name.replace(', ', '_')}.{name.split(',')[0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if (name, content) in broken:
            names.add(path.name)
    for name in ("cat", "dog"):
        (tmp_path / "held_out" / name).mkdir(parents=True)
        PHOTO.save(tmp_path / "held_out" / name / "0.png")
    data = load_image_data(train_dir=str(tmp_path / "photos"), validation_dir=str(tmp_path / "held_out"))
    next((tmp_path / "photos").glob("*/jpeg_missing.jpeg")).unlink()
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100 * 100)
    return data, names


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_files_do_not_stop_an_epoch_and_are_all_named(damaged_folder, warnings, num_workers):
    data, names = damaged_folder
    dataset = ViewDataset(data.train, SETTINGS)
    sampler = ViewSampler(len(dataset), 8, repeats=1)
    batches = list(DataLoader(dataset, 8, sampler=sampler, collate_fn=collate, num_workers=num_workers))
    assert [batch["pixel_values"].shape for batch in batches] == [(8, 3, 16, 16)] * 16
    bad_images = BadImages(data.train, max_fraction=0.5)
    for batch in batches:
        bad_images.note(batch["bad_images"])
    assert {Path(data.train[row]["image"]["path"]).name for row in bad_images.seen} == names
    assert len(warnings()) == len(names)
    for name in names:
        assert sum(f"/{name})" in message for message in warnings()) == 1


def test_a_damaged_folder_has_a_fingerprint_as_long_as_its_files_are_there(damaged_folder):
    data, _ = damaged_folder
    present = data.train.filter(lambda row: os.path.exists(row["image"]["path"]))
    assert len(present) == 127
    assert dataclasses.replace(data, train=present).fingerprint()


def test_a_missing_file_does_not_stop_the_fingerprint(damaged_folder):
    assert damaged_folder[0].fingerprint()


# --- streams ----------------------------------------------------------------------------------------------------------

NAMES = [f"class {index}" for index in range(24)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """`stream(bad={3: b""})`: four parquet files of six images each as a stream; image i is of level i and label i."""

    def make(bad=None, path="{}.png") -> ImageData:
        folder = tmp_path_factory.mktemp("stream") / "data"
        encoded = [encode(grey(row))["bytes"] for row in range(24)]
        for row, broken in (bad or {}).items():
            encoded[row] = broken
        images = [{"bytes": content, "path": path.format(row)} for row, content in enumerate(encoded)]
        features = Features({"image": Image(decode=False), "label": ClassLabel(names=NAMES)})
        data = Dataset.from_dict({"image": images, "label": list(range(24))}, features=features)
        for shard in range(4):
            data.select(range(6 * shard, 6 * shard + 6)).to_parquet(folder / f"train-{shard}-of-4.parquet")
        data.select([0, 2]).to_parquet(folder / "test-0-of-1.parquet")
        return load_image_data(str(folder), streaming=True)

    good = functools.cache(make)  # without bad images it is the same for every test
    return lambda *args, **kwargs: make(*args, **kwargs) if args or kwargs else good()


def some(dataset: StreamingViewDataset, batches: int, num_workers: int = 0) -> list[dict]:
    loader = DataLoader(dataset, batch_size=None, collate_fn=collate, num_workers=num_workers)
    return list(itertools.islice(loader, batches))


def test_a_stream_is_described_as_stored_data_is(stream):
    data = stream()
    assert data.class_names == NAMES and "test" in data.validation_source
    assert [level(row) for row in data.validation] == data.validation["label"][:] == [0, 2]


def test_batches_of_a_stream_are_those_of_stored_data(stream, dataset):
    batches = some(StreamingViewDataset(stream().train, SETTINGS, batch_size=12), 4)
    stored = dataset.__getitems__(views_of(dataset)[:12])
    for number, batch in enumerate(batches):
        assert {key: type(value) for key, value in batch.items()} == {key: type(value) for key, value in stored.items()}
        assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape == (12, 3, 16, 16)
        assert batch["position"].tolist() == list(range(12 * number, 12 * number + 12))
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["labels"].tolist()
    labels = torch.cat([batch["labels"] for batch in batches]).reshape(-1, 3, 2)  # (pairs, repeats, images)
    assert torch.equal(labels, labels[:, :1].expand_as(labels))
    assert len(labels[:, 0].unique()) == 16


def test_a_stream_of_the_same_seed_is_the_same(stream):
    data = stream().train
    first, again = (by_position(some(StreamingViewDataset(data, SETTINGS, 8, seed=1), 12)) for _ in range(2))
    assert first == again
    other = by_position(some(StreamingViewDataset(data, SETTINGS, 8, seed=2), 12))
    assert [view[1] for view in other.values()] != [view[1] for view in first.values()]


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 2), (2, 1), (3, 0)])
def test_processes_and_workers_share_a_stream(stream, num_processes, num_workers):
    data = stream().train
    shares = []
    for rank in range(num_processes):
        share = StreamingViewDataset(data, SETTINGS, 2, repeats=1, rank=rank, num_processes=num_processes)
        shares += some(share, 12 // num_processes, num_workers)
    assert sorted(label for batch in shares for label in batch["labels"].tolist()) == list(range(24))  # one pass
    assert len(by_position(shares)) == 24  # no position twice


def test_a_stream_has_no_end(stream):
    labels = torch.cat([batch["labels"] for batch in some(StreamingViewDataset(stream().train, SETTINGS, 8, 1), 9)])
    assert [sorted(one) for one in labels.reshape(3, 24).tolist()] == [list(range(24))] * 3


def test_each_pass_of_a_stream_has_its_own_order(stream):
    first, second = some(StreamingViewDataset(stream().train, SETTINGS, 24, repeats=1), 2)
    assert not torch.equal(first["labels"], second["labels"])


def test_bad_images_of_a_stream_are_left_out_and_named(stream, warnings):
    batches = some(StreamingViewDataset(stream(bad={3: b"", 8: b"text"}).train, SETTINGS, 2, repeats=1), 11)
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == sorted({*range(24)} - {3, 8})
    bad_images = BadImages(None)
    for batch in batches:
        bad_images.note(batch["bad_images"], len(batch["labels"]))
    assert sorted(message.split(" is a bad image: ")[0] for message in warnings()) == ["3.png", "8.png"]
    assert any("the file is empty" in message for message in warnings())


def test_bad_images_of_a_stream_count_even_without_a_file(stream):
    for other in (b"text", b""):  # of another size than the first, and of the same
        data = stream(bad={3: b"", 8: other}, path="").train
        data = data.map(lambda row: {"label": 1}, features=data.features)
        (batch,) = some(StreamingViewDataset(data, SETTINGS, 22, repeats=1), 1)
        bad_images = BadImages(None)
        bad_images.note(batch["bad_images"])
        assert len(bad_images.seen) == 2, other


def test_a_stream_of_bad_images_is_refused(stream):
    with pytest.raises(InputError):
        some(StreamingViewDataset(stream(bad=dict.fromkeys(range(24), b"")).train, SETTINGS, 2), 1)


def test_a_stream_is_judged_after_a_thousand_images():
    bad_images = BadImages(None, max_fraction=0.01)
    bad_images.note([str(number) for number in range(10)], 20)
    assert "max_bad_image_fraction" in complaint(bad_images, ["one more"])
    bad_images.note([], 2000)
    bad_images.note([str(number) for number in range(19)])  # with the one more, 20 of 2020


def test_views_of_a_stream_are_mixed_in_pairs(stream):
    data = stream().train
    for batch_size in (1, 7):
        with pytest.raises(InputError, match=f"per_device_train_batch_size is {batch_size}, which is odd"):
            StreamingViewDataset(data, SETTINGS, batch_size)
        assert some(StreamingViewDataset(data, PLAIN, batch_size), 1)[0]["labels"].shape == (batch_size,)


def test_what_cannot_be_streamed(tmp_path):
    assert "streaming" in refusal("digits", streaming=True)
    rows([0, 1], ["a", "b"]).to_parquet(tmp_path / "data" / "train.parquet")
    assert "--validation_split" in refusal(str(tmp_path / "data"), streaming=True)
    rows(["a", "b"]).to_parquet(tmp_path / "plain" / "train.parquet")
    rows(["a", "b"]).to_parquet(tmp_path / "plain" / "test.parquet")
    assert "class names" in refusal(str(tmp_path / "plain"), streaming=True)


def test_a_stream_of_saved_rows(saved):
    data = load_image_data(saved(rows([0, 1], ["a", "b"]), test=rows([0, 1], ["a", "b"])), streaming=True)
    assert some(StreamingViewDataset(data.train, SETTINGS, 4), 1)[0]["labels"].shape == (4,)


# --- memory and processes ---------------------------------------------------------------------------------------------


class Watched(ViewDataset):
    """Tells how much memory the process that made a batch holds."""

    def __getitems__(self, views):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {**super().__getitems__(views), "resident": pages * os.sysconf("SC_PAGE_SIZE")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_stays_flat(tmp_path, num_workers):
    # Decoded, all images would take 74 MB, of which two epochs see little more than half.
    levels = np.random.RandomState(0).randint(0, 256, (2000, 6, 8, 3), dtype=np.uint8)
    images = [encode(PIL.Image.fromarray(image).resize((128, 96)), "JPEG") for image in levels]
    undecoded(images).save_to_disk(tmp_path)
    dataset = Watched(load_from_disk(tmp_path), AugmentationSettings(image_size=32))
    sampler = ViewSampler(len(dataset), 40)
    batches = DataLoader(
        dataset, 40, sampler=sampler, collate_fn=collate, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    resident = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        resident.append([batch["resident"] for batch in batches][-1])
    assert resident[9] - resident[1] < 20e6


SCRIPT = """
import sys

import accelerate
import torch
from datasets import load_from_disk
from torch.utils.data import DataLoader

from modeling_deit_distill.data.datasets import ViewDataset, collate
from modeling_deit_distill.process_end import end_process
from modeling_deit_distill.data.views import AugmentationSettings, ViewSampler

data, output_dir = sys.argv[1:]
dataset = ViewDataset(load_from_disk(data), AugmentationSettings(image_size=16), seed=5)
sampler = ViewSampler(len(dataset), 16, 3, dataset.seed)
sampler.set_epoch(1)
accelerator = accelerate.Accelerator(cpu=True)
loader = accelerator.prepare(DataLoader(dataset, 8, sampler=sampler, collate_fn=collate))
loader.set_epoch(1)
torch.save(list(loader), f"{output_dir}/{accelerator.process_index} of {accelerator.num_processes}.pt")
end_process()
"""


@pytest.mark.slow
def test_two_processes_see_together_what_one_sees(tmp_path, expected):
    (tmp_path / "script.py").write_text(SCRIPT)
    photos().save_to_disk(tmp_path / "data")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path / "data"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    batches = [torch.load(tmp_path / f"{rank} of 2.pt", weights_only=False) for rank in range(2)]
    assert [[len(batch["labels"]) for batch in own] for own in batches] == [[8, 8, 8]] * 2
    assert by_position(batches[0] + batches[1]) == expected


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
