"""Files of images on a disk: which can be read, which are skipped and why, and rows of those that are read."""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image
from transformers.utils import logging

from ..errors import InputError
from .columns import NO_LABEL
from .decoding import can_read_avif, can_read_heic, open_picture

logger = logging.get_logger(__name__)

# Files with these suffixes are not opened before they are decoded.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# What often lies beside photographs.
OTHER_SUFFIXES = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".zip"}
OTHER_SUFFIXES |= {".mp4", ".mov", ".avi", ".mpg", ".mpeg", ".npy", ".npz", ".h5", ".pkl", ".db", ".ini", ".log", ".py"}
# Pillow would show the small preview in such a file.
RAW_SUFFIXES = {".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}

# Why a file or folder is skipped; {s} is for the plural.
EMPTY = "empty file{s}"
MISSING = "missing file{s}"
NO_IMAGE = "file{s} of no image format"
NO_HEIC = "HEIC (pip install pillow-heif)"
NO_AVIF = "AVIF (pip install --upgrade pillow)"
RAW = "camera raw (export as JPEG)"
SPECIAL = "special file{s}"

NAMED = 3  # of each kind, so many are named
KEPT_BYTES = 2**30
BLOCK = 250_000  # rows; Arrow's strings take 2 GB at most
STREAM_SHARDS = 1024
STREAM_SEED = 0


@dataclass
class Skipped:
    """What was skipped, by kind: how many, and the first few by name."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str):
        """Count one."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(names := self.names.setdefault(kind, [])) < NAMED:
            names.append(shown(name))

    def __str__(self) -> str:
        """`2 HEIC (pip install pillow-heif): cat/a.heic, cat/b.heic; 1 empty file: cat/zero.jpg`; empty for none."""
        parts = []
        for kind, count in self.counts.items():
            more = f" and {count - NAMED:,} more" if count > NAMED else ""
            kind_in_words = kind.format(s="s" if count > 1 else "")
            parts.append(f"{count:,} {kind_in_words}: {', '.join(self.names[kind])}{more}")
        return "; ".join(parts)


@dataclass
class Found:
    """Images on a disk, each with the name of its class or `NO_LABEL`, and what was skipped beside them."""

    paths: list[str] = field(default_factory=list)
    labels: list[str | int] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)


def why_skipped(path: str) -> str | None:
    """The kind of a file that is skipped; None for an image. A file is opened only if its suffix leaves doubt."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return SPECIAL
        if status.st_size == 0:
            return EMPTY
        suffix = os.path.splitext(path)[1].lower()
        return None if suffix in IMAGE_SUFFIXES else _why_doubtful(path, suffix)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"unreadable file{{s}} ({error.strerror})"


def _why_doubtful(path: str, suffix: str) -> str | None:
    """As [`why_skipped`], for a file that is not clearly an image by its suffix."""
    if suffix in OTHER_SUFFIXES:
        return NO_IMAGE
    if suffix in RAW_SUFFIXES:
        return RAW
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return None
    brands = start[8 : int.from_bytes(start[:4], "big")] if start[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        return None if can_read_avif() else NO_AVIF
    if any(brand in brands for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")):
        return None if can_read_heic() else NO_HEIC
    try:
        open_picture(path).close()
    except PIL.Image.DecompressionBombError:
        pass  # an image, which decoding judges
    except Exception:  # whatever Pillow's plugins make of a file that is not theirs
        return NO_IMAGE
    return None


def as_text(name: str) -> str:
    """A file's name in characters. Bytes that are not UTF-8, from an old disk, are most likely Latin-1."""
    return "".join(chr(ord(each) - 0xDC00) if "\udc80" <= each <= "\udcff" else each for each in name)


