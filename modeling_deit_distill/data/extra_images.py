"""Images without labels to train on beside those with labels: all of a folder, but for those that have one already."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset

from ..errors import InputError
from .cutting import relative_paths
from .fingerprint import are_among
from .folders import read_unlabelled_folder, unlabelled_root
from .image_files import Skipped, rows_without_labels
from .listing import UNLABELLED, aligned, have_checksums, listed

ARGUMENT = "unlabeled_dir"
HAS_LABEL = "image{s} found among the training or held-out images too"
HAD_LABEL = "image{s} found among the training or held-out images when the run was begun"


def load_unlabelled(
    folder: str, labelled: tuple[Dataset, Dataset], listing: Mapping[str, dict]
) -> tuple[Dataset, dict[str, object] | None, str]:
    """The images of a folder, at any depth, by name as `listed` has them, and what of it is not used, in words.

    An image that is among the training or the held-out images too, byte by byte, is left out: it has a label, or is
    there to judge by. So is one that was among them when the run was begun, and may be gone from there since.

    Args:
        folder: of images.
        labelled: training and held-out rows, whose columns the rows without labels share.
        listing: of the run that is gone on with; its images keep their order, and those that are gone since their
            places, see [`listing.aligned`]. Of a new run that of the images with labels.

    Raises:
        InputError: no folder, or no images that are not among the others.
    """
    found, root, known = read_unlabelled_folder(folder, ARGUMENT), unlabelled_root(folder), listing.get(UNLABELLED, {})
    rows, skipped = rows_without_labels(found, labelled[0].features["label"].names), found.skipped
    repeated = are_among(rows, labelled)
    left_out = repeated | _had_label(found.paths, relative_paths(rows, root)[1], listing)
    for row in np.flatnonzero(left_out).tolist():
        skipped.add(HAS_LABEL if repeated[row] else HAD_LABEL, found.paths[row])
    if left_out.all():
        raise InputError(
            f"{ARGUMENT} {folder!r} holds no other images than the training and held-out ones; give a folder of "
            "others, or leave it out"
        )
    rows = aligned(rows.select(np.flatnonzero(~left_out)) if left_out.any() else rows, known, root)
    return rows, listed(rows, root), _in_words(skipped)


def _had_label(paths: list[str], names: list[str], listing: Mapping[str, dict]) -> np.ndarray:
    """Which files were among the images with labels of the run that is gone on with, (files,) bool.

    Its images without labels are none of these, and are not read.
    """
    had, known = np.zeros(len(paths), bool), set(listing.get(UNLABELLED, {}).get("names", names))
    new = [place for place, name in enumerate(names) if name not in known]
    had[new] = have_checksums((paths[place] for place in new), listing.get("checksums"))
    return had


def _in_words(skipped: Skipped) -> str:
    return f"of {ARGUMENT}: {skipped}" if skipped.counts else ""
