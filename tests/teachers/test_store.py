"""The store of a teacher's answers: what an entry says, and that nothing is lost or made up whatever befalls a file."""

import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from helpers.stores import (
    DEADLINE,
    FORK,
    LAYOUTS,
    SOFT,
    answers,
    change,
    everywhere,
    fingerprint,
    make,
    run_beside_each_other,
    whole,
)

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.teachers.entry_files import entries_of_text
from modeling_deit_distill.teachers.store import (
    TeacherStore,
    create_store,
    described,
    is_store,
)

# ---- read and write ----


@LAYOUTS
def test_what_is_written_is_read_at_any_position_in_any_order(tmp_path, layout):
    store = make(tmp_path, **layout)
    expected = answers(store)
    positions = np.random.default_rng(0).permutation(100)
    store.write(0, positions[:60], expected[positions[:60]])
    for reader in (store, TeacherStore(tmp_path)):
        for order in (everywhere(store), positions, everywhere(store)[::-1], np.array([99, 0, 0, 50])):
            entries, known = reader.read(0, order)
            assert known.tolist() == [position in positions[:60] for position in order]
            assert (entries[known] == expected[order[known]]).all()
            assert entries[~known].tobytes() == bytes(int((~known).sum()) * store.dtype.itemsize)


@LAYOUTS
def test_what_is_written_later_is_read_at_once_by_who_has_read_before(tmp_path, layout):
    store, other = make(tmp_path, **layout), TeacherStore(tmp_path)
    expected = answers(store)
    for begin in range(0, 100, 20):
        positions = np.arange(begin, begin + 20)
        for reader in (store, other):
            assert reader.read(2, everywhere(store))[1].sum() == reader.count(2) == begin
        store.write(2, positions, expected[positions])
    for reader in (store, other):
        entries, known = reader.read(2, everywhere(store))
        assert known.all() and (entries == expected).all()


@LAYOUTS
def test_neighbours_and_other_epochs_stay_as_they_are(tmp_path, layout):
    store = make(tmp_path, **layout)
    expected = answers(store)
    store.write(0, everywhere(store), expected)
    store.write(1, np.array([10, 12]), expected[[10, 12]])
    before = store.path(0).read_bytes()
    store.write(1, np.array([11]), expected[[11]])
    store.write(0, np.array([], dtype=np.int64), expected[:0])
    assert store.path(0).read_bytes() == before == whole(store, expected)
    some = np.zeros(100, store.dtype)
    some[10:13] = expected[10:13]
    assert store.path(1).read_bytes() == whole(store, some, epoch=1)
    store.write(0, np.array([4]), expected[[5]])
    expected[4] = expected[5]
    assert store.path(0).read_bytes() == whole(store, expected)


@LAYOUTS
def test_an_epoch_that_nobody_asked_about_is_all_holes(tmp_path, layout):
    store = make(tmp_path, **layout)
    entries, known = store.read(7, np.array([3, 99]))
    assert entries.dtype == store.dtype and len(entries) == 2
    assert known.dtype == bool and not known.any()
    assert store.count(7) == store.count(7, 10) == 0
    assert store.epochs() == []
    assert not list(tmp_path.glob("*.bin"))  # reading makes none


def test_count_holds_and_epochs(tmp_path):
    store = make(tmp_path)
    expected = answers(store)
    for epoch, known in ((0, range(100)), (11, range(40)), (3, [0, 1, 39, 41])):
        positions = np.array(known)
        store.write(epoch, positions, expected[positions])
    assert store.epochs() == [0, 3, 11]
    assert [store.count(epoch) for epoch in (0, 3, 11, 12)] == [100, 4, 40, 0]
    assert [store.count(3, first) for first in (0, 1, 39, 40, 41, 42)] == [0, 1, 2, 3, 3, 4]
    assert store.holds({}) and store.holds({0: 100}) and store.holds({0: 96, 11: 40, 3: 2})
    assert not store.holds({0: 100, 11: 41})
    assert not store.holds({3: 3})
    assert not store.holds({12: 1})
    assert not store.holds({0: 101})


def test_the_last_of_two_answers_about_a_position_is_kept(tmp_path):
    store = make(tmp_path)
    store.write(0, np.array([5, 4, 5]), np.array([1, 2, 3], dtype=store.dtype))
    assert store.read(0, np.array([4, 5]))[0].tolist() == [2, 3]


def test_a_position_beyond_the_store_is_refused(tmp_path):
    store = make(tmp_path)
    for position in (100, 12_345):
        positions = np.array([0, position])
        with pytest.raises(InputError, match=rf"room for 100 views.*position {position:,}; choose another"):
            store.read(0, positions)
        with pytest.raises(InputError, match=rf"room for 100 views.*position {position:,}; choose another"):
            store.write(0, positions, answers(store)[:2])
    assert store.count(0) == 0
    store.write(0, np.array([99]), answers(store)[:1])
    assert store.read(0, np.array([99]))[1].all()


