"""The cut of the held-out part: as it always was where that keeps the rules, else mended; groups stay together."""

import collections

import numpy as np
import pytest
from datasets import Image, Value
from helpers.images import grey, level, rows
from helpers.refusals import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import DataArguments
from modeling_deit_distill.data.cutting import cut, groups_by_path, hold_out, relative_paths
from modeling_deit_distill.data.sources import load_image_data

few = settings(max_examples=60, deadline=None)


def labelled(labels, groups=None):
    """Rows of these class indices, in the grey levels 0, 1, 2, ..., of groups if any are given."""
    names = [f"class {index}" for index in range(max(labels) + 1)]
    return rows(list(labels), names, **({} if groups is None else {"group": (groups, Value("int64"))}))


def levels(data):
    return [level(row) for row in data.cast_column("image", Image(decode=False))]


# --- laws -------------------------------------------------------------------------------------------------------------


@st.composite
def labels_and_groups(draw):
    number = draw(st.integers(1, 60))
    labels = draw(st.lists(st.integers(0, draw(st.integers(0, 7))), min_size=number, max_size=number))
    groups = draw(st.lists(st.integers(0, draw(st.integers(0, number))), min_size=number, max_size=number))
    return np.array(labels), np.unique(groups, return_inverse=True)[1]


@few
@given(labels_and_groups(), st.floats(0.01, 0.99))
def test_each_class_is_left_to_train_on_and_no_group_is_split(drawn, fraction):
    labels, groups = drawn
    held_out = hold_out(labels, groups, fraction)
    train = np.setdiff1d(np.arange(len(labels)), held_out)
    assert set(labels[train]) == set(labels)
    assert not set(groups[train]) & set(groups[held_out])
    assert hold_out(labels, groups, fraction).tolist() == held_out.tolist()
    can_be_cut = any(len(set(groups[labels == label])) > 1 for label in labels)
    assert not len(held_out) or can_be_cut


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array), st.floats(0.01, 0.99))
def test_without_groups_each_class_holds_out_its_share(labels, fraction):
    held_out = hold_out(labels, np.arange(len(labels)), fraction)
    sizes, held = np.bincount(labels), np.bincount(labels[held_out], minlength=labels.max() + 1)
    assert (held <= np.maximum(sizes - 1, 0)).all()
    many = sizes[sizes > 1]
    assert held.sum() == min(np.ceil(many.sum() * fraction), (many - 1).sum())
    assert (held >= np.where(sizes > 1, np.minimum(np.floor(sizes * fraction), sizes - 1), 0)).all()


@settings(max_examples=20, deadline=None)
@given(labels_and_groups(), st.floats(0.05, 0.9), st.booleans())
def test_the_parts_are_the_whole(drawn, fraction, with_groups):
    labels, groups = drawn
    data = labelled(labels.tolist(), groups.tolist() if with_groups else None)
    try:
        train, held_out, words = cut(data, fraction, "group" if with_groups else None)
    except InputError as error:
        assert "held out" in str(error) or "hold one out" in str(error)
        return
    assert sorted(levels(train) + levels(held_out)) == list(range(len(labels)))
    assert (words is not None) == with_groups
    assert train.column_names == held_out.column_names == ["image", "label"]
    again = cut(data, fraction, "group" if with_groups else None)
    assert (levels(again[0]), levels(again[1])) == (levels(train), levels(held_out))


