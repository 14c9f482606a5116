"""Stores of several teachers combined into one: the majority of labels, the mean of probabilities."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import grey
from helpers.labelling import content, forget
from helpers.stores import SOFT, fingerprint, make
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modeling_deit_distill import InputError
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.teachers import combining
from modeling_deit_distill.teachers.combining import combine, majority
from modeling_deit_distill.teachers.command_line import main
from modeling_deit_distill.teachers.ensemble import Ensemble
from modeling_deit_distill.teachers.entries import decode_top_k
from modeling_deit_distill.teachers.labelling import ask_about_validation, decisions
from modeling_deit_distill.teachers.store import TeacherStore, create_store

FEW = {"num_views": 4, "num_classes": 3}


def labelled(folder, labels, **changes) -> TeacherStore:
    """A store of these labels about the first views of an epoch."""
    store = make(folder, **{**FEW, **changes})
    store.write(0, np.arange(len(labels)), np.array(labels, dtype=store.dtype) + 1)
    return store


def with_logits(folder, probabilities, **changes) -> TeacherStore:
    """A store of soft answers, (views, classes)."""
    store = make(folder, **{**FEW, **SOFT, "temperature": 1.0, **changes})
    store.write(0, np.arange(len(probabilities)), store.encode(torch.tensor(probabilities).log()))
    return store


def combined(stores, folder) -> TeacherStore:
    list(combine(stores, folder))
    return TeacherStore(folder)


def probabilities_of(store: TeacherStore) -> np.ndarray:
    entries, known = store.read(0, np.arange(store.num_views))
    agreed = store.fingerprint
    return decode_top_k(entries[known], agreed["num_classes"], agreed["temperature"], "cpu").softmax(-1).numpy()


# ---- the rules ----


def test_the_majority_decides_and_the_first_of_those_who_tie():
    labels = [[0, 0, 2, 3], [1, 1, 0, 1], [1, 2, 1, 1], [0, 2, 0, 2], [2, 1, 0, 3]]
    # 0 twice and 1 twice: the first says 0. Then 1 and 2 twice each, and 1 is said first. Then 0; then 3 before 1.
    assert majority(np.array(labels)).tolist() == [0, 1, 0, 3]
    assert majority(np.array([[2, 1], [0, 1]])).tolist() == [2, 1]  # of two always the first


@settings(deadline=None)
@given(arrays.arrays(np.int16, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.integers(0, 3)))
def test_nobody_is_outvoted_who_has_the_most_votes(labels):
    for column, decided in zip(labels.T.tolist(), majority(labels).tolist(), strict=True):
        assert Counter(column).most_common(1)[0] == (decided, column.count(decided))


def test_labels_are_combined_by_the_majority(tmp_path):
    stores = [labelled(tmp_path / str(number), said) for number, said in enumerate(([0, 1, 2], [1, 1, 0], [1, 2, 1]))]
    store = combined(stores, tmp_path / "all")
    assert content(store).tolist() == [2, 2, 3, 0]  # counted from one; nobody knows the last view
    assert store.fingerprint["combined"] == "majority"


def test_soft_answers_are_combined_by_the_mean_of_their_probabilities(tmp_path):
    first = with_logits(tmp_path / "a", [[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
    second = with_logits(tmp_path / "b", [[0.1, 0.6, 0.3], [0.1, 0.1, 0.8]])
    store = combined([first, second], tmp_path / "all")
    np.testing.assert_allclose(probabilities_of(store), [[0.4, 0.4, 0.2], [0.3, 0.175, 0.525]], atol=1e-3)
    assert (store.fingerprint["combined"], store.fingerprint["k"]) == ("mean probability", 3)


def test_what_is_outside_the_top_k_is_spread_evenly_before_the_mean(tmp_path):
    five = {"num_classes": 5, "k": 2}
    first = with_logits(tmp_path / "a", [[0.5, 0.2, 0.15, 0.1, 0.05]], **five)  # 0.3 is left: 0.1 for each of three
    second = with_logits(tmp_path / "b", [[0.1, 0.1, 0.6, 0.1, 0.1]], **{**five, "k": 1})  # 0.4 is left: 0.1 for each
    store = combined([first, second], tmp_path / "all")
    # The mean is (0.3, 0.15, 0.35, 0.1, 0.1), of which the two highest are kept, and 0.35 is left for three.
    assert store.fingerprint["k"] == 2
    np.testing.assert_allclose(probabilities_of(store), [[0.3, 0.35 / 3, 0.35, 0.35 / 3, 0.35 / 3]], atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1.0, 3.0]), st.integers(1, 3))
def test_with_all_classes_it_is_the_ensemble(tmp_path_factory, temperature, number):
    folder, all_ = tmp_path_factory.mktemp("stores"), {"k": 10, "temperature": temperature, "distillation_type": "soft"}
    stores, logits = (
        [],
        [torch.randn(8, 10, generator=torch.Generator().manual_seed(seed)) for seed in range(number + 1)],
    )
    for place, each in enumerate(logits):
        store = make(folder / str(place), num_views=8, **all_)
        store.write(0, np.arange(8), store.encode(each))
        stores.append(store)
    expected = torch.stack(logits).softmax(-1).mean(0)
    np.testing.assert_allclose(probabilities_of(combined(stores, folder / "all")), expected, rtol=1e-2, atol=1e-4)


# ---- the store ----


def test_the_same_call_goes_on_after_a_kill(tmp_path):
    stores = [labelled(tmp_path / name, said) for name, said in (("a", [0, 1, 2]), ("b", [1, 1, 1]))]
    for store in stores:
        store.write(1, np.arange(2), np.array([1, 3], dtype=store.dtype))
    next(combine(stores, tmp_path / "all"))
    assert TeacherStore(tmp_path / "all").epochs() == [0]
    assert list(combine(stores, tmp_path / "all")) == [(0, 3), (1, 2)]
    assert content(TeacherStore(tmp_path / "all"), 1).tolist() == [1, 3, 0, 0]


def test_each_store_is_read_once_to_compare_it_and_once_to_combine_it(tmp_path, monkeypatch):
    stores = [labelled(tmp_path / name, [0, 1, 2, 0]) for name in "abc"]
    for store in stores:
        store.write(1, np.arange(4), np.array([1, 2, 3, 1], dtype=store.dtype))
    read, seen = TeacherStore._read, Counter()

    def counted(self, epoch, positions):
        seen[self.directory.name, epoch] += len(positions)
        return read(self, epoch, positions)

    monkeypatch.setattr(TeacherStore, "_read", counted)
    assert list(combine(stores, tmp_path / "all")) == [(0, 4), (1, 4)]
    assert seen == {(name, epoch): 8 for name in "abc" for epoch in (0, 1)}


def test_validation_answers_are_combined_by_the_majority(tmp_path):
    stores, labels = [labelled(tmp_path / name, [0]) for name in "abc"], np.array([0, 1, 2])
    for store, said in zip(stores, ([0, 1, 1], [0, 0, 2], [1, 1, 2]), strict=True):
        store.write_validation("16 pixels", float(np.mean(said == labels)), np.array(said), labels)
    kept = combined(stores, tmp_path / "all").validation()
    assert (kept["answers"], kept["accuracy"], kept["members"]) == ([0, 1, 2], 1.0, [2 / 3] * 3)
    stores[1].write_validation("24 pixels", 0.5, np.array([0, 1]), labels[:2])
    assert combined(stores, tmp_path / "others").validation() is None


def with_validation(store, probabilities, labels, **changes) -> TeacherStore:
    """The store, with soft answers (images, classes) about validation images."""
    entries, labels = store.encode(torch.tensor(probabilities).log()), np.array(labels)
    said = decisions(entries)
    kept = {"entries": entries, **changes}
    store.write_validation("16 pixels", float(np.mean(said == labels)), said, labels, **kept)
    return store


@pytest.fixture
def two_soft(tmp_path):
    return [with_logits(tmp_path / name, [[0.7, 0.2, 0.1]]) for name in "ab"]


def test_soft_validation_answers_are_combined_by_the_mean_of_their_probabilities(two_soft, tmp_path, monkeypatch):
    monkeypatch.setattr(combining, "LOGITS_AT_ONCE", 6)  # two images at once
    # The means are (0.3, 0.6, 0.1), (0.5, 0.155, 0.345), (0.2, 0.35, 0.45).
    with_validation(two_soft[0], [[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.6, 0.3]], [1, 0, 2])  # none is right
    with_validation(two_soft[1], [[0.1, 0.8, 0.1], [0.7, 0.01, 0.29], [0.3, 0.1, 0.6]], [1, 0, 2])
    store = combined(two_soft, tmp_path / "all")
    kept = store.validation()
    assert (kept["answers"], kept["accuracy"], kept["members"]) == ([1, 0, 2], 1.0, [0.0, 1.0])
    third = with_validation(with_logits(tmp_path / "c", [[0.7, 0.2, 0.1]]), [[1 / 3] * 3] * 3, [1, 0, 2])
    assert combined([store, third], tmp_path / "more").validation()["answers"] == [1, 0, 2]  # combined again


@pytest.mark.parametrize("lacks", [[0], [1], [0, 1]])
def test_decisions_alone_do_not_give_those_of_the_mean(two_soft, tmp_path, caplog, lacks):
    said = [[[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], [[0.1, 0.6, 0.3], [0.6, 0.3, 0.1]]]
    for place, store in enumerate(two_soft):
        with_validation(store, said[place], [0, 0])
    assert combined(two_soft, tmp_path / "all").validation()["accuracy"] == 0.5
    for place in lacks:
        with_validation(two_soft[place], said[place], [0, 0], entries=None)
    assert combined(two_soft, tmp_path / "all").validation() is None  # what was there is no more
    names = " and ".join(str(two_soft[place].directory) for place in lacks)
    assert (
        f"{names} have decisions alone about the validation images, which do not give those of the mean" in caplog.text
    )
    assert "the accuracy of the teachers together is left out" in caplog.text


def test_where_all_decide_alike_so_does_the_mean(two_soft, tmp_path):
    for store in two_soft:
        with_validation(store, [[0.6, 0.3, 0.1], [0.1, 0.6, 0.3]], [0, 2], entries=None)
    kept = combined(two_soft, tmp_path / "all").validation()
    assert (kept["answers"], kept["accuracy"]) == ([0, 1], 0.5)


def test_teachers_are_listed_and_one_precision_is_that_of_all(tmp_path):
    fields = [{"teacher_weights": name, "teacher_mean": [0.5] * 3, "teacher_precision": "fp32"} for name in "ab"]
    stores = [labelled(tmp_path / each["teacher_weights"], [0], **each) for each in fields]
    agreed = combined(stores, tmp_path / "all").fingerprint
    assert agreed["teacher_weights"] == ["a", "b"] and agreed["teacher_mean"] == [[0.5] * 3] * 2
    assert agreed["teacher_precision"] == "fp32" and agreed["teacher_training"] is None


DIFFERENCES = [
    ({"data_seed": 7}, "a holds answers for data_seed 0, .*b for 7; only stores about the same views"),
    ({"random_crop_scale": [0.3, 1.0]}, r"random_crop_scale \[0.08, 1.0\], .* for \[0.3, 1.0\]"),
    ({"dataset": "ffff"}, 'dataset "d161", .* for "ffff"'),
    ({"num_views": 5}, "num_views 4, .* for 5"),
    ({**SOFT, "temperature": 1.0}, 'distillation_type "hard", .* for "soft"'),
    ({"view_of_a_later_version": 1}, "view_of_a_later_version null, .* for 1"),
]


@pytest.mark.parametrize(("changes", "message"), DIFFERENCES)
def test_stores_about_other_views_are_refused_with_the_field_and_both_values(tmp_path, changes, message):
    first, other = labelled(tmp_path / "a", [0]), make(tmp_path / "b", **{**FEW, **changes})
    with pytest.raises(InputError, match=message) as caught:
        list(combine([first, other], tmp_path / "all"))
    assert "\n" not in str(caught.value) and not (tmp_path / "all").exists()


def test_other_epochs_and_other_views_of_an_epoch_are_refused(tmp_path):
    first, other = labelled(tmp_path / "a", [0, 1]), labelled(tmp_path / "b", [0, 1])
    for epoch in range(40, 43):
        other.write(epoch, np.arange(2), np.array([1, 1], dtype=first.dtype))
    with pytest.raises(InputError, match='epochs "0", .* for "0, 40-42"; only'):
        list(combine([first, other], tmp_path / "all"))
    for epoch in range(40, 43):
        other.path(epoch).unlink()
    first.write(3, np.arange(2), np.array([1, 1], dtype=first.dtype))
    with pytest.raises(InputError, match='epochs "0, 3", .* for "0"; only'):
        list(combine([first, other], tmp_path / "all"))
    other.write(3, np.arange(2), np.array([1, 1], dtype=first.dtype))
    forget(other, [1], epoch=3)
    with pytest.raises(InputError, match="of epoch 3 .*a knows 2 views and .*b 1, not the same; fill both alike"):
        list(combine([first, other], tmp_path / "all"))
    path = other.path(0)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="epoch"):
        list(combine([first, TeacherStore(tmp_path / "b")], tmp_path / "all"))
    assert not (tmp_path / "all").exists()


def test_stores_without_answers_are_refused_and_nothing_is_made(tmp_path):
    with pytest.raises(InputError, match="a holds no answers yet, so there is nothing to combine; fill it first"):
        list(combine([make(tmp_path / name, **FEW) for name in "ab"], tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_what_is_lost_between_comparison_and_reading_is_named(tmp_path, monkeypatch):
    stores = [labelled(tmp_path / name, [0, 1]) for name in "ab"]
    monkeypatch.setattr(stores[1], "read", lambda epoch, at: (np.zeros(len(at)), np.array([True, False])))
    with pytest.raises(InputError, match=r"1 views of epoch 0 cannot be read \(.*b changed meanwhile\); run it again"):
        list(combine(stores, tmp_path / "c"))


def test_one_store_the_same_twice_and_a_folder_with_other_answers_are_refused(tmp_path):
    first, other = labelled(tmp_path / "a", [0]), labelled(tmp_path / "b", [1])
    for stores, message in (([first], "one store; name two"), ([first, other, first], "a is named twice")):
        with pytest.raises(InputError, match=message):
            list(combine(stores, tmp_path / "all"))
    with pytest.raises(InputError, match="b holds another store, which differs in .*combined.*; choose a new folder"):
        list(combine([first, other], tmp_path / "b"))
    assert content(other).tolist() == [2, 0, 0, 0]


# ---- stores of an earlier version ----


@pytest.fixture
def photos(tmp_path):
    """Three images of each of two classes."""
    for number in range(6):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey(10 * number).save(path)
    return tmp_path / "photos"


def about(photos, folder, labels, is_earlier: bool) -> str:
    """A store of labels about photos, as this version or as an earlier one writes it; its folder."""
    dataset = load_image_data(train_dir=str(photos)).fingerprint(EARLIER if is_earlier else None)
    agreed, words = fingerprint(**FEW, dataset=dataset), {"teacher": folder.name, "data": {"train_dir": str(photos)}}
    if is_earlier:
        agreed = {name: value for name, value in agreed.items() if name != "scaled_decoding"} | {"format": 1}
        folder.mkdir()
        (folder / "store.json").write_text(json.dumps({"fingerprint": agreed, "about": words}))
    store = TeacherStore(folder) if is_earlier else create_store(folder, agreed, words)
    store.write(0, np.arange(len(labels)), np.array(labels, dtype=store.dtype) + 1)
    return str(folder)


EARLIER = "0" * 16  # as long as their hashes of the data


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("is_upgraded", [False, True])
def test_a_store_of_an_earlier_version_goes_with_others_of_the_same_images(photos, tmp_path, order, is_upgraded):
    earlier, other = about(photos, tmp_path / "a", [0, 1, 2], True), about(photos, tmp_path / "b", [1, 1, 1], False)
    if is_upgraded:
        assert main(["upgrade", earlier]) == 0
    assert main(["combine", *[earlier, other][::order], "--output", str(tmp_path / "all")]) == 0
    store = TeacherStore(tmp_path / "all")
    assert content(store).tolist() == [[1, 2, 3, 0], [2, 2, 2, 0]][order == -1]
    assert store.fingerprint["dataset"] == load_image_data(train_dir=str(photos)).fingerprint()
    assert TeacherStore(earlier).fingerprint["dataset"] != store.fingerprint["dataset"]  # it is left as it is


def test_the_images_tell_whether_an_earlier_store_is_about_the_same(photos, tmp_path):
    earlier, other = about(photos, tmp_path / "a", [0], True), about(photos, tmp_path / "b", [1], False)
    words, moved = ["combine", earlier, other, "--output", str(tmp_path / "all")], str(photos) + " moved"
    photos.rename(moved)
    with pytest.raises(
        InputError,
        match=r"a is of an earlier version and knows 256 of its images, .*b knows all, .* cannot be read: train_dir "
        r"'.*photos' .*; if they were moved, say where they are \(--train_dir",
    ):
        main(words)
    assert main([*words, "--train_dir", moved]) == 0
    shutil.rmtree(tmp_path / "all")
    grey(99).save(Path(moved, "a", "2.png"))
    with pytest.raises(
        InputError,
        match='a holds answers for dataset "[0-9a-f]{16}", and .*photos moved.* is now "[0-9a-f]{16}"; say where the',
    ):
        main([*words, "--train_dir", moved])
    assert not (tmp_path / "all").exists()


def test_earlier_stores_alone_need_no_images(photos, tmp_path):
    folders = [about(photos, tmp_path / name, [0], True) for name in "ab"]
    shutil.rmtree(photos)
    assert main(["combine", *folders, "--output", str(tmp_path / "all")]) == 0


def test_where_nobody_says_where_the_images_are_the_arguments_are_named(photos, tmp_path):
    earlier, other = about(photos, tmp_path / "a", [0], True), labelled(tmp_path / "b", [0])
    with pytest.raises(InputError, match="b/store.json does not say where its images are; give --train_dir, --tr"):
        main(["combine", earlier, str(other.directory), "--output", str(tmp_path / "all")])


# ---- runs ----


@pytest.fixture
def filled_by(run_of, tmp_path):
    """`filled_by(name)`: a store of one teacher's answers about an epoch."""

    def fill(name: str) -> str:
        folder = str(tmp_path / f"answers-{name}")
        run = run_of("--teacher_store", folder, "--num_train_epochs", "1", teacher=name)
        teacher, store = run.prepare()
        run.fill(store, teacher)
        return folder

    return fill


