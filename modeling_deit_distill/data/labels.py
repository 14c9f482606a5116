"""Labels: which column holds them, and how integers and words become classes."""

import functools
from collections.abc import Iterable, Iterator

from datasets import ClassLabel, Dataset, Features, Image, Value
from transformers.utils import logging

from ..errors import InputError, LocalInputError
from .columns import NO_LABEL

logger = logging.get_logger(__name__)

# `cls` is webdataset's; a text file beside the image ends in `.txt`.
LABEL_NAMES = ("label", "labels", "class", "target", "cls")
MAX_LISTED = 10


def label_columns(features: Features) -> list[str]:
    """The columns that may hold labels: those with class names, else the first of a usual name.

    A field of a webdataset's `json` is called `json.label`.
    """
    with_names = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if with_names:
        return with_names
    known = dict(_plain_columns(features))
    usual = [f"{name}{suffix}" for name in LABEL_NAMES for suffix in ("", ".txt")]
    usual += [f"json.{name}" for name in LABEL_NAMES]
    return [name for name in usual if name in known][:1]


def known_columns(features: Features) -> list[str]:
    """All columns by name, and the fields of those that hold JSON."""
    return list({**features, **dict(_plain_columns(features))})


def _plain_columns(features: Features) -> Iterator[tuple[str, Value]]:
    for name, feature in features.items():
        if isinstance(feature, dict):
            yield from ((f"{name}.{field}", inner) for field, inner in _plain_columns(feature))
        elif isinstance(feature, Value):
            yield name, feature


def with_label_column(rows: Dataset, image: str, label: str, *others: str) -> Dataset:
    """Rows with these columns alone, the image undecoded; a label that is a field of a column is taken out of it.

    Raises:
        InputError: a column that is not of one label for each image.
    """
    feature = {**dict(_plain_columns(rows.features)), **rows.features}[label]
    if not isinstance(feature, (ClassLabel, Value)):
        raise InputError(f"label_column {label!r} holds {feature}, not one label for each image; choose another")
    if label in rows.features:
        return rows.select_columns([image, label, *others]).cast_column(image, Image(decode=False))
    column, *fields = label.split(".")
    rows = rows.select_columns([image, column, *others])
    if isinstance(rows, Dataset):  # nothing is copied
        return rows.flatten().select_columns([image, label, *others]).cast_column(image, Image(decode=False))
    features = Features({image: Image(decode=False), label: feature})
    take = functools.partial(_take_field, column=column, fields=fields)
    return rows.cast_column(image, Image(decode=False)).map(take, features=features, remove_columns=[column])


def _take_field(row: dict, column: str, fields: list[str]) -> dict:
    value = row[column]
    for field in fields:
        value = (value or {}).get(field)
    return {".".join((column, *fields)): value}


def check_labels(rows: Dataset, where: str, option: str):
    """Refuse rows of which one has no label, as [`is_missing`] says.

    Raises:
        InputError: such a row, or no rows.
    """
    if len(rows) == 0:
        raise InputError(f"{where} has no images")
    if any(is_missing(label) for label in set(rows["label"][:])):
        raise InputError(f"{where} has images without a label; choose another split with --{option}")


def is_missing(label) -> bool:
    """Whether there is no label: none at all, the usual `NO_LABEL` of unlabelled splits, or not a number."""
    return label is None or label == NO_LABEL or label != label


def encode_labels(train: Dataset, validation: Dataset) -> tuple[Dataset, Dataset]:
    """Labels without class names become indices into the sorted classes of training; others are matched by name.

    Raises:
        InputError: validation has a class that training lacks, or only one of them has class names.
    """
    if isinstance(train.features["label"], ClassLabel):
        return train, _numbered_as(train.features["label"], validation)
    _check_no_names(validation)
    classes = _sorted_classes(train["label"][:])
    return _encode(train, classes, "training"), _encode(validation, classes, "training")


def encode_stream(stream, validation: Dataset, where: str) -> tuple[object, Dataset]:
    """The same for a stream, whose labels are not known before it is read: the classes are those of `validation`.

    A label of the stream that is not among them ends the run when it is met.

    Args:
        stream: training rows.
        validation: stored rows.
        where: what `validation` is, in words.

    Raises:
        InputError: validation has a class that training lacks, or only one of them has class names.
    """
    feature = stream.features["label"]
    if isinstance(feature, ClassLabel):
        validation = _numbered_as(feature, validation)
        index = {number: number for number in range(feature.num_classes)}
    else:
        _check_no_names(validation)
        classes = _sorted_classes(validation["label"][:])
        validation = _encode(validation, classes, where)
        feature, index = validation.features["label"], {value: number for number, value in enumerate(classes)}
    features = Features({"image": Image(decode=False), "label": feature})
    return stream.map(functools.partial(_encode_row, index=index, where=where), features=features), validation


def _numbered_as(feature: ClassLabel, validation: Dataset) -> Dataset:
    """Validation rows with the numbers that training gives to the names of their classes."""
    theirs = validation.features["label"]
    if not isinstance(theirs, ClassLabel):
        raise InputError(
            f"validation has no class names, training has {feature.names[:MAX_LISTED]}; give both class names, or none"
        )
    if unknown := [name for name in theirs.names if name not in feature.names]:
        raise InputError(
            f"validation has the classes {unknown[:MAX_LISTED]}, which training lacks: it has "
            f"{feature.names[:MAX_LISTED]}; give both the same names, or choose another --validation_split"
        )
    if theirs.names == feature.names:
        return validation
    logger.warning("validation numbers its classes otherwise than training: they are matched by their names")
    numbers = [feature.names.index(name) for name in theirs.names]
    column = [numbers[label] for label in validation["label"][:]]
    return validation.remove_columns("label").add_column("label", column, feature=feature)


def _check_no_names(validation: Dataset):
    if isinstance(theirs := validation.features["label"], ClassLabel):
        raise InputError(
            f"validation has the classes {theirs.names[:MAX_LISTED]}, training has no class names; give both class "
            "names, or none"
        )


def _encode_row(row: dict, index: dict, where: str) -> dict:
    label = _plain(row["label"])
    if label in index and not is_missing(label):
        return {**row, "label": index[label]}
    if is_missing(label):
        raise LocalInputError("the stream has an image without a label; leave such images out of it")
    raise LocalInputError(
        f"the stream has the label {label!r}, which {where} lacks, whose labels are the classes of a stream; choose a "
        "--validation_split with images of all classes, or store the data (--streaming false)"
    )


def _plain(label):
    # Editors end a text file with a new line.
    return label.rstrip("\r\n") if isinstance(label, str) else label


def _sorted_classes(labels: Iterable) -> list:
    return sorted({_plain(label) for label in labels})


def _encode(rows: Dataset, classes: list, whose: str) -> Dataset:
    index = {value: number for number, value in enumerate(classes)}
    column = [_plain(label) for label in rows["label"][:]]
    if unknown := sorted({str(label) for label in column if label not in index}):
        raise InputError(f"validation has labels that {whose} does not know: {', '.join(unknown[:MAX_LISTED])}")
    feature = ClassLabel(names=[str(value) for value in classes])
    return rows.remove_columns("label").add_column("label", [index[label] for label in column], feature=feature)