# ---- damage ----


def test_an_empty_file_is_one_that_is_being_made(tmp_path):
    store = make(tmp_path)
    store.path(0).touch()
    assert store.count(0) == 0 and not store.read(0, np.arange(3))[1].any()
    store.write(0, np.arange(100), answers(store))
    assert store.path(0).read_bytes() == whole(store, answers(store))


def test_a_folder_without_a_description_is_no_store(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert not is_store(folder)
        with pytest.raises(InputError, match=rf"{re.escape(str(folder))}.*is no store.*store\.json"):
            TeacherStore(folder)
    assert not is_store(None)
    make(tmp_path)
    assert is_store(tmp_path) and is_store(str(tmp_path))


def without(field: str) -> str:
    kept = {"format": 2, **fingerprint()}
    del kept[field]
    return json.dumps(described(kept, {}, "0" * 16))


def test_a_damaged_description_is_an_input_error(tmp_path):
    make(tmp_path)
    for text in (
        "",
        '{"fingerprint": {',
        "\udcff",
        "{}",
        "[]",
        "null",
        '{"fingerprint": {}}',
        '{"about": {}}',
        '{"fingerprint": [], "about": {}}',
        without("num_views"),
        without("num_classes"),
        without("distillation_type"),
        without("format"),
    ):
        (tmp_path / "store.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match=re.escape(str(tmp_path))):
            TeacherStore(tmp_path)


def test_a_later_format_is_refused(tmp_path):
    make(tmp_path)
    change(tmp_path / "store.json", fingerprint={"format": 3})
    with pytest.raises(InputError, match="format 3.*2; update the library"):
        TeacherStore(tmp_path)


# ---- making one ----


def test_a_store_is_made_in_a_new_folder_and_found_again(tmp_path):
    folder = tmp_path / "deep" / "answers"
    store = make(folder)
    assert [path.name for path in folder.iterdir()] == ["store.json"]
    before = (folder / "store.json").read_bytes()
    again = make(folder)
    assert (folder / "store.json").read_bytes() == before
    assert again.fingerprint == store.fingerprint == TeacherStore(folder).fingerprint
    assert again.about["teacher"] == "mine"
    assert (again.num_views, again.dtype) == (100, np.dtype("<i2"))


def test_a_store_is_made_in_an_empty_folder(tmp_path):
    make(tmp_path)
    assert is_store(tmp_path)


def test_what_an_interrupted_making_left_is_no_hindrance(tmp_path):
    (tmp_path / "store.json.4711.partial").write_text('{"finger')
    assert make(tmp_path).num_views == 100


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}.*is no store; choose a new folder"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_in_the_place_of_a_folder_is_an_input_error(tmp_path):
    (tmp_path / "answers").write_text("mine")
    with pytest.raises(InputError, match="answers"):
        make(tmp_path / "answers")
    assert (tmp_path / "answers").read_text() == "mine"


def test_another_fingerprint_is_refused_and_nothing_changed(tmp_path):
    store = make(tmp_path)
    store.write(0, np.arange(100), answers(store))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"data_seed 0, this run has 1; pass --data_seed 0"):
        make(tmp_path, data_seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_how_many_classes_a_new_store_keeps(tmp_path):
    for number, (num_classes, k, kept) in enumerate(
        [(1000, None, 10), (7, None, 7), (1000, 3, 3), (7, 50, 7), (10, 10, 10)]
    ):
        store = make(tmp_path / str(number), distillation_type="soft", num_classes=num_classes, k=k)
        assert store.fingerprint["k"] == kept
        assert store.dtype["classes"].shape == (kept,)


def test_a_run_without_a_k_takes_the_stores(tmp_path):
    store = make(tmp_path, distillation_type="soft", k=3)
    store.check(fingerprint(distillation_type="soft", k=None))
    with pytest.raises(InputError, match="k 3, this run has 4; pass --teacher_store_top_k 3"):
        store.check(fingerprint(distillation_type="soft", k=4))


def test_neither_k_nor_temperature_matter_to_decisions(tmp_path):
    store = make(tmp_path, k=5, temperature=1.0)
    store.check(fingerprint(k=7, temperature=3.0))
    assert not {"k", "temperature"} & store.fingerprint.keys()


def test_threads_making_one_store_find_the_same(tmp_path):
    # As processes of equal number on two machines that share a disk.
    for number in range(20):
        barrier = Barrier(4)

        def create(_, folder=tmp_path / str(number), barrier=barrier):
            barrier.wait(DEADLINE)
            return make(folder).fingerprint

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(create, range(4)))
        assert made == [made[0]] * 4
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["store.json"]


def make_many(folder, barrier):
    for number in range(100):
        barrier.wait(DEADLINE)
        try:
            store = make(folder / str(number))
            store.write(0, np.arange(2), np.array([1, 2], store.dtype))
        except BaseException:
            barrier.abort()
            raise


