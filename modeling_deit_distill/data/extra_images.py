"""Images without labels to train on beside those with labels: all of a folder, but for those that have one already."""

import os
from collections.abc import Iterable

import numpy as np
from datasets import Dataset

from ..errors import InputError
from .datasets import encoded_row
from .decoding import encoded_bytes
from .fingerprint import GONE, image_checksums
from .folders import read_unlabelled_folder
from .image_files import Skipped, rows_without_labels

ARGUMENT = "unlabeled_dir"
HAS_LABEL = "image{s} found among the training or held-out images too"


def load_unlabelled(folder: str, labelled: tuple[Dataset, Dataset]) -> tuple[Dataset, str]:
    """The images of a folder, at any depth, and what of it is not used, in words.

    An image that is among the training or the held-out images too, byte by byte, is left out: it has a label, or is
    there to judge by.

    Args:
        folder: of images.
        labelled: training and held-out rows, whose columns the rows without labels share.

    Raises:
        InputError: no folder, or no images that are not among the others.
    """
    found = read_unlabelled_folder(folder, ARGUMENT)
    rows, skipped = rows_without_labels(found, labelled[0].features["label"].names), found.skipped
    repeated = are_among(rows, labelled)
    for row in np.flatnonzero(repeated).tolist():
        skipped.add(HAS_LABEL, found.paths[row])
    if repeated.all():
        raise InputError(
            f"{ARGUMENT} {folder!r} holds no other images than the training and held-out ones; give a folder of "
            "others, or leave it out"
        )
    return rows.select(np.flatnonzero(~repeated)) if repeated.any() else rows, _in_words(skipped)


def are_among(rows: Dataset, others: Iterable[Dataset]) -> np.ndarray:
    """Which images are the same, byte by byte, as one of other rows, (rows,) bool."""
    checksums, is_among = image_checksums(rows, samples=False), np.zeros(len(rows), bool)
    for other in others:
        theirs = image_checksums(other, samples=False)
        order = theirs.argsort(kind="stable")
        begins, ends = (np.searchsorted(theirs, checksums, side, sorter=order) for side in ("left", "right"))
        for row in np.flatnonzero((begins < ends) & (checksums != GONE) & ~is_among).tolist():
            # 32 bits may be equal by chance: of a million images and a million others some hundred are.
            image, places = encoded_row(rows, row)[0], order[begins[row] : ends[row]].tolist()
            is_among[row] = any(_are_same(image, encoded_row(other, place)[0]) for place in places)
    return is_among


def _are_same(one: dict, other: dict) -> bool:
    are_files = one["bytes"] is None and other["bytes"] is None
    try:
        return (are_files and os.path.samefile(one["path"], other["path"])) or encoded_bytes(one) == encoded_bytes(
            other
        )
    except OSError:  # gone by now
        return False


def _in_words(skipped: Skipped) -> str:
    return f"of {ARGUMENT}: {skipped}" if skipped.counts else ""
