"""Where images and labels come from, what is refused, and what the transforms do to pixels."""

import collections
import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from modeling_deit_distill import InputError
from modeling_deit_distill.data import (
    ImageData,
    ImageDataset,
    collate,
    decode_image,
    evaluation_processor,
    evaluation_transform,
    load_digits,
    load_image_data,
    mixing,
    training_transform,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TWO = {"cat": 3, "dog": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def encode(image: PIL.Image.Image, format: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
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


def level(row: dict) -> int:
    return decode_image(row["image"]).getpixel((0, 0))[0]


@pytest.fixture
def saved(tmp_path):
    """`saved(rows)` or `saved(train=rows, test=rows)`: the folder where `save_to_disk` put them."""

    def save(train: Dataset, **splits) -> str:
        (DatasetDict(train=train, **splits) if splits else train).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

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


def test_digits_are_scikit_learn_s():
    from sklearn.datasets import load_digits as reference

    digits, original = load_digits().cast_column("image", Image(decode=False)), reference()
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


def test_the_cut_of_the_digits_is_stratified_and_complete():
    data = load_image_data("digits", validation_fraction=0.2)
    assert (len(data.train), len(data.validation)) == (1437, 360)
    assert data.class_names == list("0123456789")
    counts = collections.Counter(data.validation["label"])
    totals = counts + collections.Counter(data.train["label"])
    assert all(abs(counts[digit] - 0.2 * totals[digit]) <= 1 for digit in range(10))
    parts = collections.Counter(row["image"]["bytes"] for split in (data.train, data.validation) for row in split)
    encoded = load_digits().cast_column("image", Image(decode=False))
    assert parts == collections.Counter(row["image"]["bytes"] for row in encoded)
    assert data.source == "digits" and "20%" in data.validation_source


def test_the_cut_does_not_depend_on_any_seed():
    held_out = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        data = load_image_data("digits")
        held_out.append([row["image"]["bytes"] for row in data.validation])
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


@pytest.mark.parametrize("name", ["test", "validation", "train_photos"])
def test_a_folder_may_be_called_as_a_split(folder, name):
    data = load_image_data(train_dir=folder(name, {"cat": 3, "test": 3}))
    assert data.class_names == ["cat", "test"]
    assert len(data.train) + len(data.validation) == 6


@pytest.mark.xfail(strict=True, reason="the name is taken as a pattern")
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


@pytest.mark.parametrize("images", [{"cat": 4}, {"": 4}])
def test_one_class_only(folder, images):
    message = refusal(train_dir=folder("photos", images))
    assert "one class only" in message and "photos" in message


# --- named datasets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c", "nowhere.parquet"])
def test_a_path_that_is_not_there_does_not_go_to_the_hub(name):
    message = refusal(name)
    assert f"dataset_name {name!r} does not exist" in message


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_dataset_that_cannot_be_had(name):  # the tests are offline
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


@pytest.mark.parametrize("name", ["label", "labels", "class", "target"])
def test_names_of_plain_labels(saved, name):
    assert load_image_data(saved(rows(["a", "b"] * 3, label=name))).class_names == ["a", "b"]


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


def test_a_named_column_of_paths(tmp_path, saved):
    for name in ("0.png", "1.png"):
        grey(9).save(tmp_path / name)
    paths = [str(tmp_path / f"{index % 2}.png") for index in range(6)]
    data = load_image_data(saved(Dataset.from_dict({"file": paths, "label": ["a", "b"] * 3})), image_column="file")
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


@pytest.mark.xfail(strict=True, raises=KeyError, reason="is not refused")
def test_one_column_cannot_be_both(saved):
    assert "label_column" in refusal(saved(rows([0, 1], ["a", "b"])), label_column="image")


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "test"])
def test_the_split_to_evaluate_on_is_found(saved, name):
    others = {"test": rows([0, 1], ["a", "b"], start=100), "extra": rows([0], ["a", "b"], start=150)}
    data = load_image_data(saved(rows([0, 1], ["a", "b"]), **{**others, name: rows([1, 0], ["a", "b"], start=200)}))
    assert [level(row) for row in data.validation] == [200, 201]
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


@pytest.mark.parametrize(
    ("labels", "classes"), [([-1, -1], ["a", "b"]), ([None, None], ["a", "b"]), ([None, "a"], None)]
)
def test_a_split_without_labels_is_skipped(saved, labels, classes):
    train = rows([0, 1] * 5, classes) if classes else rows(["a", "b"] * 5)
    known = rows([0, 1], classes, start=100) if classes else rows(["a", "b"], start=100)
    data = load_image_data(saved(train, validation=rows(labels, classes), test=known))
    assert [level(row) for row in data.validation] == [100, 101]


def test_a_cut_where_the_only_other_split_has_no_labels(saved):
    data = load_image_data(saved(rows([0, 1] * 5, ["a", "b"]), test=rows([-1, -1], ["a", "b"])))
    assert len(data.train) + len(data.validation) == 10
    assert "train" in data.validation_source


@pytest.mark.xfail(strict=True, reason="columns are looked for in splits that nobody uses")
def test_a_split_without_a_label_column_is_skipped(saved):
    bare = rows([0, 1], ["a", "b"]).remove_columns("label")
    assert len(load_image_data(saved(rows([0, 1] * 5, ["a", "b"]), test=bare)).train) == 9


def test_a_named_split_without_labels(saved):
    path = saved(rows([0, 1] * 5, ["a", "b"]), test=rows([0, -1], ["a", "b"]))
    assert "--validation_split" in refusal(path, validation_split="test")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, -1, 1, 0] * 3, ["a", "b"]),
        ([0, None, 1, 0] * 3, ["a", "b"]),
        pytest.param(
            ["a", None, "b", "a"] * 3, None, marks=pytest.mark.xfail(strict=True, reason="validation is blamed")
        ),
    ],
)
def test_training_images_without_a_label(saved, labels, classes):
    message = refusal(saved(rows(labels, classes)))
    assert "train" in message and "without a label" in message


