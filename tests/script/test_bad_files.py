"""What is said of files that cannot be read before a run that they stop, and once in one that they do not."""

import logging

import pytest
from helpers.images import grey
from helpers.runs import arguments

import train_deit
from modeling_deit_distill import InputError
from modeling_deit_distill.data import bad_images


@pytest.fixture
def folder(tmp_path):
    """Photos of two classes, and what makes files of them that are none: `folder(6)`."""

    def make(number):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            for level in range(12):
                grey(level).save(tmp_path / "photos" / name / f"{level}.png")
        (tmp_path / "photos" / "cat" / "empty.jpg").touch()
        for level in range(number):
            (tmp_path / "photos" / "dog" / f"{level}.png").write_bytes(b"no image")
        return tmp_path / "photos"

    return make


def words(photos, tmp_path):
    return arguments(train_dir=photos, output_dir=tmp_path / "run", validation_fraction=0.1)


def test_what_was_read_and_skipped_is_shown_before_too_many_stop_a_run(folder, tmp_path, capsys):
    message = r"cannot be read, .*/photos/dog/1.png.*Pillow cannot .*; repair these or move them away, or give --max"
    with pytest.raises(InputError, match=message):
        train_deit.main(words(folder(7), tmp_path))
    shown = capsys.readouterr().out
    assert "What was read" in shown and "1 empty file: cat/empty.jpg" in shown and "2: cat, dog" in shown


@pytest.mark.slow
def test_two_broken_files_of_a_small_set_stop_nothing_and_are_named_once(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(bad_images, "_said", set())
    photos = folder(2)
    with caplog.at_level(logging.WARNING):
        train_deit.main(words(photos, tmp_path) + ["--allow_weak_teacher", "true"])
    for level in range(2):
        assert caplog.text.count(f"{photos}/dog/{level}.png is a bad image") == 1