def test_a_run_uses_what_was_combined_and_loads_no_teacher(filled_by, run_of, teachers, tmp_path, capsys):
    folders = [filled_by(name) for name in ("mine", "other", "reversed")]
    assert main(["combine", *folders, "--output", str(tmp_path / "all")]) == 0
    assert "24 views, 1 epoch(s), the majority of 3 stores" in capsys.readouterr().out
    names = [teachers[name] for name in ("mine", "other", "reversed")]
    alone = run_of("--teacher_store", str(tmp_path / "all"), "--num_train_epochs", "1", teacher=None).plan()
    assert alone.teacher() is None and alone.teacher_names == names
    words = ("--teacher_store", str(tmp_path / "all"), "--teacher_name_or_path")
    assert run_of(*words, *names, "--num_train_epochs", "1", teacher=None).plan().teacher() is None
    with pytest.raises(
        InputError, match=r"weights of teacher 1 .*; name the teacher that the store was made with \(.*mine "
    ):
        run_of(*words, names[1], names[0], names[2], teacher=None).find()
    for named in (words[:2], (*words, *names)):  # nobody can add to a majority
        longer = run_of(*named, "--num_train_epochs", "2", teacher=None).plan()
        with pytest.raises(
            InputError, match="lacks 24, the first of epoch 1, and no teacher gives the majority of oth"
        ):
            longer.live_teacher()
    with pytest.raises(InputError, match="was combined from other stores, .*; verify those"):
        main(["verify", str(tmp_path / "all")])
    assert main(["info", str(tmp_path / "all")]) == 0
    assert f"{names[0]} {names[1]} {names[2]}" in capsys.readouterr().out


