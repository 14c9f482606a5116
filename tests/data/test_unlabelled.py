"""Which files are images to predict: each once, with the reason where it cannot be read."""

import os

import numpy as np
import PIL.Image
import pytest

from modeling_deit_distill import InputError
from modeling_deit_distill.data import image_files
from modeling_deit_distill.data.sources import load_digits
from modeling_deit_distill.data.unlabelled import NO_FOLDER, RowImages, find_images


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (12, 8), (200, 10, 10)).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name in ("loose.png", "hat/a.png", "hat/2024/05/b", "new/c.jpg_large"):
        save(root / name)
    (root / "hat" / "notes.txt").write_text("no image")
    (root / "hat" / "zero.txt").write_text("")
    (root / "hat" / "zero.jpg").write_text("")
    (root / "hat" / "gone.jpg").symlink_to(root / "nowhere")
    (root / "raw.dng").write_bytes(b"II*\0")
    (root / ".hidden.png").write_bytes(b"")
    (root / "new" / "up").symlink_to(root)
    return root


def test_every_file_that_is_an_image_or_should_be_one_is_a_row(folder):
    images = find_images([str(folder)])
    assert [os.path.relpath(images.name(row), folder) for row in range(len(images))] == [
        *("hat/2024/05/b", "hat/a.png", "hat/gone.jpg", "hat/zero.jpg"),
        *("loose.png", "new/c.jpg_large", "raw.dng"),
    ]
    reasons = {row: images[row] for row in range(len(images)) if isinstance(images[row], str)}
    assert reasons == {2: "missing file", 3: "empty file", 6: "camera raw (export as JPEG)"}
    assert images[1] == {"bytes": None, "path": str(folder / "hat" / "a.png")}
    assert images.folder_names == ["hat", "new"]
    assert images.folders.tolist() == [0, 0, 0, 0, NO_FOLDER, 1, NO_FOLDER]
    assert str(images.skipped) == (
        f"1 file of no image format: {folder}/hat/notes.txt; 1 empty file: {folder}/hat/zero.txt; "
        "1 link to a folder that is read already: new/up"
    )


def test_what_cannot_be_read_here_has_the_package_for_its_reason(folder, monkeypatch):
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert isinstance(find_images([str(folder / "phone.heic")])[0], dict)
    monkeypatch.setattr(image_files, "can_read_heic", lambda: False)
    images = find_images([str(folder)])
    assert "HEIC (pip install pillow-heif)" in [images[row] for row in range(len(images))]


def test_files_are_taken_as_they_are_named_and_once(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    images = find_images(["photos/hat/notes.txt", "photos/hat/a.png", "photos/hat", "photos/hat/"])
    names = [images.name(row) for row in range(len(images))]
    assert names[:3] == ["photos/hat/notes.txt", "photos/hat/a.png", "photos/hat/2024/05/b"]
    assert images[0] == "file of no image format"
    assert images.skipped.counts["file{s} named more than once"] == 2 + 6
    assert len(names) == len(set(names)) == 5
    assert images.folder_names == ["2024"]


def test_a_name_in_other_bytes_is_found_and_shown(tmp_path):
    path = os.fsencode(tmp_path) + b"/h\xfcte.png"
    os.rename(save(tmp_path / "a.png"), path)
    images = find_images([str(tmp_path)])
    assert os.fsencode(images[0]["path"]) == path and images.name(0) == f"{tmp_path}/hüte.png"


def test_nothing_to_predict_is_one_line(tmp_path):
    with pytest.raises(InputError, match="'nowhere' is no file and no folder"):
        find_images(["nowhere"])
    with pytest.raises(InputError, match=r"there are no images in .*$"):
        find_images([str(tmp_path)])
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"no images in .* \(skipped: 1 file of no image format: .*notes.txt\)"):
        find_images([str(tmp_path)])


def test_rows_of_a_split_have_their_classes_for_folders():
    rows = load_digits().select([3, 1])
    images = RowImages(rows.cast_column("image", type(rows.features["image"])(decode=False)))
    assert images.folders.tolist() == [3, 1] and images.folder_names == [str(digit) for digit in range(10)]
    assert images.folders.dtype == np.int32 and images[1]["bytes"].startswith(b"\x89PNG")
    assert images.name(1) == "row 1"
