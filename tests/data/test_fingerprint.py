"""Which changes of the data the fingerprint tells: of any row, in files or tables; and that of earlier versions."""

import dataclasses
import hashlib
import os

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets
from helpers.images import encode, grey, undecoded
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_deit_distill import report
from modeling_deit_distill.data import fingerprint, sources
from modeling_deit_distill.data.fingerprint import (
    END_SIZE,
    GONE,
    WHOLE_SIZE,
    are_among,
    image_checksums,
    sampled_rows,
)
from modeling_deit_distill.data.sources import ImageData, load_image_data

FEATURES = Features({"image": Image(decode=False), "label": ClassLabel(names=["a", "b"])})
SIZES = (0, 1, 500, WHOLE_SIZE, WHOLE_SIZE + 1, 3 * WHOLE_SIZE)


def contents(number: int, seed: int = 0) -> list[bytes]:
    """Bytes of each size in turn, all different."""
    draws = np.random.default_rng(seed)
    return [bytes([row % 251]) + draws.bytes(SIZES[row % len(SIZES)]) for row in range(number)]


def table(encoded: list[bytes]) -> Dataset:
    images = [{"bytes": each, "path": None} for each in encoded]
    return Dataset.from_dict({"image": images, "label": [0, 1] * (len(images) // 2)}, features=FEATURES)


def files(folder, encoded: list[bytes]) -> Dataset:
    folder.mkdir()
    for row, each in enumerate(encoded):
        (folder / f"{row}.png").write_bytes(each)
    images = [{"bytes": None, "path": str(folder / f"{row}.png")} for row in range(len(encoded))]
    return Dataset.from_dict({"image": images, "label": [0, 1] * (len(images) // 2)}, features=FEATURES)


def data_of(train: Dataset, validation: Dataset | None = None) -> ImageData:
    return ImageData(train, train.select([0, 1]) if validation is None else validation, ["a", "b"], "here", "there")


# ---- checksums ----


def test_files_and_tables_in_any_order_have_the_same_checksums(tmp_path):
    encoded = contents(40)
    checksums = image_checksums(table(encoded))
    assert checksums.dtype == np.uint32 and GONE not in checksums and len(set(checksums.tolist())) == 40
    assert (image_checksums(files(tmp_path / "files", encoded)) == checksums).all()
    order = np.random.default_rng(1).permutation(40)
    whole = table(encoded)
    halves = concatenate_datasets([whole.select(range(17)), files(tmp_path / "more", encoded).select(range(17, 40))])
    for rows in (whole, halves):
        assert (image_checksums(rows) == checksums).all()
        assert (image_checksums(rows.select(order)) == checksums[order]).all()
    assert (image_checksums(whole.select(range(5, 12))) == checksums[5:12]).all()


def test_what_cannot_be_read_is_gone(tmp_path):
    rows = files(tmp_path / "files", contents(6))
    (tmp_path / "files" / "2.png").unlink()
    (tmp_path / "files" / "3.png").unlink()
    (tmp_path / "files" / "3.png").mkdir()
    assert (image_checksums(rows) == GONE).tolist() == [False, False, True, True, False, False]
    nothing = Dataset.from_dict({"image": [None, {"bytes": b"", "path": None}], "label": [0, 1]}, features=FEATURES)
    assert (image_checksums(nothing) == GONE).tolist() == [True, False]


@settings(max_examples=20, deadline=None)
@given(row=st.integers(0, 599), size=st.sampled_from(SIZES), place=st.integers(0, 2**20), bit=st.integers(0, 7))
def test_a_flipped_bit_changes_the_checksum_of_its_row_alone(row, size, place, bit):
    encoded = [b"y" * 600] * 600
    encoded[row] = b"x" * size + b"y"
    before = image_checksums(table(encoded))
    changed = bytearray(encoded[row])
    place %= len(changed)
    changed[place] ^= 1 << bit
    after = image_checksums(table([*encoded[:row], bytes(changed), *encoded[row + 1 :]]))
    is_looked_at = len(changed) <= WHOLE_SIZE or row in sampled_rows(600)
    is_looked_at |= place < END_SIZE or place >= len(changed) - END_SIZE
    assert (after != before).nonzero()[0].tolist() == [row] * is_looked_at


def test_a_size_alone_tells_two_files_apart():
    ends = b"a" * END_SIZE
    encoded = [ends + b"b" * number + ends for number in (3 * WHOLE_SIZE, 3 * WHOLE_SIZE + 1)]
    one, other = (image_checksums(table([each] * 600))[1] for each in encoded)
    assert one != other


# ---- fingerprints ----


@pytest.mark.parametrize("kind", ["table", "files"])
def test_each_row_of_both_splits_counts(tmp_path, kind):
    encoded = contents(300)

    def fingerprint(name: str, train: list[bytes], held_out: list[bytes]) -> str:
        if kind == "table":
            return data_of(table(train), table(held_out)).fingerprint()
        return data_of(files(tmp_path / name, train), files(tmp_path / f"{name} held out", held_out)).fingerprint()

    whole = fingerprint("whole", encoded, encoded[:4])
    assert whole == fingerprint("same", encoded, encoded[:4]) and len(whole) == 32
    sampled = set(sampled_rows(300).tolist())
    row = next(row for row in range(300) if row not in sampled)
    for name, train, held_out in (
        ("one", [*encoded[:row], b"else", *encoded[row + 1 :]], encoded[:4]),
        ("held out", encoded, [*encoded[:3], b"else"]),
        ("order", [*encoded[:row], encoded[row + 1], encoded[row], *encoded[row + 2 :]], encoded[:4]),
    ):
        assert fingerprint(name, train, held_out) != whole, name


def test_replaced_images_of_which_earlier_versions_saw_none_are_found():
    digits = load_image_data("digits")
    other = np.setdiff1d(np.arange(len(digits.train)), sampled_rows(len(digits.train)))
    assert len(other) == 1361
    images = digits.train.cast_column("image", Image(decode=False))["image"][:]
    for row in other:
        images[row] = {"bytes": b"else", "path": None}
    features = Features({**digits.train.features, "image": Image(decode=False)})
    labels = digits.train["label"][:]
    replaced = Dataset.from_dict({"image": images, "label": labels}, features=features)
    changed = dataclasses.replace(digits, train=replaced)
    short = "0" * 16
    assert changed.fingerprint(short) == digits.fingerprint(short)  # as it was
    assert changed.fingerprint() != digits.fingerprint()


def test_the_fingerprint_of_an_earlier_version_is_understood_and_said_once(caplog, monkeypatch):
    monkeypatch.setattr(report, "_said", set())
    encoded = contents(300)
    data = data_of(table(encoded))
    # As version 0.1.0 made it: classes, labels of both splits, 256 images.
    labels = np.array([0, 1] * 150 + [0, 1]).tobytes()
    sample = b"".join(encoded[int(row)] for row in np.linspace(0, 299, 256))
    short = hashlib.sha256(b"['a', 'b']" + labels + sample).hexdigest()[:16]
    assert data.fingerprint("f" * 16) == short
    assert not caplog.records
    for _ in range(2):
        assert data.fingerprint(short) == short
    assert [record.getMessage() for record in caplog.records] == [sources.KNOWN_BY_FEW]
    for like in (None, "d161", 7, data.fingerprint()):
        assert data.fingerprint(like) == data.fingerprint() != short


def test_images_are_looked_at_once(tmp_path, monkeypatch):
    data = data_of(files(tmp_path / "files", contents(10)))
    opened, before = os.open, data.fingerprint()
    monkeypatch.setattr(os, "open", None)
    assert data.fingerprint() == before
    data.keep_fingerprint()
    monkeypatch.setattr(os, "open", opened)
    data.train = data.train.select(range(8))
    assert data.fingerprint() != before


def test_a_listing_of_an_earlier_version_keeps_its_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for row in range(10):
            (tmp_path / "photos" / name / f"{row}.png").write_bytes(f"{name} {row}".encode())
    data = load_image_data(train_dir=str(tmp_path / "photos"))
    data.keep_fingerprint()
    long, short = data.fingerprint(), data.fingerprint("0" * 16)
    listing = {name: value for name, value in data.listing.items() if name != "checksums"}
    os.unlink(data.train[3]["image"]["path"])
    again = load_image_data(train_dir=str(tmp_path / "photos"), listing=listing)
    assert again.fingerprint("0" * 16) == short
    again = load_image_data(train_dir=str(tmp_path / "photos"), listing=data.listing)
    assert (again.fingerprint("0" * 16), again.fingerprint()) == (short, long)


@given(st.lists(st.integers(0, 5), max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_checksums_that_are_equal_by_chance_leave_nothing_out(ours, theirs):
    content = [encode(grey(level)) for level in range(6)]
    rows, other = (undecoded([content[level] for level in levels]) for levels in (ours or [0], theirs))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(fingerprint, "image_checksums", lambda rows, samples: np.ones(len(rows), np.uint32))
        assert are_among(rows, [other]).tolist() == [level in theirs for level in ours or [0]]


def test_each_image_is_read_whole_once_where_ends_are_alike(monkeypatch):
    """Scans with a plain border have the same ends; pairs of them would be too many."""
    border, read, encoded = bytes(5000), [], fingerprint.encoded_bytes
    content = [border + bytes([level]) * 20_000 + border for level in range(30)]
    rows, other = undecoded(content[:10]), undecoded(content[9:])
    monkeypatch.setattr(fingerprint, "encoded_bytes", lambda image: read.append(image) or encoded(image))
    assert are_among(rows, [other]).tolist() == [False] * 9 + [True]
    assert len(read) == len(rows) + len(other)
