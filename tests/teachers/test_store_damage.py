"""Damage to a store: flipped bits, exchanged files and blocks, files cut short. Nothing wrong is used, all is named."""

import json
import logging
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.stores import LAYOUTS, SOFT, answers, change, everywhere, fingerprint, make, whole

from modeling_deit_distill import InputError
from modeling_deit_distill.errors import LocalInputError
from modeling_deit_distill.report import summary_table
from modeling_deit_distill.teachers.command_line import describe, main
from modeling_deit_distill.teachers.store import TeacherStore, create_store, described

NUM_VIEWS = 3000  # three blocks of labels, nine of the k highest
THOUSAND = {"num_views": NUM_VIEWS, "num_classes": 1000}
EPOCHS = (0, 1, 2)
ABOUT_VALIDATION = ("16 pixels", 0.5, np.array([3, 1]), np.array([3, 9]))
# The whole measure takes a minute; some cases of it run always.
SHARES = pytest.mark.parametrize("share", [9, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])


def filled(folder, **layout) -> tuple[TeacherStore, dict[int, np.ndarray]]:
    """A store of three epochs, and what it holds."""
    store = make(folder, **THOUSAND, **layout)
    entries = answers(store)
    expected = {epoch: np.roll(entries, 7 * epoch) for epoch in EPOCHS}
    for epoch in EPOCHS:
        store.write(epoch, everywhere(store), expected[epoch])
    store.write_validation(*ABOUT_VALIDATION)
    return store, expected


def assert_nothing_wrong_is_used(folder, expected: dict[int, np.ndarray]) -> bool:
    """Read all; whether something was refused or named."""
    try:
        store = TeacherStore(folder)
        store.check(fingerprint(**THOUSAND))
    except InputError:
        return True
    refused = False
    for epoch in EPOCHS:
        try:
            found, known = store.read(epoch, everywhere(store))
        except InputError:
            refused = True
            continue
        assert (found[known] == expected[epoch][known]).all()
        assert known.all() or store.damaged or not store.path(epoch).stat().st_size
    kept = store.read_validation("16 pixels")
    assert kept is None or (kept["answers"], kept["labels"], kept["accuracy"]) == ([3, 1], [3, 9], 0.5)
    return refused or bool(store.damaged)