@pytest.mark.xfail(strict=True, reason="the remedy is --validation_split")
def test_the_remedy_for_training_images_without_a_label(saved):
    assert "--train_split" in refusal(saved(rows([0, -1, 1, 0] * 3, ["a", "b"])))


def test_labels_of_validation_that_training_does_not_know(saved):
    message = refusal(saved(rows(["a", "b"] * 3), test=rows(["a", "zebra"])))
    assert "zebra" in message


@pytest.mark.parametrize("theirs", [["b", "a"], ["a", "b", "c"], ["x", "y"]])
def test_class_names_that_differ(saved, theirs):
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


@pytest.mark.parametrize(
    ("orientation", "size", "dark", "light"),
    [
        (1, (32, 16), (0, 0), (31, 15)),
        (3, (32, 16), (31, 15), (0, 0)),  # half a turn
        (6, (16, 32), (0, 0), (15, 31)),  # a quarter clockwise: the left side comes to the top
        (8, (16, 32), (15, 31), (0, 0)),
    ],
)
def test_images_are_upright(orientation, size, dark, light):
    stored = PIL.Image.new("RGB", (32, 16), "white")
    stored.paste((0, 0, 0), (0, 0, 16, 16))  # the left half is dark
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, "JPEG", exif=exif))
    assert image.size == size
    assert max(image.getpixel(dark)) < 30 and min(image.getpixel(light)) > 225


def sixteen_bit() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.full((2, 2), 200, dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (PIL.Image.new("L", (2, 2), 77), (77, 77, 77)),
        (PIL.Image.new("LA", (2, 2), (77, 255)), (77, 77, 77)),
        (PIL.Image.new("1", (2, 2), 1), (255, 255, 255)),
        (PIL.Image.new("RGBA", (2, 2), (10, 20, 30, 255)), (10, 20, 30)),
        (PIL.Image.new("RGB", (2, 2), (10, 20, 30)).quantize(), (10, 20, 30)),
        (sixteen_bit(), (200, 200, 200)),
    ],
    ids=["grey", "grey with alpha", "black and white", "alpha", "palette", "16-bit"],
)
def test_every_mode_becomes_rgb_as_in_a_pipeline(image, colour):
    encoded = encode(image)
    decoded = decode_image(encoded)
    assert decoded.mode == "RGB" and decoded.getpixel((1, 1)) == colour
    assert np.array_equal(decoded, load_image(PIL.Image.open(io.BytesIO(encoded["bytes"]))))


