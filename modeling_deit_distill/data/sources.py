"""Where images and labels come from: embedded digits, a Hub dataset, a folder, parquet, a folder per class, a CSV."""

import contextlib
import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError
from huggingface_hub import constants as hub_constants
from transformers.utils import logging

from ..errors import InputError, one_line
from ..hub import offline_remedy
from ..report import say_once
from .columns import label_column as class_indices
from .cutting import GROUP, cut
from .decoding import REFUSED
from .extra_images import load_unlabelled
from .fingerprint import Fingerprint, is_earlier
from .folders import read_class_folders
from .image_files import image_splits, in_words, plain_path, untrained_classes_in_words
from .labels import (
    check_labels,
    encode_labels,
    encode_stream,
    is_missing,
    known_columns,
    label_columns,
    with_label_column,
)
from .listing import NUM_TRAINED, UNLABELLED, aligned, listed
from .tables import read_table

logger = logging.get_logger(__name__)

# A split that was not named is looked for under these, in this order.
EVALUATION_SPLITS = ("validation", "val", "valid", "dev", "test")
KNOWN_BY_FEW = (
    "a teacher_store or a teacher of an earlier version knows its data by 256 of the images; whether others were "
    "changed since cannot be found"
)
FILE_KINDS = {".parquet": "parquet", ".tar": "webdataset"}


@dataclasses.dataclass
class ImageData:
    """A training and a validation split, with columns `image` (encoded: bytes or path) and `label` (class index)."""

    train: Dataset
    validation: Dataset
    class_names: list[str]  # in the order of the label's indices
    source: str  # what the user named, for summaries and cards
    validation_source: str  # where the validation rows come from, in words
    groups: str | None = None  # which groups of images the cut kept together, in words
    skipped: str = ""  # files that were not read, by kind and name, in words; empty for none
    # The images by name before the cut (`listing.listed`), and what their fingerprint was made of: those of the run
    # that is resumed, if there is one. Empty where the images are no files.
    listing: dict[str, object] = dataclasses.field(default_factory=dict)
    is_cut: bool = False  # whether the held-out images are a part of the training split, and change where this does
    unlabelled: Dataset | None = None  # more images to train on, each with `NO_LABEL`; None for none

    _known: Fingerprint | None = dataclasses.field(default=None, init=False, repr=False, compare=False)
    _known_unlabelled: Fingerprint | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    @property
    def shown(self) -> Dataset:
        """The images that a student is trained on: those of the training split, then those without labels."""
        if self.unlabelled is None:
            return self.train
        return concatenate_datasets([self.train.select_columns(self.unlabelled.column_names), self.unlabelled])

    def fingerprint(self, like: object = None) -> str:
        """A hash of classes, labels and all images: the same data gives the same hash anywhere.

        Files that are gone since the listing was made do not change it.

        Args:
            like: what it will be compared with. If that is a hash of an earlier version, which looked at 256 images,
                such a one is made. Where they agree, it is said once that others may have changed.
        """
        known = self._fingerprint()
        if not is_earlier(like):
            return known.of_all(self.listing.get("checksums"))
        earlier = known.of_some(self.listing.get("fingerprint"))
        if earlier == like:
            say_once(KNOWN_BY_FEW)
        return earlier

    def unlabelled_fingerprint(self) -> str | None:
        """A hash of the images without labels, as [`fingerprint`]; None where there are none."""
        if self.unlabelled is None:
            return None
        return self._fingerprint_of_unlabelled().of_all(self.listing.get(UNLABELLED, {}).get("checksums"))

    def keep_fingerprint(self):
        """Put into the listing what the fingerprint is made of, unless it is there."""
        if UNLABELLED in self.listing:
            self.listing[UNLABELLED].setdefault("checksums", self._fingerprint_of_unlabelled().checksums)
        if self.listing:
            self.listing.setdefault("checksums", self._fingerprint().checksums)
            self.listing.setdefault("fingerprint", self._fingerprint().earlier)
            self.listing.setdefault(NUM_TRAINED, len(self.train))

    def _fingerprint(self) -> Fingerprint:
        of = (self.train, self.validation, self.class_names)
        if self._known is None or any(one is not other for one, other in zip(self._known.of, of, strict=True)):
            self._known = Fingerprint(of)
        return self._known

    def _fingerprint_of_unlabelled(self) -> Fingerprint:
        if self._known_unlabelled is None or self._known_unlabelled.of[0] is not self.unlabelled:
            self._known_unlabelled = Fingerprint((self.unlabelled, []))
        return self._known_unlabelled


