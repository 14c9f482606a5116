"""The images of a run by name, in order, kept in its folder: one that is gone later stays in the numbering.

Cut, order of the views and draws depend on the numbers of rows. So a file that is removed between a checkpoint
and its resumption becomes an image that cannot be read, as a broken one is.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets
from transformers.utils import logging

from .columns import image_paths
from .cutting import GROUP, relative_paths
from .fingerprint import file_checksums

logger = logging.get_logger(__name__)
NUM_NAMED = 5
NUM_TRAINED = "num_trained"  # in a listing: how many of its checksums are of training images; they come first
UNLABELLED = "unlabeled_dir"  # in a listing: the images without labels, beside the splits


def listed(rows: Dataset, folder: str | None = None) -> dict[str, object] | None:
    """The names below their folder, labels and classes of a split of files; None if its images are not all files.

    Args:
        rows: of the split.
        folder: that the names are below; the deepest that holds all images unless given.
    """
    if not isinstance(rows, Dataset) or GROUP in rows.column_names or image_paths(rows, only_files=True).null_count:
        return None
    return {"classes": _classes(rows), "names": relative_paths(rows, folder)[1], "labels": rows["label"][:]}


def aligned(rows: Dataset, known: Mapping[str, object] | None, folder: str | None = None) -> Dataset:
    """The rows in the order of an earlier listing, made with the same `folder`, with rows for the files that are gone.

    They stay as they are where they do not fit it: other classes, or a file that it lacks.
    """
    now = listed(rows, folder)
    if not known or now is None or now["classes"] != known["classes"]:
        return rows
    folder, place = relative_paths(rows, folder)[0], {name: row for row, name in enumerate(now["names"])}
    gone = [row for row, name in enumerate(known["names"]) if name not in place]
    if len(place) < len(rows) or len(rows) + len(gone) != len(known["names"]) or now.items() <= known.items():
        return rows
    names, labels = ([known[key][row] for row in gone] for key in ("names", "labels"))
    images = [{"bytes": None, "path": os.path.join(folder, name)} for name in names]
    if gone:
        more = f", and {len(gone) - NUM_NAMED:,} others" if len(gone) > NUM_NAMED else ""
        logger.warning(
            f"{len(gone):,} of {len(known['names']):,} images are gone since the run was begun; each keeps its number "
            f"and counts as a bad image: {', '.join(names[:NUM_NAMED])}{more}"
        )
    place |= {name: len(rows) + number for number, name in enumerate(names)}
    lost = Dataset.from_dict({"image": images, "label": labels}, features=rows.features)
    return concatenate_datasets([rows, lost]).select([place[name] for name in known["names"]])


def are_listed(paths: Iterable[str], listing: Mapping[str, object]) -> list[bool]:
    """Which files are images of the training split of a run's `images.json`, the part that it held out included.

    They are known by their content where the listing has checksums, else by their names.
    """
    splits = [
        each for name, each in listing.items() if name != UNLABELLED and isinstance(each, dict) and "names" in each
    ]
    if not splits:
        return [False for _ in paths]
    train, *others = splits
    if "checksums" in listing:
        return have_checksums(paths, listing["checksums"], len(train["names"]) if others else None)
    names = set(train["names"])
    depths = {name.count("/") + 1 for name in names}
    return [any("/".join(Path(path).parts[-depth:]) in names for depth in depths) for path in paths]


def are_listed_unlabelled(paths: Iterable[str], listing: Mapping[str, object]) -> list[bool]:
    """Which files are, by their content, images that a run was trained on without labels."""
    return have_checksums(paths, listing.get(UNLABELLED, {}).get("checksums"))


def num_trained(rows: Dataset, listing: Mapping[str, object]) -> int | None:
    """How many of a split's images a run was trained on, by their content; None where its `images.json` cannot tell.

    Neither is an image counted that the run held out, though a copy of it was trained on, nor one whose checksum
    several images of the run share: of large files it covers the ends alone.
    """
    paths = image_paths(rows, only_files=True)
    if NUM_TRAINED not in listing or "checksums" not in listing or paths.null_count:
        return None
    checksums = _checksums(listing["checksums"])
    trained, held_out = Counter(checksums[: listing[NUM_TRAINED]]), set(checksums[listing[NUM_TRAINED] :])
    trained = {checksum for checksum, number in trained.items() if number == 1}
    found = (file_checksums(path) for path in paths.to_pylist())
    number = sum(not each.isdisjoint(trained) and each.isdisjoint(held_out) for each in found)
    # Checksums have 32 bits, and each file is looked up by two: of very many files, some are found by chance.
    by_chance = 2 * len(paths) * len(trained) / 2**32
    return number if number > 3 * by_chance else 0


def have_checksums(paths: Iterable[str], checksums: Mapping[str, str] | None, number: int | None = None) -> list[bool]:
    """Which files have the content of one of the first `number` images, all by default, of a listing's `checksums`."""
    known = set(_checksums(checksums)[:number]) if checksums else set()
    return [bool(known) and not known.isdisjoint(file_checksums(path)) for path in paths]


def _checksums(checksums: Mapping[str, str]) -> list[int]:
    return np.frombuffer(bytes.fromhex(checksums["images"]), ">u4").tolist()


def _classes(rows: Dataset) -> list[str] | None:
    feature = rows.features["label"]
    return feature.names if isinstance(feature, ClassLabel) else None