def test_an_image_given_by_its_path(tmp_path):
    grey(50).save(tmp_path / "x.png")
    assert decode_image({"bytes": None, "path": str(tmp_path / "x.png")}).getpixel((0, 0)) == (50, 50, 50)


# --- the evaluation transform -----------------------------------------------------------------------------------------


def picture(width: int, height: int) -> PIL.Image.Image:
    noise = np.random.RandomState(0).randint(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((width, height))


@pytest.mark.parametrize(
    ("size", "image_size", "crop_pct", "resized", "corner"),
    [
        # resized: the shorter side at image_size / crop_pct, the other in proportion; corner: half of what is left over
        ((600, 400), 224, 0.875, (384, 256), (80, 16)),
        ((300, 450), 224, 0.875, (256, 384), (16, 80)),
        ((120, 80), 32, 1.0, (48, 32), (8, 0)),
        ((80, 100), 32, 0.8, (40, 50), (4, 9)),
    ],
)
def test_evaluation_by_hand(size, image_size, crop_pct, resized, corner):
    image = picture(*size)
    pixels = evaluation_transform(evaluation_processor(image_size, crop_pct))(image)
    assert pixels.shape == (3, image_size, image_size) and pixels.dtype == torch.float32
    left, top = corner
    crop = image.resize(resized, PIL.Image.Resampling.BICUBIC).crop((left, top, left + image_size, top + image_size))
    levels = 255 * (pixels.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN)
    np.testing.assert_allclose(levels, np.asarray(crop), rtol=0, atol=2.01)  # PIL and torch round apart


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


# --- the training transform -------------------------------------------------------------------------------------------

PLAIN = {"horizontal_flip_prob": 0.0, "rand_augment_magnitude": 0.0, "random_erasing_prob": 0.0}


def ramp(side: int = 64) -> PIL.Image.Image:
    """Levels from 0 on the left to 252 on the right."""
    return PIL.Image.fromarray(np.tile(np.linspace(0, 252, side).astype(np.uint8)[None, :, None], (side, 1, 3)))


def rises(pixels: torch.Tensor) -> bool:
    return bool(pixels[..., -1].mean() > pixels[..., 0].mean())


@pytest.mark.parametrize("size", [(64, 64), (50, 31), (8, 8), (1, 40)])
def test_training_pixels(size):
    pixels = training_transform(32)(PIL.Image.new("RGB", size, (90, 120, 30)))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    assert pixels.isfinite().all()


@pytest.mark.parametrize(("probability", "seen"), [(0.0, {True}), (1.0, {False}), (0.5, {True, False})])
def test_flips(probability, seen):
    transform = training_transform(16, **{**PLAIN, "horizontal_flip_prob": probability})
    assert {rises(transform(ramp())) for _ in range(40)} == seen


def test_training_without_augmentation_normalises_alone():
    pixels = training_transform(8, **PLAIN)(PIL.Image.new("RGB", (9, 12), (255, 51, 0)))
    for channel, value in zip(pixels, (2.24891, -1.14286, -1.80444), strict=True):
        torch.testing.assert_close(channel, torch.full((8, 8), value), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("augmentation", "least", "most"),
    [
        # RandAugment's operations do little to a plain image, or nothing; erasing is told how often
        ({"rand_augment_magnitude": 9.0}, 3, 39),
        ({"random_erasing_prob": 1.0}, 40, 40),
        ({"random_erasing_prob": 0.5}, 5, 35),
    ],
)
def test_augmentation_is_applied(augmentation, least, most):
    image = PIL.Image.new("RGB", (16, 16), (200, 100, 50))
    plain, augmented = training_transform(16, **PLAIN)(image), training_transform(16, **{**PLAIN, **augmentation})
    assert least <= sum(not torch.equal(augmented(image), plain) for _ in range(40)) <= most


def test_the_crop_takes_the_share_of_the_area_it_is_told():
    # A quarter of the area at a ratio of width to height from 3/4 to 4/3: √(1/4 · ratio) = 0.43 to 0.58 of the width.
    transform = training_transform(32, random_crop_scale=(0.25, 0.25), **PLAIN)
    for _ in range(20):
        levels = 255 * (transform(ramp(256))[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0])
        assert 0.40 < (levels.max() - levels.min()) / 252 < 0.61


# --- mixing -----------------------------------------------------------------------------------------------------------


def constant_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i holds i everywhere and is of class i: a mixture's mean is its label's expectation."""
    labels = torch.arange(count)
    return labels.float().reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous(), labels


def test_no_mixing():
    assert mixing(4, mixup_alpha=0.0, cutmix_alpha=0.0) is None


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_pixels_are_mixed_as_their_labels(mixup_alpha, cutmix_alpha):
    images, labels = constant_images(4)
    mix = mixing(4, mixup_alpha, cutmix_alpha)
    changed = 0
    for _ in range(20):
        pixels, probabilities = mix(images, labels)
        assert pixels.shape == images.shape and probabilities.shape == (4, 4)
        assert (probabilities >= 0).all()
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))
        torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)), probabilities @ labels.float())
        changed += not torch.equal(pixels, images)
    assert changed > 10


def test_mixup_blends_and_cutmix_pastes():
    images, labels = constant_images(4)
    for _ in range(20):
        blended, _ = mixing(4, 0.8, 0.0)(images, labels)
        assert torch.equal(blended, blended[:, :, :1, :1].expand_as(blended))  # one value per image
        pasted, _ = mixing(4, 0.0, 1.0)(images, labels)
        assert set(pasted.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}  # values of the images as they were


def test_mixing_takes_turns():
    images, labels = constant_images(4)
    mix = mixing(4, mixup_alpha=100.0, cutmix_alpha=1.0)  # so high that the ratio is near a half
    kinds = [set(mix(images, labels)[0].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0} for _ in range(100)]
    assert 25 < sum(kinds) < 75  # half of them, by five deviations


# --- batches ----------------------------------------------------------------------------------------------------------


def test_image_dataset_and_collate():
    data = rows([1, 0, 1], ["a", "b"]).cast_column("image", Image(decode=False))
    seen = []

    def transform(image):
        seen.append(image.mode)
        return torch.full((3, 2, 2), float(image.getpixel((0, 0))[0]))

    dataset = ImageDataset(data, transform)
    assert len(dataset) == 3
    batch = collate([dataset[np.int64(2)], dataset[0]])
    assert seen == ["RGB", "RGB"]
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [2.0, 0.0]
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 1]


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


@pytest.mark.parametrize(
    "change",
    [
        {"images": (0, 1, 2, 4)},
        {"images": (0, 2, 1, 3)},
        {"labels": (0, 1, 1, 1)},
        {"names": ("a", "c")},
        {"names": ("a", "b", "c")},
        {"labels": (0, 1, 0), "images": (0, 1, 2)},
        {"held_out": 3},
    ],
    ids=["pixels", "order", "label", "class name", "classes", "length", "held out"],
)
def test_other_data_has_another_fingerprint(change):
    assert image_data(**change).fingerprint() != image_data().fingerprint()


def test_one_changed_pixel_changes_the_fingerprint():
    data, image = image_data(), grey(3)
    image.putpixel((2, 1), (3, 3, 4))
    changed = [*data.train["image"][:3], encode(image)]
    data.train = data.train.remove_columns("image").add_column("image", changed, feature=Image(decode=False))
    assert data.fingerprint() != image_data().fingerprint()