def load_image_data(
    dataset_name: str | None = None,
    *,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_csv: str | None = None,
    validation_csv: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    group_by: str | None = None,
    unlabeled_dir: str | None = None,
    listing: dict[str, object] | None = None,
) -> ImageData:
    """Load images and labels from the embedded digits, a Hub dataset, a local folder, parquet, class folders or a CSV.

    The validation split is the one named; else `validation`, else `test`; else a stratified cut of the training split,
    always the same one (see `cutting.cut`, also for `group_by`). With `streaming` the training split is never stored:
    `train` is a stream, and the validation split, which must exist, is stored. Where labels have no class names, the
    classes are those of the validation split. With `unlabeled_dir` there are more images to train on, without labels,
    see `extra_images.load_unlabelled`. With the `listing` of an earlier run its images keep their order, and those that
    are gone since keep their places, see `listing.aligned`.

    Raises:
        InputError: a source that does not exist, columns or splits that are missing or ambiguous, fewer than two
            classes, or validation labels that training does not know.
    """
    source, own, skipped = train_dir or train_csv or dataset_name, validation_dir or validation_csv, ""
    needed, columns = (train_split, validation_split), (image_column, label_column)
    if train_dir or train_csv:
        files = (train_dir, validation_dir, "dir") if train_dir else (train_csv, validation_csv, "csv")
        splits, skipped = _load_files(*files, columns, streaming)
        columns = columns if train_dir else (None, None)  # of a table they have done their work
        splits = _with_columns(splits, source, needed, columns, group_by)
    else:
        splits = _load_named(dataset_name, dataset_config_name, streaming)
        splits = _with_columns(splits, source, needed, columns, group_by)
        splits = {name: _keep_inside(rows, _roots(dataset_name)) for name, rows in splits.items()}
    splits = {name: aligned(rows, (listing or {}).get(name)) for name, rows in splits.items()}
    train, split = splits[train_split], _find_validation(splits, train_split, validation_split, streaming)
    _check_grouping(group_by, split, source)
    if streaming:
        return dataclasses.replace(_as_stream(train, splits, split, source, own), skipped=skipped)
    check_labels(train, f"split {train_split!r}", "train_split")
    if split is None:
        where = _cut_in_words(train, train_split, train_dir or train_csv, validation_fraction)
        train, validation, groups = cut(encode_labels(train, train)[0], validation_fraction, group_by)
    else:
        where, groups = _split_in_words(split, own), None
        check_labels(splits[split], where, "validation_split")
        train, validation = encode_labels(train, splits[split])
    _check_classes(train, validation, source)
    class_names = train.features["label"].names
    listing = listing or _listing(splits, (train_split, split))
    data = ImageData(train, validation, class_names, source, where, groups, skipped, listing, split is None)
    return data if unlabeled_dir is None else _with_unlabelled(data, unlabeled_dir)


def _cut_in_words(train: Dataset, train_split: str, files: str | None, fraction: float) -> str:
    """What the held-out part is cut off: the user's own files, or a split of a dataset."""
    if files:
        return f"of the {len(train):,} in {files} ({fraction:.0%} asked for)"
    return f"{fraction:.0%} of split {train_split!r}"


def _split_in_words(split: str, own: str | None) -> str:
    """The user's own held-out files, or the split of a dataset that is held out."""
    return own if own and split == "validation" else f"split {split!r}"


def _check_grouping(group_by: str | None, split: str | None, source: str):
    if group_by is not None and split is not None:
        raise InputError(
            f"group_by is about cutting the training split, and {source!r} has split {split!r}; leave it out"
        )


def _with_unlabelled(data: ImageData, folder: str) -> ImageData:
    rows, names, skipped = load_unlabelled(folder, (data.train, data.validation), data.listing)
    listing = data.listing if names is None else {UNLABELLED: names, **data.listing}
    skipped = "; ".join(filter(None, (data.skipped, skipped)))
    return dataclasses.replace(data, unlabelled=rows, skipped=skipped, listing=listing)


