"""The held-out part of a dataset that has none: stratified, groups kept together, each class left to train on."""

import os
import re

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from datasets.utils.stratify import stratified_shuffle_split_generate_indices

from ..errors import InputError
from .columns import image_paths

# Not the run's seed: runs with several seeds see the same held-out images.
SPLIT_SEED = 0
GROUP = "group"  # the column that `--group_by` names, under the name that the cut knows it by


def cut(rows: Dataset, fraction: float, group_by: str | None = None) -> tuple[Dataset, Dataset, str | None]:
    """Cut the held-out part off a split; the same rows are always cut alike.

    Args:
        rows: with `image` and `label` (a `ClassLabel`), and `group` if `group_by` names a column.
        fraction: of the images to hold out.
        group_by: the column's name, or a regular expression, see [`groups_by_path`]; None for no groups.

    Returns:
        Training rows, held-out rows, and what the groups are, in words.

    Raises:
        InputError: nothing can be held out without taking a class's last image or group from training, or groups that
            cannot be made.
    """
    if len(rows) < 2:
        raise InputError(f"the training split has {len(rows)} image; at least two are needed to hold one out")
    labels, groups, words = np.asarray(rows["label"][:]), np.arange(len(rows)), None
    if group_by is not None:
        groups, words = _groups(rows, group_by)
        rows = rows.remove_columns(GROUP) if GROUP in rows.column_names else rows
    train, held_out = _plain_cut(labels, fraction)
    if not _keeps_the_rules(labels, groups, train, held_out):
        held_out = hold_out(labels, groups, fraction)
        train = np.setdiff1d(np.arange(len(rows)), held_out)
    if not len(held_out):
        what = "image" if group_by is None else f"group of '{group_by}'"
        raise InputError(
            f"nothing can be held out of {len(rows):,} images: each class has one {what} only, which training needs; "
            "give --validation_dir or --validation_split" + ("" if group_by is None else ", or another --group_by")
        )
    return rows.select(train), rows.select(held_out), words


def hold_out(labels: np.ndarray, groups: np.ndarray, fraction: float) -> np.ndarray:
    """Rows to hold out, in order: whole groups, about `fraction` of each class, never all of a class's groups.

    A class whose groups are all larger than its share holds out its smallest one.

    Args:
        labels: (rows,) class indices.
        groups: (rows,) group indices from 0 on, none left out.
        fraction: of the rows.
    """
    classes, labels = np.unique(labels, return_inverse=True)
    sizes = np.bincount(labels)
    # Each pair of a group and a class in it, in the order of the groups.
    pairs, counts = np.unique(groups.astype(np.int64) * len(classes) + labels, return_counts=True)
    group_of, label_of = np.divmod(pairs, len(classes))
    shares = _shares(sizes, np.bincount(label_of, minlength=len(classes)) > 1, fraction)
    starts = np.searchsorted(group_of, np.arange(groups.max() + 2)).tolist()
    parts = list(zip(label_of.tolist(), counts.tolist(), strict=True))
    chosen, held = set(), [0] * len(classes)

    def take(group: int, limits: list[int]):
        """Hold a group out, if of no class more than its limit is held out then."""
        within = parts[starts[group] : starts[group + 1]]
        if group not in chosen and all(held[label] + number <= limits[label] for label, number in within):
            chosen.add(group)
            for label, number in within:
                held[label] += number

    limits = shares.tolist()
    for group in np.random.default_rng(SPLIT_SEED).permutation(len(starts) - 1).tolist():
        take(group, limits)
    totals, all_but_one = np.bincount(groups), (sizes - 1).tolist()
    for label in [label for label, share in enumerate(limits) if share and not held[label]]:
        for group in sorted(group_of[label_of == label].tolist(), key=lambda group: totals[group]):
            if not held[label]:
                take(group, all_but_one)
    return np.flatnonzero(np.isin(groups, list(chosen)))


