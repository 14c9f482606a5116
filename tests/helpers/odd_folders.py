"""A folder of photos as people have them: odd names, links, files of every kind beside the images."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import PIL.Image

CLASSES = {
    "train": (200, 60, 60),
    "test_rig": (60, 200, 60),
    "__background__": (60, 60, 200),
    "Hüte": (200, 200, 60),
    "a # [b] * ?": (60, 200, 200),
    "new\nline 😀": (200, 60, 200),
}
PLAIN = 8  # images that each class has at least
NUM_IMAGES = 57  # that can be read; counted by hand below
# kind in the summary: how many, and the first names
SKIPPED = {
    "HEIC (pip install pillow-heif)": (2, "train/phone.heic, train/phone_of_no_suffix"),
    "empty file": (1, "train/zero.jpg"),
    "files of no image format": (5, "metadata.csv, train/data.json, train/notes.txt and 2 more"),
    "camera raw (export as JPEG)": (1, "train/raw.dng"),
    "missing file": (1, "train/broken_link.jpg"),
    "special file": (1, "train/pipe.jpg"),
    "link to a folder that is read already": (1, "test_rig/up"),
    "image in no class folder": (1, "loose.jpg"),
    "class folder without images": (1, "nothing"),
}


def save(path: Path | bytes, colour=(90, 90, 90), seed: int = 0, format: str = "PNG"):
    """A noisy picture of a colour; the path may be in bytes that are not UTF-8."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.clip(np.random.RandomState(seed).normal(colour, 20, (24, 40, 3)), 0, 255).astype(np.uint8)
    with open(path, "wb") as file:
        PIL.Image.fromarray(pixels).save(file, format=format)


def make_odd_folder(root: Path):
    """Write a folder of six classes with `NUM_IMAGES` images that can be read, beside all that is skipped."""
    for name, colour in CLASSES.items():
        for index in range(PLAIN):  # 48 in all
            save(root / name / ("train_" * (index % 2) + f"{index:03}.jpg"), colour, index, "JPEG")
    train, red = root / "train", CLASSES["train"]
    save(train / "no_suffix", red, 100)
    save(train / "photo.jpg_large", red, 101)
    save(train / "2024" / "05" / "a # [b] * ?.JPG", red, 102, "JPEG")
    save(train / "test" / "new\nline.jpeg", red, 103, "JPEG")
    save(train / "a jpeg.heic", red, 104, "JPEG")
    save(os.fsencode(train) + b"/h\xfcte.png", red, 105)
    save(root / unicodedata.normalize("NFD", "Hüte") / "decomposed.png", CLASSES["Hüte"], 106)
    save(root.parent / "elsewhere" / "linked.png", CLASSES["test_rig"], 107)
    (root / "test_rig" / "link").symlink_to(root.parent / "elsewhere")
    (train / "linked file").symlink_to(root.parent / "elsewhere" / "linked.png")
    _add_what_is_skipped(root, train)


def _add_what_is_skipped(root: Path, train: Path):
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"
    contents = {"phone.heic": heic, "phone_of_no_suffix": heic, "zero.jpg": b"", "raw.dng": b"II*\x00"}
    contents |= {"notes.txt": b"a", "data.json": b"{}", "program": b"\x7fELF" + bytes(100), "video.mp4": b"ftyp"}
    contents |= {"Thumbs.db": b"a", "desktop.ini": b"a", ".DS_Store": b"a", "._000.jpg": b"a"}  # not the user's
    for name, content in contents.items():
        (train / name).write_bytes(content)
    save(train / "@eaDir" / "000.jpg" / "SYNOPHOTO_THUMB_XL.jpg", format="JPEG")
    save(train / ".ipynb_checkpoints" / "000.jpg", format="JPEG")
    (train / "broken_link.jpg").symlink_to(train / "gone.jpg")
    os.mkfifo(train / "pipe.jpg")
    (root / "test_rig" / "up").symlink_to(root)
    (root / "metadata.csv").write_text("file_name,label\ntrain/000.jpg,wrong\n")
    save(root / "loose.jpg", format="JPEG")
    (root / "nothing").mkdir()