def _with_columns(splits: dict, source: str, needed: tuple, columns: tuple, group_by: str | None) -> dict:
    if needed[0] not in splits:
        raise InputError(f"train_split {needed[0]!r} is not in {source!r}; it has: {', '.join(splits)}")
    return _select_all(splits, needed, *columns, group_by)


def _listing(splits: dict, used: tuple) -> dict[str, object]:
    """The images of the splits that are used, by name; of those that are files."""
    found = {name: listed(splits[name]) for name in used if name is not None}
    return {name: each for name, each in found.items() if each is not None}


def load_digits() -> Dataset:
    """The embedded default: scikit-learn's 1,797 handwritten digits, 8×8 grey, as PNG bytes (UCI ML, Alpaydin 1998)."""
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": list(pixels), "label": digits.target.tolist()}, features=features)


def _as_stream(train, splits: dict, split: str | None, source: str, own: str | None) -> ImageData:
    """Training as a stream; the validation split is written to the disk, since it is read again and again."""
    if split is None:
        raise InputError(f"streaming needs a validation split, {source!r} has: {', '.join(splits)}; --validation_split")
    rows, where = splits[split], _split_in_words(split, own)
    validation = Dataset.from_generator(_each_row, features=rows.features, gen_kwargs={"rows": rows})
    check_labels(validation, where, "validation_split")
    train, validation = encode_stream(train, validation, where)
    class_names = train.features["label"].names
    if len(class_names) < 2:
        raise InputError(f"{where} of {source!r} has one class only ({class_names[0]}); choose another")
    return ImageData(train, validation, class_names, source, where)


def _each_row(rows):
    yield from rows


def _load_named(name: str, config_name: str | None, streaming: bool) -> dict[str, Dataset]:
    if name == "digits":
        if streaming:
            raise InputError("the digits are embedded and in memory; drop streaming")
        return {"train": load_digits()}
    path = Path(name).expanduser()
    kind = FILE_KINDS.get(path.suffix)
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or kind):
        raise InputError(
            f"dataset_name {name!r} does not exist; give a folder, a parquet or tar file, or a Hub dataset's name"
        )
    where = "could not be read" if path.exists() else "was not found here, nor could it be read from the Hub"
    with _load_errors(f"dataset_name {name!r} {where}"):
        if path.is_file() and kind:
            return dict(load_dataset(kind, data_files={"train": str(path)}, streaming=streaming))
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(str(path))
            splits = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
            return {name: rows.to_iterable_dataset() for name, rows in splits.items()} if streaming else splits
        return dict(load_dataset(str(path) if path.exists() else name, config_name, streaming=streaming))


def _load_files(train: str, validation: str | None, kind: str, columns: tuple, streaming: bool) -> tuple[dict, str]:
    """The splits of folders (of `kind` `dir`) or tables (`csv`), and what was skipped in them, in words."""
    read = read_class_folders if kind == "dir" else functools.partial(read_table, columns=columns)
    # The smaller one first: it may be refused.
    held_out = read(validation, f"validation_{kind}") if validation else None
    found = read(train, f"train_{kind}")
    return image_splits(found, held_out, streaming), in_words(found, held_out)


@contextlib.contextmanager
def _load_errors(what: str):
    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = one_line(error.__cause__ or error)
        # A webdataset's `.cls` is a whole number by its own rules, for every reader.
        hint = "; if it has words in .cls files, call them .cls.txt" if "invalid literal for int()" in reason else ""
        raise InputError(f"{what} ({type(error).__name__}: {reason}){hint}{offline_remedy(error)}") from error


def _select_all(splits: dict[str, Dataset], needed: tuple, image_column, label_column, group_by) -> dict[str, Dataset]:
    """The splits with their columns; one that nobody named may lack them (a test split without labels)."""
    selected = {}
    for name, rows in splits.items():
        try:
            selected[name] = _select_columns(rows, image_column, label_column, group_by)
        except InputError:
            if name in needed:
                raise
    return selected