def test_of_two_stores_of_labels_the_first_decides_which_is_said(filled_by, tmp_path, capsys):
    folders = [filled_by(name) for name in ("mine", "other")]
    main(["combine", *folders, "--output", str(tmp_path / "all")])
    assert "answers-mine decides wherever they differ: combine three or more" in capsys.readouterr().out
    assert content(TeacherStore(tmp_path / "all")).tolist() == content(TeacherStore(folders[0])).tolist()


def test_the_accuracy_of_soft_stores_together_is_that_of_the_ensemble(run_of, tmp_path):
    members, stores = [], []
    for name in ("mine", "other"):
        folder = str(tmp_path / name)
        words = ("--teacher_store", folder, "--distillation_type", "soft", "--num_train_epochs", "1")
        run = run_of(*words, teacher=name)
        teacher, store = run.prepare()
        run.fill(store, teacher)
        ask_about_validation(store, teacher, run.plan().held_out, "16 pixels", 8)
        members.append(teacher)
        stores.append(store)
    together = make(tmp_path / "live", num_classes=10, **SOFT)
    accuracy = ask_about_validation(together, Ensemble(members), run.plan().held_out, "16 pixels", 8)
    kept = combined(stores, tmp_path / "all").validation()
    assert kept["accuracy"] == accuracy and kept["answers"] == together.validation()["answers"]
    assert kept["members"] == [store.validation()["accuracy"] for store in stores]