@pytest.mark.slow
@few
@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.floats(0.1, 0.5), st.integers(0, 9))
def test_a_cut_that_keeps_the_rules_stays_as_it_was(sizes, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    data = labelled(labels.tolist())
    train, held_out, _ = cut(data, fraction)
    try:
        earlier = data.train_test_split(test_size=fraction, seed=0, stratify_by_column="label")
    except ValueError:
        return
    if set(earlier["train"]["label"]) == set(labels.tolist()):
        assert levels(train) == levels(earlier["train"]) and levels(held_out) == levels(earlier["test"])


# --- small classes ----------------------------------------------------------------------------------------------------


def test_a_class_of_one_image_keeps_it():
    labels = [0] * 20 + [1] * 20 + [2]
    train, held_out, _ = cut(labelled(labels), 0.1)
    assert collections.Counter(held_out["label"][:]) == {0: 2, 1: 2}  # a tenth of the 40 that can be cut
    assert collections.Counter(train["label"][:]) == {0: 18, 1: 18, 2: 1}


def test_twenty_two_classes_of_which_one_has_one_image():
    labels = [label for label in range(21) for _ in range(5)] + [21]
    train, held_out, _ = cut(labelled(labels), 0.1)
    assert set(train["label"][:]) == set(range(22))
    # 0.5 images of each of 21 classes are 10.5: eleven of them hold out one
    assert len(held_out) == 11 and max(collections.Counter(held_out["label"][:]).values()) == 1


def test_a_large_fraction_leaves_an_image_of_each_class():
    train, held_out, _ = cut(labelled([0, 0, 1, 1] + [2] * 16), 0.9)
    assert collections.Counter(train["label"][:])[0] == collections.Counter(train["label"][:])[1] == 1
    assert len(train) == 3 and len(held_out) == 17  # 18 are wanted


def test_classes_of_one_image_each_cannot_be_cut(saved):
    message = refusal(saved(rows(list(range(20)), [f"class {index}" for index in range(20)])))
    assert "each class has one image only" in message and "20 images" in message and "--validation_split" in message


def test_plain_labels_are_cut_like_named_ones(saved):
    named = load_image_data(saved(rows([0, 1, 1] * 10, ["a", "b"])), validation_fraction=0.2)
    plain = load_image_data(saved(rows(["a", "b", "b"] * 10)), validation_fraction=0.2)
    assert collections.Counter(plain.validation["label"][:]) == {0: 2, 1: 4}
    assert [level(row) for row in plain.validation] == [level(row) for row in named.validation]


# --- groups -----------------------------------------------------------------------------------------------------------


def test_bursts_stay_together():
    groups = [index // 5 for index in range(40)]  # eight bursts of five, four of each class
    data = labelled([0] * 20 + [1] * 20, groups)
    train, held_out, words = cut(data, 0.25, "group")
    assert collections.Counter(held_out["label"][:]) == {0: 5, 1: 5}  # one burst of each
    assert len({level // 5 for level in levels(held_out)}) == 2
    assert not {level // 5 for level in levels(train)} & {level // 5 for level in levels(held_out)}
    assert words == "8 by 'group', each in training or held out as a whole"


def test_a_class_whose_groups_are_larger_than_its_share_holds_out_its_smallest():
    groups = np.array([0] * 8 + [1] * 7 + [2] * 5 + list(range(3, 23)))  # class 0 in 8, 7 and 5; class 1 one by one
    labels = np.array([0] * 20 + [1] * 20)
    assert [row for row in hold_out(labels, groups, 0.1) if row < 20] == [15, 16, 17, 18, 19]
    assert sum(hold_out(labels, groups, 0.1) >= 20) == 2


def test_a_class_of_one_group_stays_in_training():
    data = labelled([0] * 10 + [1] * 10, [0] * 10 + list(range(1, 11)))
    train, held_out, _ = cut(data, 0.2, "group")
    assert collections.Counter(held_out["label"][:]) == {1: 2}
    assert len(train) == 18


def test_a_group_of_several_classes_is_not_split_either():
    # each object was photographed in both classes
    labels, groups = np.tile([0, 1], 10), np.repeat(np.arange(10), 2)
    held_out = hold_out(labels, groups, 0.2)
    assert np.bincount(labels[held_out]).tolist() == [2, 2] and len(set(groups[held_out])) == 2


@pytest.fixture
def bursts(tmp_path):
    """Three bursts of four photos of each of two classes, and one photo of another name."""
    for kind in ("cat", "dog"):
        (tmp_path / "burst_7" / kind).mkdir(parents=True)
        for number in range(12):
            path = tmp_path / "burst_7" / kind / f"{kind}{number // 4}_{number % 4}.png"
            grey(number + 100 * (kind == "dog"), size=(6, 5)).save(path)
    grey(50).save(tmp_path / "burst_7" / "cat" / "portrait.png")
    return str(tmp_path / "burst_7")


@pytest.mark.parametrize("expression", [r"(\w+)_\d", r"\w+(?=_\d)", r"(\w+/\w+)_"])
def test_groups_by_the_path(bursts, expression):
    data = load_image_data(train_dir=bursts, validation_fraction=0.3, group_by=expression)
    groups = [sorted({level(row) // 4 for row in part}) for part in (data.train, data.validation)]
    assert not set(groups[0]) & set(groups[1])
    assert collections.Counter(data.validation["label"][:])[1] == 4
    assert len(data.train) + len(data.validation) == 25
    # the folder's own name, which the expression would match, is no part of the path
    assert (
        data.groups
        == f"7 by '{expression}', each in training or held out as a whole; 1 of 25 images do not match: each is a group"
    )


def test_groups_by_a_column(saved):
    names = ["a", None, "a", "b", "b", None] * 4
    path = saved(rows([0, 1] * 12, ["x", "y"], burst=(names, Value("string"))))
    data = load_image_data(path, validation_fraction=0.2, group_by="burst")
    held_out = {names[level(row)] for row in data.validation}
    # x is 8 of "a" and 4 of "b", both more than its share of 3: of equals the first one
    assert held_out == {"a", None}
    assert (
        data.groups
        == "10 by 'burst', each in training or held out as a whole; 8 of 24 images have no value: each is a group"
    )
    assert set(data.train.column_names) == {"image", "label"}


def test_groups_that_cannot_be(bursts, saved):
    assert "matches none of the images' paths: the first path is 'cat/cat0_0.png'" in refusal(
        train_dir=bursts, group_by="owl"
    )
    message = refusal(train_dir=bursts, group_by="png")
    assert "makes one group of all 25 images" in message and "--validation_dir" in message
    message = refusal(train_dir=bursts, group_by="cat/|dog/")
    assert "each class has one group of 'cat/|dog/' only" in message and "25 images" in message
    assert "no column and no regular expression" in refusal(train_dir=bursts, group_by="(")
    message = refusal(train_dir=bursts, group_by=r"object(\d+)")
    assert r"group_by 'object(\d+)' is no column" in message and message.endswith("; correct the expression")
    assert "images have no path; name a column" in refusal(saved(rows([0, 1] * 3, ["a", "b"])), group_by="x")
    assert "choose one of words or numbers" in refusal(saved(rows([0, 1] * 3, ["a", "b"])), group_by="label")
    path = saved(rows([0, 1] * 3, ["a", "b"]), test=rows([0, 1], ["a", "b"]))
    assert "has split 'test'; leave it out" in refusal(path, group_by="x")


@pytest.mark.parametrize("other", [{"validation_split": "test"}, {"streaming": True}])
def test_groups_where_nothing_is_cut(other):
    with pytest.raises(InputError, match=f"group_by .* with {next(iter(other))} nothing is cut"):
        DataArguments(dataset_name="digits", group_by="x", **other)


def test_groups_by_path_by_hand():
    paths = ["a/img1_1.jpg", "a/img1_2.jpg", None, "b/other.jpg"]
    assert groups_by_path(paths, r"(img\d)_") == (["img1", "img1", None, None], 2)
    assert groups_by_path(paths, r"img\d_|other") == (["img1_", "img1_", None, "other"], 1)


def test_paths_below_the_folder_they_share(bursts):
    data = load_image_data(train_dir=bursts)
    folder, paths = relative_paths(data.train)
    assert folder == bursts
    assert paths == [row["image"]["path"].removeprefix(bursts + "/") for row in data.train]
    assert relative_paths(data.train.select([0])) == (bursts + "/" + paths[0].split("/")[0], [paths[0].split("/")[1]])
