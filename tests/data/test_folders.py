"""A folder of class folders is what a person sees in it: every name, links, any depth; what is skipped is named."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from datasets import Dataset
from helpers.odd_folders import CLASSES, NUM_IMAGES, SKIPPED, make_odd_folder, save
from helpers.refusals import refusal
from helpers.runs import RECIPE, words_of

import train_deit
from modeling_deit_distill.data import folders, image_files
from modeling_deit_distill.data.decoding import decode_image, decode_pixels
from modeling_deit_distill.data.sources import load_image_data

DECOMPOSED, COMPOSED = (unicodedata.normalize(form, "Hüte") for form in ("NFD", "NFC"))


@pytest.fixture
def photos(tmp_path):
    """`photos(cat=3, dog=["a.png", "b/c.png"])`: a folder of class folders, each with so many or such images."""

    def make(where: str = "photos", /, **classes) -> Path:
        for name, images in classes.items():
            for index, image in enumerate([f"{i}.png" for i in range(images)] if isinstance(images, int) else images):
                save(tmp_path / where / name / image, seed=index)
        return tmp_path / where

    return make


def load(folder: Path, **options):
    return load_image_data(train_dir=str(folder), **options)


def found(data) -> dict[str, list[str]]:
    """Names of the images by class, in the order of the rows, training and held out."""
    names = {name: [] for name in data.class_names}
    for row in sorted([*data.train, *data.validation], key=lambda row: row["image"]["path"]):
        names[data.class_names[row["label"]]].append(os.path.basename(row["image"]["path"]))
    return names


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("train", "bus"), ("test_rig", "bus"), ("train", "test"), ("__background__", "validation")]
)
def test_a_class_may_be_called_as_a_split(photos, names):
    folder = photos(**dict.fromkeys(names, 20))
    data = load(folder)
    assert data.class_names == sorted(names)
    assert {name: len(images) for name, images in found(data).items()} == dict.fromkeys(names, 20)
    assert (len(data.train), len(data.validation)) == (36, 4)
    assert data.validation_source == f"of the 40 in {folder} (10% asked for)"


def test_an_image_may_be_called_as_a_split(photos):
    names = [f"train_{index:03}.jpg" for index in range(10)] + [f"{index}.png" for index in range(10)]
    assert found(load(photos(cat=names, dog=20)))["cat"] == sorted(names)


ODD_NAMES = ["a b.png", "#1.png", "*.png", "[1].png", "{a,b}.png", "a\nb.png", "😀.png", "a\\b.png", "~.png", "%20.png"]


def test_every_name_is_taken_as_it_is(photos):
    data = load(photos(**dict.fromkeys([*map(lambda name: name[:-4], ODD_NAMES), "cat"], ODD_NAMES)))
    assert data.class_names == sorted([*(name[:-4] for name in ODD_NAMES), "cat"])
    assert all(images == sorted(ODD_NAMES) for images in found(data).values())
    assert all(decode_pixels(row["image"]).shape == (3, 24, 40) for row in data.train)


def test_names_that_are_not_utf_8(photos, warnings):
    root = photos(cat=3, dog=3)
    for place in (b"/cat/h\xfcte \xc3\xa9.png", b"/H\xfcte/0.png", "/Hüte/1.png".encode()):
        save(os.fsencode(root) + place, (10, 200, 10))
    data = load(root)
    assert found(data) == {
        **{"Hüte": ["0.png", "1.png"], "cat": ["0.png", "1.png", "2.png", "hüte é.png"]},
        "dog": ["0.png", "1.png", "2.png"],
    }
    for row in [*data.train, *data.validation]:
        is_odd = row["image"]["path"].endswith(("hüte é.png", "Hüte/0.png"))
        assert (row["image"]["bytes"] is not None) == is_odd
        assert decode_image(row["image"]).size == (40, 24)
        assert decode_pixels(row["image"]).float().mean(dim=(1, 2))[1] > (150 if is_odd else 60)
    (message,) = warnings()
    assert message.startswith("names that are not UTF-8: 2, the first: ") and "Hüte/0.png" in message


def test_too_many_names_that_are_not_utf_8(photos, monkeypatch):
    root = photos(cat=3, dog=3)
    save(os.fsencode(root) + b"/cat/h\xfcte.png")
    monkeypatch.setattr(image_files, "KEPT_BYTES", 10)
    message = refusal(train_dir=str(root))
    assert "cat/hüte.png" in message and "convmv" in message


def test_unicode_forms_of_a_name_are_one_class(photos, warnings):
    both = photos(**{DECOMPOSED: ["0.png", "1.png"], COMPOSED: ["2.png"], "cat": 3})
    assert found(load(both)) == {COMPOSED: ["0.png", "1.png", "2.png"], "cat": ["0.png", "1.png", "2.png"]}
    for ours, theirs in ((COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)):
        train_dir, validation_dir = photos(f"{ours} a", **{ours: 3, "cat": 3}), photos(f"{ours} b", **{theirs: 2})
        data = load(train_dir, validation_dir=str(validation_dir))
        assert data.class_names == [COMPOSED, "cat"] and data.validation["label"][:] == [0, 0]
    assert not warnings()


def test_names_that_differ_by_case_are_two_classes_with_a_warning(photos, warnings):
    assert load(photos(Hat=3, hat=3, cat=3)).class_names == ["Hat", "cat", "hat"]
    assert warnings() == ["the classes 'Hat' and 'hat' differ only by case; are they one?"]
    message = refusal(train_dir=str(photos("one", cat=1, dog=1)), validation_dir=str(photos("two", Cat=1)))
    assert message == (
        "validation has classes without a training image: Cat; name them as in training, add training images of them, "
        "or leave them out"
    )
    assert warnings()[1:] == ["the classes 'cat' and 'Cat' differ only by case; are they one?"]


# --- links and depth --------------------------------------------------------------------------------------------------


def test_links_are_followed(photos, tmp_path):
    root, other = photos(cat=2), photos("elsewhere", dog=3, more=["m.png"])
    (root / "dog").symlink_to(other / "dog")
    (root / "cat" / "more").symlink_to(other / "more")
    (root / "cat" / "2.png").symlink_to(other / "dog" / "2.png")
    (tmp_path / "link").symlink_to(root)
    for folder in (root, tmp_path / "link", tmp_path / "link" / ".." / "photos"):
        data = load(folder)
        assert found(data) == {"cat": ["0.png", "1.png", "2.png", "m.png"], "dog": ["0.png", "1.png", "2.png"]}
        assert not data.skipped
        assert all(decode_image(row["image"]).size == (40, 24) for row in data.train)


def test_a_link_leads_to_no_image_twice(photos):
    root = photos(cat=["a/0.png", "b/1.png"], dog=2)
    for link, target in {
        **{"cat/a/up": "cat", "cat/all": ".", "cat/outside": "..", "cat/self": "cat/self"},
        **{"cat/a/b": "cat/b", "cat/b/a": "cat/a", "again": "."},
    }.items():
        (root / link).symlink_to((root / target) if target != ".." else root.parent)
    data = load(root)
    assert found(data) == {"cat": ["0.png", "1.png"], "dog": ["0.png", "1.png"]}
    assert "6 links to a folder that is read already: " in data.skipped and "1 class folder without" in data.skipped
    assert "1 unreadable file (Too many levels of symbolic links): cat/self" in data.skipped


def test_images_lie_at_any_depth(photos):
    data = load(photos(cat=["0.png", "a/1.png", "a/b/c/2.png"], dog=["2023/3.png", "2024/4.png"]))
    assert found(data) == {"cat": ["0.png", "1.png", "2.png"], "dog": ["3.png", "4.png"]}


def test_rows_are_in_the_order_of_their_paths(photos):
    names = ["cat", "cat-1", "cat 2", "cat.b", "Dog", "dog", "10", "9", "ärger", "😀"]
    images = ["b.png", "a.png", "A.png", "a b.png", "a/z.png", "a-1/z.png", "a 1/z.png", "9.png", "10.png"]
    data = load(photos(**dict.fromkeys(names, images)), validation_dir=str(photos()))
    paths = [row["image"]["path"] for row in data.train]
    assert paths == sorted(paths) and len(paths) == len(names) * len(images)
    assert [row["label"] for row in data.train] == [
        data.class_names.index(Path(path).relative_to(photos()).parts[0]) for path in paths
    ]


# --- what is an image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_a_file_is_what_its_first_bytes_say(photos, format):
    root, names = photos(cat=2, dog=2), ["photo", "photo.", "photo.jpg_large", "photo.png?v=1", "photo.1", "photo.heic"]
    for name in names:
        save(root / "cat" / name, format=format)
    data = load(root)
    assert found(data)["cat"] == sorted(["0.png", "1.png", *names]) and not data.skipped


def ftyp(*brands: bytes) -> bytes:
    box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(box)).to_bytes(4, "big") + box + bytes(99)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC (pip install pillow-heif)"),
        (ftyp(b"mif1", b"mif1", b"heic"), "HEIC (pip install pillow-heif)"),
        (ftyp(b"msf1", b"hevc"), "HEIC (pip install pillow-heif)"),
        (ftyp(b"avif", b"mif1"), "AVIF (pip install --upgrade pillow)"),
        (ftyp(b"mif1", b"avif"), "AVIF (pip install --upgrade pillow)"),
        (ftyp(b"isom", b"mp42"), "files of no image format"),
        (b"", "empty files"),
        (b"<html>moved</html>", "files of no image format"),
    ],
)
def test_what_cannot_be_read_is_counted_by_kind(photos, monkeypatch, content, kind):
    monkeypatch.setattr(image_files, "can_read_heic", lambda: False)
    monkeypatch.setattr(image_files, "can_read_avif", lambda: False)
    root, names = (
        photos(cat=2, dog=2),
        ["photo", "photo.AVIF", "photo.HEIF", "photo.heic", "photo.hif", "photo.jpg_large"],
    )
    for name in names:
        (root / "cat" / name).write_bytes(content)
    data = load(root)
    assert data.skipped == f"6 {kind}: cat/photo, cat/photo.AVIF, cat/photo.HEIF and 3 more"
    assert len(data.train) + len(data.validation) == 4
    monkeypatch.setattr(image_files, "can_read_heic", lambda: "HEIC" in kind)
    monkeypatch.setattr(image_files, "can_read_avif", lambda: "AVIF" in kind)
    read = names if "HEIC" in kind or "AVIF" in kind else []
    assert found(load(root))["cat"] == ["0.png", "1.png", *read]


@pytest.mark.skipif(not image_files.can_read_avif(), reason="this Pillow has no AVIF")
def test_avif_is_read(photos):
    root = photos(cat=2, dog=2)
    for name in ("a.avif", "b"):
        save(root / "cat" / name, format="AVIF")
    data = load(root)
    assert found(data)["cat"] == ["0.png", "1.png", "a.avif", "b"] and not data.skipped
    assert all(decode_image(row["image"]).size == (40, 24) for row in [*data.train, *data.validation])


def test_files_beside_the_images_are_no_rows(photos):
    root = photos(cat=3, dog=3)
    for name in ("a.json", "b.txt", "c.xml", "d.csv", "e.npy", "f.mp4"):
        (root / "cat" / name).write_text("{}")
    data = load(root)
    assert found(data)["cat"] == ["0.png", "1.png", "2.png"]
    assert data.skipped == "6 files of no image format: cat/a.json, cat/b.txt, cat/c.xml and 3 more"


def test_files_of_the_system_are_not_mentioned(photos):
    root = photos(cat=3, dog=3, **{".thumbnails": 2, "__MACOSX": 1})
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "Icon\r"):
        (root / "cat" / name).write_text("a")
        (root / name).write_text("a")
    save(root / "cat" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.png")
    data = load(root)
    assert found(data) == dict.fromkeys(["cat", "dog"], ["0.png", "1.png", "2.png"]) and not data.skipped


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_changes_nothing(photos, name):
    root = photos(cat=3, dog=3)
    lines = {"csv": "file_name,label\ncat/0.png,cow\n", "jsonl": json.dumps({"file_name": "cat/0.png", "label": "cow"})}
    (root / name).write_text(lines.get(name.split(".")[1], "a"))
    data = load(root)
    assert found(data) == dict.fromkeys(["cat", "dog"], ["0.png", "1.png", "2.png"])
    assert name in data.skipped


def test_nothing_is_opened_that_is_no_file(photos):
    root = photos(cat=3, dog=3)
    os.mkfifo(root / "cat" / "pipe")  # to open it would wait for ever
    (root / "cat" / "broken.jpg").symlink_to("gone.jpg")
    data = load(root)
    assert data.skipped == "1 missing file: cat/broken.jpg; 1 special file: cat/pipe"


def test_what_may_not_be_read_is_named(photos, monkeypatch):
    root = photos(cat=["0.png", "1.png", "secret/2.png"], dog=3)
    (root / "cat" / "3").write_bytes(b"a")
    listed = os.scandir

    def refuse(path, *arguments):
        if str(path).endswith(("secret", "cat/3")):
            raise PermissionError(13, "Permission denied", path)
        return listed(path) if not arguments else open(path, *arguments)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    monkeypatch.setattr(image_files, "open", refuse, raising=False)
    data = load(root)
    assert found(data)["cat"] == ["0.png", "1.png"]
    assert "1 unreadable folder (Permission denied): cat/secret" in data.skipped
    assert "1 unreadable file (Permission denied): cat/3" in data.skipped


def test_a_class_without_images_is_none(photos):
    root = photos(cat=3, dog=3)
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    (root / "texts" / "a.txt").write_text("a")
    data = load(root)
    assert data.class_names == ["cat", "dog"]
    assert data.skipped == "2 class folders without images: empty, texts; 1 file of no image format: texts/a.txt"
    message = refusal(train_dir=str(root), validation_dir=str(photos("more", cat=1, empty=1)))
    assert message.startswith("validation has classes without a training image: empty; name them as in training")


def test_what_is_skipped_in_the_validation_folder(photos):
    train_dir, validation_dir = photos(cat=3, dog=3), photos("more", cat=1)
    (train_dir / "cat" / "a.jpg").write_bytes(b"")
    (validation_dir / "cat" / "b.jpg").write_bytes(b"")
    data = load(train_dir, validation_dir=str(validation_dir))
    assert data.skipped == "1 empty file: cat/a.jpg; of validation: 1 empty file: cat/b.jpg"


# --- splits instead of classes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train", "val"), ("train", "test"), ("Training", "Validation", "test"), ("train",)])
def test_splits_are_refused_with_the_remedy(photos, tmp_path, names):
    for name in names:
        photos(f"photos/{name}", cat=2, dog=2)
        (tmp_path / "photos" / name / "notes.txt").write_text("a")
    (tmp_path / "photos" / "annotations").mkdir()
    message = refusal(train_dir=str(photos()))
    assert f"--train_dir {photos() / names[0]} and --validation_dir" in message
    assert f"--dataset_name {photos()}" in message and all(name in message for name in names)


def test_one_image_directly_below_makes_them_classes(photos):
    data = load(photos(train=["0.png", "steam/1.png"], test=["rig/2.png", "rig/3.png"]))
    assert data.class_names == ["test", "train"]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_folder_as_a_stream(photos):
    root, held_out = photos(cat=30, dog=30, **{"H\nü": 4}), photos("more", cat=2, dog=2)
    stored, data = (load(root, validation_dir=str(held_out), streaming=streaming) for streaming in (False, True))
    assert data.class_names == stored.class_names == ["H\nü", "cat", "dog"]
    assert data.validation[:] == stored.validation[:]
    assert not isinstance(data.train, Dataset) and data.train.num_shards == 64
    key = lambda row: row["image"]["path"]  # noqa: E731
    rows = list(data.train)
    assert sorted(rows, key=key) == list(stored.train)
    assert 5 < sum(row["label"] for row in rows[:20]) - 20 * 1 < 15  # the classes are mixed
    assert data.train.features == stored.train.features
    assert "--validation_dir" in refusal(train_dir=str(root), streaming=True)


# --- all at once ------------------------------------------------------------------------------------------------------


def test_all_of_it_at_once(tmp_path, warnings, monkeypatch):
    monkeypatch.setattr(image_files, "can_read_heic", lambda: False)
    make_odd_folder(tmp_path / "photos")
    data = load(tmp_path / "photos")
    assert data.class_names == sorted(CLASSES)
    assert len(data.train) + len(data.validation) == NUM_IMAGES
    parts = [f"{count} {kind}: {names}" for kind, (count, names) in SKIPPED.items()]
    assert sorted(data.skipped.split("; ")) == sorted(parts)
    assert all(decode_pixels(row["image"]).shape == (3, 24, 40) for row in [*data.train, *data.validation])


@pytest.mark.slow
def test_training_on_all_of_it_ends_well(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_files, "can_read_heic", lambda: False)
    make_odd_folder(tmp_path / "photos")
    out = tmp_path / "out"
    train_deit.main(words_of({**RECIPE, "train_dir": tmp_path / "photos", "output_dir": out, "num_train_epochs": 2}))
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["data", f"{tmp_path}/photos:", "51", "images"] for line in printed)
    assert any(line.split()[:2] == ["classes", "6:"] for line in printed if line)
    (line,) = (line for line in printed if line.split()[:1] == ["skipped"])
    record, card = json.loads((out / "run.json").read_text()), (out / "README.md").read_text()
    for kind, (count, names) in SKIPPED.items():
        assert f"{count} {kind}: {names}" in line
        assert f"{count} {kind}: {names}" in record["facts"]["skipped"]
        assert f"{count} {kind}: " in card
    assert str(tmp_path) not in card
    assert json.loads((out / "all_results.json").read_text())["bad_images"] == 0
    shutil.rmtree(out)