def relative_paths(rows: Dataset, folder: str | None = None) -> tuple[str, list[str | None]]:
    """The folder that all images of the rows lie in, and each image's path below it, with forward slashes.

    Without a `folder`, it is the deepest.
    """
    paths = image_paths(rows)
    if folder is None:
        ends = pc.min_max(paths).as_py()  # what the first and the last in order have in common, all between them have
        folder = os.path.dirname(os.path.commonprefix([end or "" for end in ends.values()]))
    start = len(os.path.join(folder, "")) if folder else 0
    return folder, [path and path[start:].replace(os.sep, "/") for path in paths.to_pylist()]


def groups_by_path(paths: list[str | None], expression: str) -> tuple[list[str | None], int]:
    """The group of each image: the expression's first group, or its whole match, in the path; None where none matches.

    Returns:
        The groups, and how many images do not match.

    Raises:
        InputError: no regular expression, or no image matches.
    """
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(f"group_by '{expression}' is no column and no regular expression: {error}") from None
    matches = [path is not None and pattern.search(path) for path in paths]
    groups = [match[1 if pattern.groups else 0] if match else None for match in matches]
    missing = groups.count(None)
    if missing == len(groups):
        shown = next(filter(None, paths), None)
        seen = "its images have no path; name a column"
        if shown is not None:
            seen = f"the first path is {shown!r}; correct the expression"
        raise InputError(f"group_by '{expression}' is no column and matches none of the images' paths: {seen}")
    return groups, missing


def _groups(rows: Dataset, group_by: str) -> tuple[np.ndarray, str]:
    """(rows,) the index of each row's group, and what the groups are, in words."""
    if GROUP in rows.column_names:
        names = rows[GROUP][:]
        missing, lack = names.count(None), "have no value"
    else:
        (names, missing), lack = groups_by_path(relative_paths(rows)[1], group_by), "do not match"
    index: dict = {}
    groups = [index.setdefault(("row", row) if name is None else name, len(index)) for row, name in enumerate(names)]
    if len(index) == 1:
        raise InputError(
            f"group_by '{group_by}' makes one group of all {len(rows):,} images, so none can be held out; give another "
            "one, or --validation_dir or --validation_split"
        )
    words = f"{len(index):,} by '{group_by}', each in training or held out as a whole"
    if missing:
        words += f"; {missing:,} of {len(rows):,} images {lack}: each is a group"
    return np.asarray(groups), words


def _plain_cut(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `Dataset.train_test_split(fraction, stratify_by_column="label")`; none where it makes none."""
    num_held_out = int(np.ceil(fraction * len(labels)))
    sizes, generator = (len(labels) - num_held_out, num_held_out), np.random.default_rng(SPLIT_SEED)
    try:
        # Not through a dataset, which takes minutes to hand out a million row numbers.
        return next(stratified_shuffle_split_generate_indices(labels, *sizes, rng=generator))
    except ValueError:  # a class with a single image, or fewer held-out images than classes
        return np.empty(0, dtype=int), np.empty(0, dtype=int)


def _keeps_the_rules(labels: np.ndarray, groups: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> bool:
    trains_all = len(np.unique(labels[train])) == len(np.unique(labels))
    return trains_all and len(held_out) > 0 and not np.isin(groups[held_out], groups[train]).any()


def _shares(sizes: np.ndarray, can_be_cut: np.ndarray, fraction: float) -> np.ndarray:
    """(classes,) how many images of each to hold out: largest remainders, and at least one image is left to train."""
    wanted, limits = np.where(can_be_cut, sizes * fraction, 0.0), np.where(can_be_cut, sizes - 1, 0)
    total = min(int(np.ceil(sizes[can_be_cut].sum() * fraction)), int(limits.sum()))
    shares = np.minimum(np.floor(wanted).astype(int), limits)
    while shares.sum() < total:
        lacking = np.where(shares < limits, wanted - shares, -np.inf)
        shares[lacking.argmax()] += 1  # of equals the first
    return shares
