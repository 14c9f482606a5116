"""All held-out images are decoded before training: bad ones are named, left out and remembered."""

import datasets
import numpy as np
import PIL.Image
import pytest
from helpers.images import encode, grey, with_bad_rows
from helpers.odd_images import BROKEN

from modeling_deit_distill import InputError
from modeling_deit_distill.data import inspection
from modeling_deit_distill.data.decoding import decode_pixels, decoding_notes
from modeling_deit_distill.data.inspection import looked_at, readable, try_held_out, try_sample
from modeling_deit_distill.data.sources import load_image_data

CUT_OFF = BROKEN["png, cut early"][0]


@pytest.fixture
def decoded(monkeypatch):
    """The images decoded since the last look, how many: `decoded()`."""
    numbers, decode = [], decoding_notes

    def count(image):
        numbers.append(1)
        return decode(image)

    def since() -> int:
        number = len(numbers)
        numbers.clear()
        return number

    count.__name__ = "decoding_notes"
    monkeypatch.setattr(inspection, "decoding_notes", count)
    return since


def test_bad_held_out_images_are_named_and_left_out(warnings):
    rows = with_bad_rows(20, {3: b"", 11: CUT_OFF})
    bad = try_held_out(rows, max_fraction=0.1, show=False)
    assert bad == [3, 11]
    first, second = warnings()
    assert first == "held-out row 3 (3.png) is a bad image: the file is empty; it is left out of the measurement"
    assert second.startswith("held-out row 11 (11.png) is a bad image: ") and "truncated" in second
    assert readable(rows, bad)["label"][:] == [row for row in range(20) if row not in (3, 11)]
    assert readable(rows, []) is rows


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (("error", 1.0), r"held-out row 3 \(3.png\) is a bad image: the file is empty; repair it or move it away"),
        (
            ("warn", 0.09),
            r"6 held-out images cannot be read, .* --max_bad_image_fraction 0.09 of 60: ",
        ),
    ],
)
def test_too_many_bad_held_out_images_are_refused(limits, words):
    with pytest.raises(InputError, match=words):
        try_held_out(with_bad_rows(60, {3: b"", **dict.fromkeys(range(11, 16), CUT_OFF)}), *limits, show=False)


def test_something_must_be_left_to_measure_on():
    message = r"none of the 1 held-out image.*; the first, row 0 \(0.png\): the file is empty; repair"
    with pytest.raises(InputError, match=message):
        try_held_out(with_bad_rows(1, {0: b""}), show=False)


def test_a_sample_of_the_training_images_is_tried(warnings):
    # rows 0, 2, ..., 510 of 511
    try_sample(with_bad_rows(511, {4: b"", 7: b"", 510: b"x"}), show=False)
    assert [message.split(" is")[0] for message in warnings()] == ["row 4 (4.png)", "row 510 (510.png)"]
    assert warnings()[0].endswith("another is shown in its place")


def test_images_are_decoded_once_until_a_file_changes(tmp_path, decoded):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            grey(number).save(tmp_path / "photos" / name / f"{number}.png")
    load = lambda: load_image_data(train_dir=str(tmp_path / "photos"), validation_fraction=0.2).validation  # noqa: E731
    assert try_held_out(load(), show=False) == [] and decoded() == 4
    assert try_held_out(load(), show=False) == [] and decoded() == 0
    changed = load()[1]["image"]["path"]
    with open(changed, "wb") as file:
        file.write(b"no image")
    assert try_held_out(load(), show=False) == [1] and decoded() == 4 + 1  # and once more for what is wrong
    assert try_held_out(load(), show=False) == [1] and decoded() == 1 + 1  # a library may read it by now
    grey(200).save(changed)
    assert try_held_out(load(), show=False) == [] and decoded() == 4


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    assert looked_at(with_bad_rows(5, {2: b""}), decoding_notes) == ([2], {})


def test_what_one_decoder_reads_is_not_said_of_another():
    rows = with_bad_rows(5, {2: b""})
    memories = {inspection._memory(rows, decode) for decode in (decoding_notes, decode_pixels)}
    memories.add(inspection._memory(with_bad_rows(5, {2: encode(grey(9))["bytes"]}), decoding_notes))
    assert len(memories) == 3


def test_what_is_assumed_about_an_image_is_said_at_each_start(warnings):
    deep = PIL.Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16))  # 12 bits in a container of 16
    rows = with_bad_rows(6, {1: encode(deep)["bytes"], 3: b""})
    note = "integers up to 4095 in a container of more bits, taken for 12 bits"
    for _ in range(2):  # the second time it is remembered
        try_held_out(rows, show=False)
        assert f"1 of 6 held-out images are shown by an assumption. row 1 (1.png): {note}" in warnings()
    assert looked_at(rows, decoding_notes) == ([3], {1: note})
    try_sample(rows, show=False)
    assert warnings()[-2] == f"1 of 6 images tried are shown by an assumption. row 1 (1.png): {note}"