def test_processes_making_one_store_find_the_same(tmp_path):
    barrier = FORK.Barrier(4)
    run_beside_each_other(make_many, *[(tmp_path, barrier)] * 4)
    for number in range(100):
        assert TeacherStore(tmp_path / str(number)).count(0) == 2
        assert not list((tmp_path / str(number)).glob("*.partial"))


# ---- what a run must agree to ----

FULL = fingerprint(distillation_type="soft", k=5)
ARGUMENTS = {
    field.name
    for arguments in (ModelArguments, DataArguments, DistillationTrainingArguments)
    for field in dataclasses.fields(arguments)
}


def test_a_fingerprint_holds_whatever_an_answer_depends_on():
    settings = {field.name for field in dataclasses.fields(AugmentationSettings)}
    others = {"dataset", "num_images", "num_classes", "num_views", "data_seed", "repeated_augmentation"}
    assert set(FULL) == settings | others | {"augmentation_version", "distillation_type", "k", "temperature"}


def test_a_field_that_differs_is_named_with_both_values_and_a_remedy(tmp_path):
    store = make(tmp_path, distillation_type="soft", k=5)
    store.check(FULL)
    for field, theirs in FULL.items():
        ours = "else" if isinstance(theirs, str) else (0.25, 0.5) if isinstance(theirs, tuple) else theirs + 1
        with pytest.raises(InputError) as caught:
            store.check({**FULL, field: ours})
        message = str(caught.value)
        assert f"for {field} {json.dumps(theirs)}, this run has {json.dumps(ours)}; " in message
        assert str(tmp_path) in message and "\n" not in message
        named = re.findall(r"--(\w+)", message)
        assert "teacher_store" in named and set(named) <= ARGUMENTS, field
        for argument, value in re.findall(r"pass --(\w+) ([^\s,]+)", message):
            assert value == str(theirs), argument


def test_tuples_are_the_lists_that_json_makes_of_them(tmp_path):
    store = make(tmp_path)
    store.check({"random_crop_scale": (0.08, 1.0)})
    store.check({"random_crop_scale": [0.08, 1.0]})
    with pytest.raises(InputError, match="random_crop_scale"):
        store.check({"random_crop_scale": (0.08, 0.9)})


def test_a_field_that_the_store_lacks_is_refused(tmp_path):
    with pytest.raises(InputError, match='teacher_weights null, this run has "abc"'):
        make(tmp_path).check({"teacher_weights": "abc"})


def test_a_long_value_is_cut(tmp_path):
    store = create_store(tmp_path, {**fingerprint(), "label_map": list(range(1000))}, {})
    with pytest.raises(InputError, match="label_map") as caught:
        store.check({"label_map": list(range(1000))[::-1]})
    assert len(str(caught.value)) < 500


# ---- validation ----


def test_validation_answers_come_back_in_their_view_alone(tmp_path):
    store = make(tmp_path)
    assert store.read_validation("16 pixels") is None
    store.write_validation("16 pixels", 0.75, np.array([3, 1, 0, 2]), np.array([3, 1, 0, 9]))
    for reader in (store, TeacherStore(tmp_path)):
        kept = reader.read_validation("16 pixels")
        assert (kept["accuracy"], kept["answers"], kept["labels"]) == (0.75, [3, 1, 0, 2], [3, 1, 0, 9])
        assert reader.read_validation("24 pixels") is None
    store.write_validation("24 pixels", 0.5, np.array([1]), np.array([0]))
    assert store.read_validation("24 pixels")["answers"] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.json", "validation.json"]


def test_soft_answers_about_validation_images_are_kept_where_they_are_few(tmp_path, monkeypatch):
    made = make(tmp_path, **SOFT)
    entries = answers(made)[:4]
    about = ("16 pixels", 0.75, np.array([3, 1, 0, 2]), np.array([3, 1, 0, 9]))
    made.write_validation(*about, entries=entries)
    kept = TeacherStore(tmp_path).validation()
    assert (entries_of_text(kept["entries"], made.dtype) == entries).all() and kept["answers"] == [3, 1, 0, 2]
    made.write_validation(*about, entries=entries[:3])
    assert TeacherStore(tmp_path).validation() is None  # of other images
    monkeypatch.setattr("modeling_deit_distill.teachers.store.MAX_VALIDATION_BYTES", entries.nbytes - 1)
    made.write_validation(*about, entries=entries)
    kept = TeacherStore(tmp_path).validation()
    assert "entries" not in kept and kept["answers"] == [3, 1, 0, 2]


def test_damaged_validation_answers_are_none(tmp_path):
    store = make(tmp_path)
    store.write_validation("16 pixels", 0.75, np.array([3]), np.array([3]))
    for content in (b"", b'{"view": "16 pixels", "ans', b"\xff\xfe", b"[]", b'{"view": "16 pixels"}'):
        (tmp_path / "validation.json").write_bytes(content)
        assert store.read_validation("16 pixels") is None