def _select_columns(rows: Dataset, image_column: str | None, label_column: str | None, group_by: str | None) -> Dataset:
    """The columns under the names `image`, `label` and, if it is one, `group`; the image undecoded."""
    features = rows.features
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    image = _the_column("image_column", image_column, images, list(features))
    label = _the_column("label_column", label_column, label_columns(features), known_columns(features))
    if image == label:
        raise InputError(f"image_column and label_column are both {label!r}; choose another --label_column")
    if not isinstance(features[image], Image):
        rows = rows.cast_column(image, Image())
    taken = {image: "image", label: "label"}
    if group_by in features:
        if group_by in taken or not isinstance(features[group_by], (ClassLabel, Value)):
            raise InputError(
                f"group_by {group_by!r} is a column of {features[group_by]}; choose one of words or numbers"
            )
        taken[group_by] = GROUP
    rows = with_label_column(rows, *taken)
    return rows.rename_columns({old: new for old, new in taken.items() if old != new})


def _the_column(argument: str, given: str | None, candidates: list[str], columns: list[str]) -> str:
    if given is not None:
        if given not in columns:
            raise InputError(f"{argument} {given!r} is not in the data; its columns are: {', '.join(columns)}")
        return given
    if len(candidates) == 1:
        return candidates[0]
    found = f"several fit: {', '.join(candidates)}" if candidates else "none fits by its type"
    raise InputError(f"{argument} is not clear, {found}; choose one with --{argument} (columns: {', '.join(columns)})")


def _roots(dataset_name: str) -> tuple[str, ...]:
    """The folders whose files a dataset's rows may name: its own, else the Hub's cache; and where archives unpack."""
    path = Path(dataset_name).expanduser()
    folder = path if path.is_dir() else path.parent if path.exists() else hub_constants.HF_HUB_CACHE
    roots = {str(datasets_config.DOWNLOADED_DATASETS_PATH), os.path.abspath(folder), os.path.realpath(folder)}
    return tuple(os.path.join(root, "") for root in sorted(roots))


def _keep_inside(rows: Dataset, roots: tuple[str, ...]) -> Dataset:
    """The rows, with `REFUSED` for the images whose path leads elsewhere: whoever made them must not choose files."""
    refuse = functools.partial(_refuse_outside, roots=roots)
    if not isinstance(rows, Dataset):
        return rows.map(refuse, features=rows.features)
    column = rows.data.column("image")
    unread = pc.and_(pc.is_valid(column), pc.is_null(pc.struct_field(column, "bytes")))
    paths = pc.drop_null(pc.struct_field(column, "path").filter(unread))
    inside = [pc.starts_with(paths, root) for root in roots]
    plain = pc.and_(functools.reduce(pc.or_, inside), pc.invert(pc.match_substring(paths, "..")))
    unclear = paths.filter(pc.invert(plain)).to_pylist()  # none, but in rare datasets
    return rows if all(_is_inside(path, roots) for path in unclear) else rows.map(refuse, features=rows.features)


def _refuse_outside(row: dict, roots: tuple[str, ...]) -> dict:
    image = row["image"]
    if not image or image["bytes"] is not None or image["path"] is None or _is_inside(image["path"], roots):
        return row
    # The path too: what writes rows drops the bytes of an image whose file is there.
    return {**row, "image": {"bytes": REFUSED, "path": f"refused: {image['path']}"}}


def _is_inside(path: str, roots: tuple[str, ...]) -> bool:
    return plain_path(path).startswith(roots)


def _find_validation(splits: dict, train_split: str, given: str | None, streaming: bool) -> str | None:
    """The name of the validation split; None where one must be cut off the training split."""
    if given is not None and given not in splits:
        raise InputError(f"validation_split {given!r} is not in the data; it has: {', '.join(splits)}")
    others = [name for name in EVALUATION_SPLITS if name in splits and name != train_split]
    return given or next((name for name in others if streaming or not _unlabelled(splits[name])), None)


def _unlabelled(rows: Dataset) -> bool:
    labels = rows["label"][:1]
    return len(rows) == 0 or is_missing(labels[0])


def _check_classes(train: Dataset, validation: Dataset, source: str):
    class_names = train.features["label"].names
    trained, validated = set(class_indices(train).tolist()), set(class_indices(validation).tolist())
    if len(trained) < 2:
        names = ", ".join(class_names[index] for index in trained)
        raise InputError(f"{source!r} has one class only ({names}); a classifier needs two: add images of another")
    missing = [class_names[index] for index in sorted(validated - trained)]
    if missing:
        raise InputError(untrained_classes_in_words(missing))
