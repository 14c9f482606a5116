"""Images that cannot be read: they are named, counted and replaced, and too many stop the run."""

import dataclasses
import os
from pathlib import Path

import PIL.Image
import PIL.PngImagePlugin
import pytest
from helpers.images import encode, grey, undecoded, with_bad_rows
from helpers.odd_images import BOMB, BROKEN, JPEGS, LOSSLESS, PHOTO
from helpers.refusals import complaint
from helpers.views import PLAIN, SETTINGS, by_position
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_deit_distill import InputError
from modeling_deit_distill.data import decoding
from modeling_deit_distill.data.bad_images import BadImages, describe_row
from modeling_deit_distill.data.datasets import (
    MAX_REPLACEMENTS,
    ViewDataset,
    collate,
)
from modeling_deit_distill.data.inspection import try_held_out, try_sample
from modeling_deit_distill.data.sources import ImageData, load_image_data
from modeling_deit_distill.data.views import View, ViewSampler


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


def test_the_first_bad_image_stops_the_run_if_asked_to(warnings):
    data = with_bad_rows(9, {3: b""})
    BadImages(data).note([3])
    message = complaint(BadImages(data, on_bad_image="error"), [3])
    assert message == (
        "row 3 (3.png) is a bad image: the file is empty; repair it or move it away, or give --on_bad_image warn"
    )
    assert warnings()[0].startswith("row 3 (3.png) is a bad image: the file is empty")  # the same words
    assert len(warnings()) == 1


def test_more_than_the_fraction_stops_the_run():
    data = with_bad_rows(20, dict.fromkeys(range(20), b""))
    # of twenty rows; five are always allowed
    for max_fraction, num_processes, allowed in [(0.3, 1, 6), (0.0, 1, 5), (0.01, 1, 5), (0.7, 2, 7), (0.4, 100, 5)]:
        bad_images = BadImages(data, max_fraction=max_fraction, num_processes=num_processes)
        bad_images.note(list(range(allowed)))
        bad_images.note([0, 0])
        message = complaint(bad_images, [allowed])
        assert "max_bad_image_fraction" in message and f"{max_fraction:g}" in message
        assert message.startswith(f"{allowed + 1} "), (max_fraction, num_processes)


def test_the_error_names_each_file_and_what_it_names_works(warnings):
    data = with_bad_rows(300, dict.fromkeys(range(6), b""))
    assert complaint(BadImages(data), list(range(6))) == (
        "6 images cannot be read, more than 5 and than --max_bad_image_fraction 0.01 of 300: row 0 (0.png), "
        "row 1 (1.png), row 2 (2.png), row 3 (3.png), row 4 (4.png), row 5 (5.png); the first: the file is empty; "
        "repair these or move them away, or give --max_bad_image_fraction 0.02"
    )
    assert warnings() == []  # nothing is shown in their place
    many = with_bad_rows(300, dict.fromkeys(range(20), b""))
    assert "row 9 (9.png), and 10 others; the first: the file is" in complaint(BadImages(many), list(range(20)))
    bad_images = BadImages(many)  # of a sample of 40, so half of all
    with pytest.raises(InputError, match="--max_bad_image_fraction 0.5$"):
        bad_images.note(list(range(20)), num_shown=40)


def test_photos_of_a_phone_under_another_suffix_tell_what_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "can_read_heic", lambda: False)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(heic)
    rows = undecoded([{"bytes": None, "path": str(path)} for path in sorted(tmp_path.iterdir())])
    message = "the first: HEIC, which needs pillow-heif: pip install pillow-heif; repair these or move them away, or"
    for look in (try_sample, try_held_out):
        with pytest.raises(InputError, match=message):
            look(rows, show=False)
    with pytest.raises(InputError, match="none of the 12 .*; the first, .*/00.jpg: HEIC, which needs pillow-heif"):
        try_held_out(rows, max_fraction=1.0, show=False)


@given(st.integers(6, 60), st.integers(0, 40), st.floats(0, 0.1))
@pytest.mark.slow
def test_the_share_that_the_error_names_is_enough(number, others, max_fraction):
    data = with_bad_rows(number + others, dict.fromkeys(range(number), b""))
    limited = BadImages(data, max_fraction=max_fraction)
    message = complaint(limited, list(range(number)))
    allowed = BadImages(data, max_fraction=float(message.rpartition(" ")[2]))
    allowed.note(list(range(number)))
    assert allowed.seen == set(range(number))


def test_an_image_is_named_once_whoever_meets_it(warnings):
    data = with_bad_rows(9, {3: b""})
    for _ in ("a sample", "the teacher's training", "the student's"):
        BadImages(data).note([3])
    assert len(warnings()) == 1


def test_a_file_is_called_by_its_path(tmp_path):
    data = undecoded([{"bytes": None, "path": str(tmp_path / "cat" / "1.png")}, {"bytes": b"", "path": "2.png"}])
    assert [describe_row(data, row) for row in (0, 1)] == [str(tmp_path / "cat" / "1.png"), "row 1 (2.png)"]


def test_any_share_may_be_bad_if_it_is_allowed():
    data = with_bad_rows(10, dict.fromkeys(range(10), b""))
    bad_images = BadImages(data, max_fraction=1.0)
    bad_images.note(list(range(10)))
    assert bad_images.seen == set(range(10))


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
    with pytest.raises(InputError, match=f"{MAX_REPLACEMENTS} images .* could not be read; the first, row 0 .*empty"):
        dataset.__getitems__([View(0, 0, 0)])


@pytest.fixture
def damaged_folder(tmp_path, monkeypatch) -> tuple[ImageData, set[str]]:
    """A folder of 128 images, 60 of them odd or damaged; and the names of those that cannot be read."""
    odd = [(name, image["bytes"]) for name, (image, _) in {**JPEGS, **LOSSLESS}.items()]
    broken = [(name, encoded) for name, (encoded, _) in BROKEN.items() if encoded]  # an empty file is no row
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
        assert sum(f"/{name} is" in message for message in warnings()) == 1


def test_a_damaged_folder_has_a_fingerprint_as_long_as_its_files_are_there(damaged_folder):
    data, _ = damaged_folder
    present = data.train.filter(lambda row: os.path.exists(row["image"]["path"]))
    assert len(present) == 127
    assert dataclasses.replace(data, train=present).fingerprint()


def test_a_missing_file_does_not_stop_the_fingerprint(damaged_folder):
    assert damaged_folder[0].fingerprint()


def test_bad_images_of_all_epochs_are_judged_by_all_images_that_a_process_saw(warnings):
    bad = dict.fromkeys(range(4), b"")
    bad_images = BadImages(with_bad_rows(100, bad), max_fraction=0.04, num_processes=4)
    for row in range(4):  # each epoch a process sees other 25 images, one in 25 of them bad
        bad_images.note([row], num_shown=25)
    more = BadImages(with_bad_rows(100, dict.fromkeys(range(6), b"")), max_fraction=0.05, num_processes=4)
    assert "6 images cannot be read" in complaint(more, list(range(6)))
