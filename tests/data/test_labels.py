"""Labels: found in any source, streamed or not; text stays text, and integers keep their order."""

import json

import pytest
from datasets import ClassLabel, Dataset, Sequence, Value
from helpers.images import level, rows
from helpers.refusals import refusal
from helpers.shards import write_shard

from modeling_deit_distill import InputError
from modeling_deit_distill.data.decoding import decode_pixels
from modeling_deit_distill.data.sources import load_image_data

# What readers of tables take for numbers, dates or missing values.
ODD_TEXTS = ["007", "7", "None", "NA", "nan", "null", "1e5", "-1", "True", "2024-01-01", "1_000", "0x1F"]


@pytest.fixture(params=["parquet", "saved", "streamed"])
def source(request, tmp_path):
    """`source(labels)`: the data of equal training and validation splits, image i of label `labels[i]`."""

    def load(labels, **kwargs):
        data = rows(labels)
        if request.param == "saved":
            for split in ("train", "test"):
                data.save_to_disk(tmp_path / split)
            (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
        else:
            for split in ("train", "test"):
                data.to_parquet(tmp_path / f"{split}.parquet")
        return load_image_data(str(tmp_path), streaming=request.param == "streamed", **kwargs)

    return load


def names_by_level(data, split) -> list[str]:
    return [data.class_names[row["label"]] for row in sorted(split, key=level)]


def test_text_that_looks_like_a_number_or_like_nothing_is_text(source):
    data = source(ODD_TEXTS)
    assert data.class_names == sorted(ODD_TEXTS)
    assert names_by_level(data, data.train) == names_by_level(data, data.validation) == ODD_TEXTS


def test_integers_keep_their_order(source):
    data = source([10, 9, 100, 2])
    assert data.class_names == ["2", "9", "10", "100"]
    assert names_by_level(data, data.train) == names_by_level(data, data.validation) == ["10", "9", "100", "2"]


@pytest.mark.parametrize("labels", [[0, -1, 1], [0, None, 1], ["a", None, "b"]])
def test_no_label_is_no_class(source, labels):
    with pytest.raises(InputError, match="has images without a label"):
        source(labels)


def test_a_label_that_is_not_a_number_is_none(saved):
    labels = rows([0, 1, 2]).remove_columns("label").add_column("label", [0.0, float("nan"), 1.0])
    assert "has images without a label" in refusal(saved(labels))


def test_the_line_end_of_a_text_file_is_no_part_of_its_label(source):
    assert source(["cat\n", "dog\r\n", "cat", "dog"]).class_names == ["cat", "dog"]


def test_a_column_of_lists_is_no_label(tmp_path):
    many = rows([0, 1], ["a", "b"], many=([[0], [0, 1]], Sequence(Value("int64"))))
    many.to_parquet(tmp_path / "train.parquet")
    assert "not one label for each image" in refusal(str(tmp_path / "train.parquet"), label_column="many")


def test_a_column_of_dictionaries_is_no_label(tmp_path):
    boxed = rows([0, 1], ["a", "b"], boxed=([{"a": 0}, {"a": 1}], {"a": Value("int64")}))
    boxed.to_parquet(tmp_path / "train.parquet")
    message = "holds {'a': Value('int64')}, not one label for each image"
    assert message in refusal(str(tmp_path / "train.parquet"), label_column="boxed")


def test_splits_with_and_without_class_names_do_not_go_together(saved):
    path = saved(rows([0, 1], ["a", "b"]), test=rows([0, 1]))
    for streaming in (False, True):
        assert "validation has no class names, training has ['a', 'b']" in refusal(path, streaming=streaming)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_label_that_only_the_stream_has_ends_it_by_name(saved):
    data = load_image_data(saved(rows(["cat", "dog", "eel"]), test=rows(["dog", "cat"])), streaming=True)
    assert data.class_names == ["cat", "dog"]
    stream = iter(data.train)
    assert [next(stream)["label"], next(stream)["label"]] == [0, 1]
    with pytest.raises(InputError, match="the label 'eel', which split 'test' lacks, .*--validation_split"):
        next(stream)


@pytest.mark.parametrize(("labels", "classes"), [([-1, 0], None), ([None, 0], None), ([-1, 0], ["a", "b"])])
def test_an_image_of_a_stream_without_a_label_ends_it(saved, labels, classes):
    data = load_image_data(saved(rows(labels, classes), test=rows([0, 1], classes)), streaming=True)
    with pytest.raises(InputError, match="an image without a label"):
        next(iter(data.train))


def test_a_stream_of_one_class_is_refused(saved):
    assert "one class only (0)" in refusal(saved(rows([0, 1]), test=rows([0, 0])), streaming=True)


# --- webdataset -------------------------------------------------------------------------------------------------------

LABEL_FILES = {
    "a whole number": (lambda level: {"cls": b"%d" % (level % 3 * 5)}, ["0", "5", "10"]),
    "a text file": (lambda level: {"cls.txt": (b"cat\n", b"007\n", b"None")[level % 3]}, ["007", "None", "cat"]),
    "a number in JSON": (lambda level: {"json": json.dumps({"label": level % 3, "x": 0.5}).encode()}, ["0", "1", "2"]),
    "a word in JSON": (lambda level: {"json": json.dumps({"label": "ab7"[level % 3]}).encode()}, ["7", "a", "b"]),
    "both": (lambda level: {"json": b'{"label": 1}', "cls": b"%d" % (level % 3)}, ["0", "1", "2"]),
}


@pytest.fixture(params=LABEL_FILES)
def shards(request, tmp_path):
    """A folder of shards, two to train on, with its class names in order and the label of each level."""
    label_files, class_names = LABEL_FILES[request.param]
    for number, image in enumerate(("jpg", "jpg")):
        write_shard(tmp_path / f"train-{number}.tar", range(6 * number, 6 * number + 6), label_files, image)
    write_shard(tmp_path / "validation-0.tar", range(100, 106), label_files, "jpg")
    return tmp_path, class_names


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_of_a_webdataset_are_found(shards, streaming):
    folder, class_names = shards
    data = load_image_data(str(folder), streaming=streaming)
    assert data.class_names == class_names
    assert data.validation_source == "split 'validation'" and len(data.validation) == 6
    seen = {int(decode_pixels(row["image"])[0, 0, 0]): row["label"] for row in data.train}
    assert sorted(seen) == list(range(12))
    assert all(seen[level] == seen[level + 3] for level in range(9)) and len(set(seen.values())) == 3


@pytest.mark.parametrize("image", ["jpg", "jpeg", "JPEG", "png", "webp"])
def test_images_of_a_webdataset_are_found_in_one_file_too(tmp_path, image):
    path = write_shard(tmp_path / "all.tar", range(20), lambda level: {"cls": b"%d" % (level % 2)}, image)
    data = load_image_data(str(path))
    assert (len(data.train), len(data.validation), data.class_names) == (18, 2, ["0", "1"])


def test_a_field_of_json_can_be_chosen(tmp_path):
    for split in ("train", "test"):
        fields = {"json": b'{"label": 0, "kind": {"breed": "x"}}'}, {"json": b'{"label": 1, "kind": {"breed": "y"}}'}
        write_shard(tmp_path / f"{split}.tar", range(4), lambda level, fields=fields: fields[level % 2])
    for streaming in (False, True):
        data = load_image_data(str(tmp_path), label_column="json.kind.breed", streaming=streaming)
        assert data.class_names == ["x", "y"]
    assert "json.label, json.kind.breed" in refusal(str(tmp_path), label_column="json.breed")


def test_words_in_cls_files_are_refused_with_the_remedy(tmp_path):
    write_shard(tmp_path / "train.tar", range(4), lambda level: {"cls": b"cat"})
    assert "call them .cls.txt" in refusal(str(tmp_path))


def test_names_of_classes_are_kept_in_a_stream(saved):
    data = load_image_data(saved(rows([1, 0], ["a", "b"]), test=rows([0, 1], ["a", "b"])), streaming=True)
    assert data.train.features["label"] == ClassLabel(names=["a", "b"]) == data.validation.features["label"]
    assert isinstance(data.validation, Dataset)


# --- classes of training and validation -----------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [["c", "b", "a"], ["b", "c", "a"], ["c", "a"]])
def test_classes_in_another_order_are_matched_by_name(saved, warnings, streaming, names):
    expected = [*names, names[0]]
    folder = saved(rows([0, 1, 2, 0], ["a", "b", "c"]), test=rows([names.index(name) for name in expected], names))
    data = load_image_data(folder, streaming=streaming)
    assert data.class_names == ["a", "b", "c"] == data.validation.features["label"].names
    assert names_by_level(data, data.validation) == expected
    assert names_by_level(data, data.train) == ["a", "b", "c", "a"]
    assert warnings() == ["validation numbers its classes otherwise than training: they are matched by their names"]


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_that_do_not_match_are_refused_alike(saved, streaming):
    numbers, names = rows([0, 1]), rows([0, 1], ["a", "b"])
    for train, test, words in (
        (names, rows([0, 1], ["a", "d"]), r"validation has the classes \['d'\], which training lacks: it has \['a', "),
        (names, numbers, r"validation has no class names, training has \['a', 'b'\]; give both class names, or none"),
        (numbers, names, r"validation has the classes \['a', 'b'\], training has no class names; give both class nam"),
    ):
        with pytest.raises(InputError, match=words):
            load_image_data(saved(train, test=test), streaming=streaming)


@pytest.mark.parametrize("has_names", [False, True])
def test_a_missing_label_in_a_stream_is_not_trained_on(saved, has_names):
    names = ["a", "b"] if has_names else None
    train, test = rows([0, 1, -1], names), rows([0, 1], names)
    data = load_image_data(saved(train, test=test), streaming=True)
    with pytest.raises(InputError, match="the stream has an image without a label; leave such images out of it"):
        list(data.train)
    with pytest.raises(InputError, match="split 'train' has images without a label; choose another split"):
        load_image_data(saved(train, test=test))
