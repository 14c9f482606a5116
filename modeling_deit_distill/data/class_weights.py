"""Weights of the classes in the label term: from their numbers of images, or from a file."""

import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..errors import InputError, one_line
from .columns import known_labels
from .image_files import shown
from .tables import csv_rows, read_text

BALANCED = "balanced"
FILE_FORM = 'a JSON object {"class": weight} or a CSV file of two columns, class and weight'
MAX_LISTED = 10


def class_weights(wanted: str | None, class_names: Sequence[str], rows: Dataset | None) -> list[float] | None:
    """The weight of each class, in the order of `class_names`; None where all are 1.

    Args:
        wanted: "balanced", see [`balanced_weights`]; a file, see [`read_weights`]; or None.
        class_names: of the student.
        rows: the training images, with a column `label`, of which those without a label do not count; None where they
            cannot be counted.

    Raises:
        InputError: images to count that cannot be, or a file of no weights for these classes.
    """
    if wanted is None:
        return None
    if wanted != BALANCED:
        return read_weights(wanted, class_names)
    if rows is None:
        raise InputError(
            "class_weights 'balanced' counts the training images of each class, which a stream or a dataset without "
            f"rows does not have; give a file of weights: {FILE_FORM}"
        )
    return balanced_weights(np.bincount(known_labels(rows), minlength=len(class_names)))


def balanced_weights(counts: np.ndarray) -> list[float]:
    """n / (k · n_c) for each class, as scikit-learn's `compute_class_weight("balanced")`: their mean over images is 1.

    Args:
        counts: (classes,) images of each, n_c. n is their sum, k the number of classes that have images; a class
            without images, which no label names, has the weight 1.
    """
    weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0).tolist()


def read_weights(file: str, class_names: Sequence[str]) -> list[float]:
    """The weights of a file, in the order of `class_names`, as they are: they are not scaled to a mean of 1.

    Args:
        file: JSON, an object from class name to weight; or CSV of two columns, with or without a header.
        class_names: each of which the file must name, and no other.

    Raises:
        InputError: a file that cannot be read, names that are missing, unknown or there twice, or a weight that is not
            a positive finite number.
    """
    where, path = f"class_weights {file!r}", Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{where} is no file; give 'balanced', or {FILE_FORM}")
    text = read_text(path, where)
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith("{")
    pairs = _json_pairs(text, where) if is_json else _csv_pairs(text, where)
    weights: dict[str, float] = {}
    for name, value in pairs:
        name = unicodedata.normalize("NFC", str(name))
        if name in weights:
            raise InputError(f"{where} names the class {name!r} twice; keep one")
        weights[name] = _weight(value, name, where)
    names = [unicodedata.normalize("NFC", name) for name in class_names]
    missing, unknown = [name for name in names if name not in weights], [name for name in weights if name not in names]
    if missing or unknown:
        raise InputError(f"{where} must name each class once; missing: {_listed(missing)}; unknown: {_listed(unknown)}")
    return [weights[name] for name in names]


def _json_pairs(text: str, where: str) -> Iterable[tuple[str, object]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a dictionary would hide a name that is there twice
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON ({one_line(error)}); give {FILE_FORM}") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(f"{where} is no JSON object; give {FILE_FORM}")
    return pairs


def _csv_pairs(text: str, where: str) -> Iterable[tuple[str, object]]:
    rows = [row for _, row in csv_rows(text, where)]
    if any(len(row) != 2 for row in rows):
        raise InputError(f"{where} has {len(rows[0])} columns; give {FILE_FORM}")
    has_header = bool(rows) and not _is_number(rows[0][1])
    return [(name, float(value) if _is_number(value) else value) for name, value in rows[has_header:]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _weight(value: object, name: str, where: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise InputError(f"{where} gives the class {name!r} the weight {value!r}; give a positive finite number")
    return float(value)


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - MAX_LISTED} others" if len(names) > MAX_LISTED else ""
    return ", ".join(shown(name) for name in names[:MAX_LISTED]) + more if names else "none"
