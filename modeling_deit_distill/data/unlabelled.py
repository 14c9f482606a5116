"""Images whose classes are to be predicted: of folders whose subfolders may mean anything, of files, of rows."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..errors import InputError
from .bad_images import describe_row
from .columns import label_column
from .datasets import encoded_row
from .folders import files_below
from .image_files import EMPTY, NO_IMAGE, OTHER_SUFFIXES, SPECIAL, Skipped, as_text, shown, why_skipped

UNREADABLE = "image{s} that cannot be read"
REPEATED = "file{s} named more than once"
NO_FOLDER = -1


class FoundImages(Sequence):
    """Images of files, as [`data.evaluation.ImageDataset`] takes them.

    Attributes:
        folder_names: of the subfolders, directly below the folders that were named, in which images lie.
        folders: (images,) int32, for each image the index of its subfolder, `NO_FOLDER` for none.
        skipped: files that are no images.
    """

    def __init__(self, paths: list[str], folders: list[str], errors: dict[int, str], skipped: Skipped):
        # One buffer: a list of names would be copied, bit by bit, into each worker that counts references to them.
        self._paths = pa.array([os.fsencode(path) for path in paths], pa.large_binary())
        self.folder_names = sorted({name for name in folders if name})
        index = {name: number for number, name in enumerate(self.folder_names)}
        self.folders = np.array([index.get(name, NO_FOLDER) for name in folders], np.int32)
        self._errors = errors
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> dict | str:
        """The encoded image, `{"bytes", "path"}`; in words why it cannot be read, where this is known already."""
        return self._errors.get(row) or {"bytes": None, "path": self._path(row)}

    def name(self, row: int) -> str:
        """The image's path, as it begins on the command line."""
        return as_text(self._path(row))

    def _path(self, row: int) -> str:
        return os.fsdecode(self._paths[row].as_py())


class RowImages(Sequence):
    """The rows of a split of [`ImageData`], with attributes as [`FoundImages`]; their classes stand for folders."""

    def __init__(self, rows: Dataset):
        self.rows = rows
        self.folder_names = rows.features["label"].names
        self.folders = label_column(rows).astype(np.int32)
        self.skipped = Skipped()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict:
        return encoded_row(self.rows, row)[0]

    def name(self, row: int) -> str:
        """The image's path, or its row where it has none."""
        return self[row]["path"] or describe_row(self.rows, row)


def find_images(names: list[str]) -> FoundImages:
    """All images in folders, at any depth, and of files, in this order; each file once.

    A file that is there as an image but cannot be read is among them with the reason. What is no image is skipped,
    unless it is named itself.

    Raises:
        InputError: a name of nothing, or no images at all.
    """
    paths, folders, errors, skipped, seen = [], [], {}, Skipped(), set()
    for name in names:
        given = os.path.expanduser(name)
        is_folder = os.path.isdir(given)
        if not is_folder and not os.path.lexists(given):
            raise InputError(f"{shown(name)!r} is no file and no folder; check the path")
        for path, folder, kind in files_below(given, skipped) if is_folder else [(given, "", why_skipped(given))]:
            if (place := os.path.abspath(path)) in seen:
                skipped.add(REPEATED, path)
                continue
            seen.add(place)
            if is_folder and kind is not None and _is_no_image(path, kind):
                skipped.add(kind, path)
                continue
            if kind is not None:
                errors[len(paths)] = kind.format(s="")
            paths.append(path)
            folders.append(folder)
    if not paths:
        reason = f" (skipped: {skipped})" if skipped.counts else ""
        raise InputError(f"there are no images in {', '.join(map(shown, names))}{reason}")
    return FoundImages(paths, folders, errors, skipped)


def _is_no_image(path: str, kind: str) -> bool:
    return kind in (NO_IMAGE, SPECIAL) or kind == EMPTY and Path(path).suffix.lower() in OTHER_SUFFIXES