def shown(name: str) -> str:
    """A name for a message: on one line."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in as_text(name))


def plain_path(path: str) -> str:
    """An absolute path without `..`, by which the folder that it lies in can be judged."""
    # Links in a folder are its owner's business; but what `..` after one of them means, only the system knows.
    return os.path.realpath(path) if ".." in path and ".." in Path(path).parts else os.path.abspath(path)


def image_splits(train: Found, validation: Found | None, streaming: bool) -> dict[str, Dataset]:
    """Splits `train` and `validation` with columns `image` (path, not decoded) and `label` (sorted classes of `train`).

    With `streaming` the training split is a stream. Its rows are shuffled once, since a buffer of a stream that is
    sorted by class would hold a few classes only.

    Raises:
        InputError: a class of the validation images without a training image, or a stream without validation images.
    """
    class_names = sorted(set(train.labels))
    unknown = sorted(set(validation.labels if validation else ()) - set(class_names))
    _warn_of_case(class_names + unknown)
    if unknown:
        raise InputError(untrained_classes_in_words(list(map(shown, unknown))))
    if streaming and validation is None:
        raise InputError("streaming needs validation images; give --validation_dir or --validation_csv")
    splits = {"train": _image_rows(train, class_names, shuffle=streaming)}
    if validation is not None:
        splits["validation"] = _image_rows(validation, class_names)
    if streaming:
        shards = min(len(train.paths), STREAM_SHARDS)
        splits["train"] = splits["train"].to_iterable_dataset(num_shards=shards)
    return splits


def untrained_classes_in_words(names: list[str]) -> str:
    """The error about classes of the validation images that have no training image."""
    return (
        f"validation has classes without a training image: {', '.join(names[:10])}; name them as in training, add "
        "training images of them, or leave them out"
    )


def rows_without_labels(found: Found, class_names: list[str]) -> Dataset:
    """Rows as those of [`image_splits`], in the order of `found`, each with `NO_LABEL`."""
    return _image_rows(found, class_names)


def in_words(train: Found, validation: Found | None) -> str:
    """What was skipped in both; empty for nothing."""
    parts = [str(train.skipped)]
    if validation is not None and validation.skipped.counts:
        parts.append(f"of validation: {validation.skipped}")
    return "; ".join(filter(None, parts))


def _warn_of_case(class_names: list[str]):
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(name.casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            logger.warning(f"the classes {' and '.join(map(repr, names))} differ only by case; are they one?")


def _image_rows(found: Found, class_names: list[str], shuffle: bool = False) -> Dataset:
    """Rows in the order of `found`, built as Arrow arrays: a million rows take a second."""
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=class_names)})
    index = {name: position for position, name in enumerate(class_names)} | {NO_LABEL: NO_LABEL}
    kept = _bytes_of_odd_names(found.paths)
    order = np.arange(len(found.paths))
    if shuffle:
        order = np.random.default_rng(STREAM_SEED).permutation(order)
    blocks, digest = [], hashlib.sha256(repr(class_names).encode())
    for start in range(0, len(order), BLOCK):
        places = order[start : start + BLOCK].tolist()
        contents = pa.array([kept.get(place) for place in places], pa.binary())
        paths = [as_text(found.paths[place]) if place in kept else found.paths[place] for place in places]
        image = pa.StructArray.from_arrays([contents, pa.array(paths, pa.string())], names=["bytes", "path"])
        labels = pa.array([index[found.labels[place]] for place in places], pa.int64())
        blocks.append(pa.table([image, labels], schema=features.arrow_schema))
        digest.update(repr((paths, labels.to_pylist())).encode())
    # `datasets` would pickle the whole table for its own digest.
    return Dataset(pa.concat_tables(blocks), DatasetInfo(features=features), fingerprint=digest.hexdigest()[:16])


def _bytes_of_odd_names(paths: list[str]) -> dict[int, bytes]:
    """What the files hold whose paths are not UTF-8, by their place: Arrow cannot store such a path.

    Raises:
        InputError: they hold too much to be kept in memory.
    """
    odd = [place for place, path in enumerate(paths) if not path.isascii() and as_text(path) != path]
    if not odd:
        return {}
    names = f"names that are not UTF-8: {len(odd):,}, the first: {shown(paths[odd[0]])}"
    size = sum(os.stat(paths[place]).st_size for place in odd)
    if size > KEPT_BYTES:
        raise InputError(f"{names}; rename them, for instance with `convmv -f latin1 -t utf8 -r --notest FOLDER`")
    logger.warning(f"{names}; these images are kept in memory, {size:,} bytes")
    return {place: _content(paths[place]) for place in odd}


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # decoding names it, and counts it as a bad image
        return b""