@SHARES
@LAYOUTS
def test_no_flipped_bit_is_used(tmp_path, layout, share, caplog):
    _, expected = filled(tmp_path, **layout)
    caplog.set_level(logging.CRITICAL)
    draws, named, flips = np.random.default_rng(share), 0, 1000 if share == 1 else 40
    names = [path.name for path in sorted(tmp_path.iterdir())]
    for _ in range(flips):
        path = tmp_path / draws.choice(names)
        good = path.read_bytes()
        bad = bytearray(good)
        place = draws.integers(8 * len(good))
        bad[place // 8] ^= 1 << (place % 8)
        path.write_bytes(bad)
        named += assert_nothing_wrong_is_used(tmp_path, expected)
        path.write_bytes(good)
    assert named >= 0.95 * flips  # some flips turn a space of JSON into another


@SHARES
@LAYOUTS
def test_no_exchanged_or_copied_file_or_block_is_used(tmp_path, layout, share, caplog):
    folder = tmp_path / "mine"
    store, expected = filled(folder, **layout)
    other, _ = filled(tmp_path / "other", data_seed=7, **layout)
    caplog.set_level(logging.CRITICAL)
    draws = np.random.default_rng(share)
    file = store.file(0)
    size, blocks = file.block_size(0), file.num_blocks - 1  # the last is shorter
    for case in range(0, 100, share):
        good = {path: path.read_bytes() for path in folder.iterdir()}
        ours, theirs = draws.permutation(EPOCHS)[:2].tolist()
        if case % 4 == 0:  # two files exchanged
            store.path(ours).write_bytes(good[store.path(theirs)])
            store.path(theirs).write_bytes(good[store.path(ours)])
        elif case % 4 == 1:  # a file of another store, of the same epoch or another
            name = draws.choice([store.path(ours).name, "validation.json", "store.json"])
            shutil.copy(other.directory / name, folder / name)
        else:  # a block: from another place, another epoch, another store
            source = [store.path(ours), store.path(theirs), other.path(ours)][case // 4 % 3].read_bytes()
            here, there = draws.integers(blocks, size=2)
            if case // 4 % 3 == 0:
                there = (here + 1) % blocks
            bad = bytearray(good[store.path(ours)])
            bad[32 + here * size : 32 + (here + 1) * size] = source[32 + there * size : 32 + (there + 1) * size]
            store.path(ours).write_bytes(bad)
        assert assert_nothing_wrong_is_used(folder, expected), case
        for path, content in good.items():
            path.write_bytes(content)


@SHARES
@LAYOUTS
def test_no_file_that_was_cut_short_is_used_beyond_its_whole_blocks(tmp_path, layout, share, caplog):
    store, expected = filled(tmp_path, **layout)
    caplog.set_level(logging.CRITICAL)
    draws = np.random.default_rng(share)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    for _ in range(0, 100, share):
        path = tmp_path / draws.choice(names)
        good = path.read_bytes()
        os.truncate(path, draws.integers(1, len(good)))
        assert assert_nothing_wrong_is_used(tmp_path, expected) or json_is_whole(path)
        path.write_bytes(good)
    path = store.path(1)
    os.truncate(path, 32 + store.file(1).block_size(0) + 10)
    found, known = TeacherStore(tmp_path).read(1, everywhere(store))
    assert known.nonzero()[0].tolist() == list(range(store.file(1).block_views))
    assert (found[known] == expected[1][known]).all()


def json_is_whole(path) -> bool:
    """Whether only the end of the line was cut off."""
    try:
        return bool(json.loads(path.read_text()))
    except ValueError:
        return False


# ---- what is said, and how it is mended ----


def flip(path, place: int):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@LAYOUTS
def test_a_damaged_block_is_named_once_counted_and_mended_by_writing(tmp_path, layout, caplog):
    store, expected = filled(tmp_path, **layout)
    views = store.file(1).block_views
    flip(store.path(1), 32 + 5)
    flip(store.path(1), 3)
    reader = TeacherStore(tmp_path)
    for _ in range(2):
        known = reader.known(1)
        assert known.tolist() == [False] * views + [True] * (NUM_VIEWS - views)
        assert not reader.read(1, np.arange(10))[1].any()
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{store.path(1)} is damaged (its header, views 0 to {views - 1:,}); that is not used"]
    assert reader.damage() == f"epoch-00001.bin is damaged (its header, views 0 to {views - 1:,})"
    assert reader.missing({0: NUM_VIEWS, 1: NUM_VIEWS}) == {1: views}
    reader.write(1, np.arange(views), expected[1][:views])
    assert store.path(1).read_bytes() == whole(store, expected[1], epoch=1)
    assert not TeacherStore(tmp_path).missing({1: NUM_VIEWS})


def test_a_file_of_another_epoch_or_store_is_refused_and_left_alone(tmp_path):
    store, expected = filled(tmp_path / "mine")
    other, _ = filled(tmp_path / "other", data_seed=7)
    later = bytearray(store.path(0).read_bytes())
    later[8] = 3
    later[28:32] = struct.pack("<I", zlib.crc32(bytes(later[:28])))
    for content, reason in (
        (store.path(2).read_bytes(), "holds the answers of epoch 2, not of epoch 1; put the files back under their"),
        (other.path(1).read_bytes(), "is a file of another store, about other answers; delete it"),
        (bytes(later), "is of format 3, this library reads 2; update the library"),
    ):
        store.path(1).write_bytes(content)
        for use in (lambda: store.read(1, np.arange(2)), lambda: store.write(1, np.arange(2), expected[1][:2])):
            with pytest.raises(InputError, match=f"epoch-00001.bin {reason}"):
                use()
        assert store.path(1).read_bytes() == content


def test_files_of_stores_that_agree_are_exchangeable(tmp_path):
    here, there = make(tmp_path / "here"), make(tmp_path / "there")
    there.write(3, everywhere(there), answers(there))
    shutil.copy(there.path(3), here.path(3))
    assert (here.read(3, everywhere(here))[0] == answers(there)).all()


def test_damaged_validation_answers_are_named(tmp_path, caplog):
    store = make(tmp_path)
    store.write_validation(*ABOUT_VALIDATION)
    path = tmp_path / "validation.json"
    path.write_text(path.read_text().replace("[3, 1]", "[3, 2]"))
    assert store.read_validation("16 pixels") is None
    assert "validation.json is damaged (ValueError: it does not agree with its checksum)" in caplog.text
    store.write_validation(*ABOUT_VALIDATION)
    assert store.read_validation("16 pixels") is not None


def test_info_names_the_damage_and_a_damaged_store_is_not_pushed(tmp_path, capsys):
    store, _ = filled(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    flip(store.path(1), 100)
    assert main(["info", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "epoch-00001.bin is damaged (views 0 to 1,023)" in printed.out
    assert printed.err == (
        "error: epoch-00001.bin is damaged (views 0 to 1,023); a run that names the teacher asks again\n"
    )
    with pytest.raises(InputError, match="epoch-00001.bin is damaged .* before the push"):
        main(["push", str(tmp_path), "me/answers"])


# ---- values ----


def test_a_logit_beyond_half_precision_is_refused_before_it_is_stored(tmp_path):
    logits = torch.zeros(2, 10)
    logits[1, 3] = 70_000.0
    store = make(tmp_path / "soft", **SOFT)
    with pytest.raises(LocalInputError, match="a logit of 70,000, and a store keeps them up to 65,504; give --dist"):
        store.encode(logits)
    store.encode(logits.clamp(max=65_504.0))
    assert make(tmp_path / "hard").encode(logits).tolist() == [1, 4]
    logits[0, 0] = torch.nan
    with pytest.raises(LocalInputError, match="NaN or infinity"):
        store.encode(logits)


@LAYOUTS
def test_values_that_no_answer_has_are_not_used(tmp_path, layout):
    store = make(tmp_path, **layout)
    entries = answers(store)
    bad = entries.copy()
    if layout:
        bad["logits"][3, 0], bad["log_sum_exp"][4], bad["classes"][5, 0] = np.inf, np.nan, 11
    else:
        bad[3:6] = (11, -1, 1000)
    store.write(0, everywhere(store), bad)
    found, known = store.read(0, everywhere(store))
    assert known.tolist() == [place not in (3, 4, 5) for place in range(100)]
    assert (found[known] == entries[known]).all() and not found[~known].tobytes().strip(b"\0")
    assert store.damage() == "epoch-00000.bin is damaged (view 3, view 4, view 5)"


# ---- store.json ----


def test_a_description_that_no_store_has_is_one_line(tmp_path):
    make(tmp_path)
    path = tmp_path / "store.json"
    good = path.read_text()
    texts = [
        good.replace('"num_views": 100', '"num_views": Infinity'),
        good.replace('"num_views": 100', '"num_views": 1e999'),
        good.replace('"num_views": 100', '"num_views": 100.5'),
        good.replace('"about": {', '"about": {"deep": ' + "[" * 10_000 + "]" * 10_000 + ", "),
        "[" * 100_000,
        good.replace('"data_seed": 0', '"data_seed": 1'),
        good.replace('"checksum"', '"checksun"'),
        good.replace('"identity"', '"identitx"'),
    ]
    values = {"num_views": [0, -1, "100", None, True, 10**30], "num_classes": [0, 2.5], "distillation_type": ["x", {}]}
    for field, each in values.items():
        for value in each:
            kept = {**fingerprint(), "format": 2, field: value}
            texts.append(json.dumps(described(kept, {}, "0" * 16)))
    texts += [json.dumps(described({**fingerprint(), "format": 2}, {}, identity)) for identity in ("xyz", 3)]
    texts.append(json.dumps({"fingerprint": {**fingerprint(), "format": 2}, "about": {}}))
    for text in texts:
        assert text != good
        path.write_text(text)
        with pytest.raises(InputError, match=r"store\.json cannot be read") as caught:
            TeacherStore(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_control_characters_of_a_store_reach_no_terminal(tmp_path, capsys):
    make(tmp_path)
    evil = "\x1b]0;owned\x07 a\nb \u202e"
    change(tmp_path / "store.json", about={"teacher": evil, "data": {"train_dir": evil}})
    store = TeacherStore(tmp_path)
    assert store.about["teacher"] == r"\x1b]0;owned\x07 a\nb \u202e"
    change(tmp_path / "store.json", fingerprint={"distillation_type": "hard", "teacher_precision": evil})
    main(["info", str(tmp_path)])
    printed = capsys.readouterr().out
    assert r"\x1b]0;owned" in printed
    with pytest.raises(InputError) as caught:
        TeacherStore(tmp_path).check({"teacher_precision": "fp32"})
    for text in (printed.replace("\n", ""), str(caught.value), summary_table(describe(store, store.about))):
        assert not any(character in text for character in "\x1b\x07\u202e")


def test_a_store_made_by_hand_reads_as_the_format_says(tmp_path):
    store = create_store(tmp_path, fingerprint(num_views=1500), {})
    entries = answers(store)
    entries[1100:] = 0
    store.path(4).write_bytes(whole(store, entries, epoch=4))
    found, known = store.read(4, everywhere(store))
    assert (found == entries).all() and known.sum() == 1100
