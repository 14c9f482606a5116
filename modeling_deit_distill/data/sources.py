"""Where images and labels come from: the embedded digits, a Hub dataset, a folder, parquet, or a folder per class."""

import functools
import glob
import hashlib
import io
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import constants as hub_constants
from transformers.utils import logging

from ..errors import InputError
from .columns import label_column
from .cutting import GROUP, cut
from .decoding import REFUSED, encoded_bytes
from .listing import aligned, listed

logger = logging.get_logger(__name__)

# A split that was not named is looked for under these, in this order.
EVALUATION_SPLITS = ("validation", "val", "valid", "dev", "test")
LABEL_NAMES = ("label", "labels", "class", "target")
FINGERPRINT_ROWS = 256
GONE = f"{zlib.crc32(b''):08x}"  # checksum of a file that is missing
IMAGE_SUFFIXES = {suffix.lower() for suffix in ImageFolder.EXTENSIONS}


@dataclass
class ImageData:
    """A training and a validation split, with columns `image` (encoded: bytes or path) and `label` (class index).

    Attributes:
        train, validation: rows.
        class_names: names in the order of the label's indices.
        source: what the user named, for summaries and cards.
        validation_source: where the validation rows come from, in words.
        groups: which groups of images the cut kept together, in words; None without any.
        listing: the images by name before the cut, see [`listing.listed`], and what their fingerprint was made of;
            that of the run that is gone on with, if there is one; empty where the images are no files.
    """

    train: Dataset
    validation: Dataset
    class_names: list[str]
    source: str
    validation_source: str
    groups: str | None = None
    listing: dict[str, object] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """A hash of classes, labels and evenly spaced training images: the same data gives the same hash anywhere.

        Files that are gone since the listing was made do not change it.
        """
        found, earlier = self._fingerprint(), self.listing.get("fingerprint", [])
        alike = [one in (other, GONE) for one, other in zip(found, earlier, strict=False)]
        return earlier[-1] if len(found) == len(earlier) and all(alike[:-1]) else found[-1]

    def keep_fingerprint(self):
        """Put into the listing what the fingerprint is made of, unless it is there."""
        if self.listing and "fingerprint" not in self.listing:
            self.listing["fingerprint"] = self._fingerprint()

    def _fingerprint(self) -> list[str]:
        """Checksums of the labels and of each image that goes into it, and the fingerprint itself."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        digest.update(label_column(self.train).tobytes() + label_column(self.validation).tobytes())
        checksums = [digest.hexdigest()]
        for row in np.linspace(0, len(self.train) - 1, min(FINGERPRINT_ROWS, len(self.train))).astype(int):
            encoded = _readable_bytes(self.train[int(row)]["image"])
            digest.update(encoded)
            checksums.append(f"{zlib.crc32(encoded):08x}")
        return [*checksums, digest.hexdigest()[:16]]


def load_image_data(
    dataset_name: str | None = None,
    *,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    group_by: str | None = None,
    listing: dict[str, object] | None = None,
) -> ImageData:
    """Load images and labels from the embedded digits, a Hub dataset, a local folder, parquet, or a folder per class.

    The validation split is the one named; else `validation`, else `test`; else a stratified cut of the training split,
    always the same one (see `cutting.cut`, also for `group_by`). With `streaming` the training split is never stored:
    `train` is a stream, and the validation split, which must exist, is. With the `listing` of an earlier run its images
    keep their order, and those that are gone since keep their places, see `listing.aligned`.

    Raises:
        InputError: a source that does not exist, columns or splits that are missing or ambiguous, fewer than two
            classes, or validation labels that training does not know.
    """
    if train_dir is not None:
        splits, source = _load_folders(train_dir, validation_dir, streaming), train_dir
        validation_split = validation_split or ("validation" if validation_dir else None)
    else:
        splits, source = _load_named(dataset_name, dataset_config_name, streaming), dataset_name
    if train_split not in splits:
        raise InputError(f"train_split {train_split!r} is not in {source!r}; it has: {', '.join(splits)}")
    splits = _select_all(splits, (train_split, validation_split), image_column, label_column, group_by)
    roots = _roots([train_dir, validation_dir] if train_dir is not None else [dataset_name])
    known = listing or {}
    splits = {name: _keep_inside(aligned(rows, known.get(name)), roots) for name, rows in splits.items()}
    if streaming:
        return _as_stream(splits, train_split, validation_split, source)
    train, split, groups = splits[train_split], _evaluation_split(splits, train_split, validation_split), None
    if group_by is not None and split is not None:
        raise InputError(
            f"group_by is about cutting the training split, and {source!r} has split {split!r}; leave it out"
        )
    _check_labels(train, f"split {train_split!r}", "train_split")
    if split is None:
        validation_source = f"{validation_fraction:.0%} of split {train_split!r}"
        train, validation, groups = cut(_encode_labels(train, train)[0], validation_fraction, group_by)
    else:
        validation, validation_source = splits[split], f"split {split!r}"
        _check_labels(validation, validation_source, "validation_split")
        train, validation = _encode_labels(train, validation)
    class_names = train.features["label"].names
    _check_classes(train, validation, class_names, source)
    used = {name: listed(splits[name]) for name in (train_split, split) if name is not None}
    listing = listing or {name: each for name, each in used.items() if each is not None}
    return ImageData(train, validation, class_names, source, validation_source, groups, listing)


def load_digits() -> Dataset:
    """The embedded default: scikit-learn's 1,797 handwritten digits, 8×8 grey, as PNG bytes (UCI ML, Alpaydin 1998)."""
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = {"image": [{"bytes": _png(image), "path": None} for image in pixels], "label": digits.target.tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict(rows, features=features)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _readable_bytes(image: dict | None) -> bytes:
    """The bytes of an image, none for a file that is missing."""
    try:
        return encoded_bytes(image)
    except (OSError, TypeError):
        return b""


def _as_stream(splits: dict, train_split: str, validation_split: str | None, source: str) -> ImageData:
    """Training as a stream; the validation split is written to the disk, since it is read again and again."""
    train = splits[train_split]
    named = [validation_split] if validation_split else [name for name in EVALUATION_SPLITS if name in splits]
    if not named or named[0] not in splits:
        raise InputError(f"streaming needs a validation split, {source!r} has: {', '.join(splits)}; --validation_split")
    if not isinstance(train.features["label"], ClassLabel):
        raise InputError(
            f"streaming needs labels with class names (ClassLabel), {source!r} has {train.features['label']}"
        )
    validation = Dataset.from_generator(
        _each_row, features=splits[named[0]].features, gen_kwargs={"rows": splits[named[0]]}
    )
    _check_labels(validation, f"split {named[0]!r}", "validation_split")
    return ImageData(train, validation, train.features["label"].names, source, f"split {named[0]!r}")


def _each_row(rows):
    yield from rows


def _load_named(name: str, config_name: str | None, streaming: bool) -> dict[str, Dataset]:
    if name == "digits":
        if streaming:
            raise InputError("the digits are embedded and in memory; drop streaming")
        return {"train": load_digits()}
    path = Path(name).expanduser()
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".parquet"):
        raise InputError(f"dataset_name {name!r} does not exist; give a folder, a parquet file or a Hub dataset's name")
    try:
        if path.is_file() and path.suffix == ".parquet":
            return dict(load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming))
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(str(path))
            splits = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
            return {name: rows.to_iterable_dataset() for name, rows in splits.items()} if streaming else splits
        return dict(load_dataset(str(path) if path.exists() else name, config_name, streaming=streaming))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        where = "could not be read" if path.exists() else "was not found here, nor could it be read from the Hub"
        raise InputError(f"dataset_name {name!r} {where} ({type(error).__name__}: {reason})") from error


def _load_folders(train_dir: str, validation_dir: str | None, streaming: bool) -> dict[str, Dataset]:
    files = {}
    for split, argument, folder in (
        ("train", "train_dir", train_dir),
        ("validation", "validation_dir", validation_dir),
    ):
        if folder is None:
            continue
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise InputError(f"{argument} {folder!r} is not a folder; give one with a subfolder of images per class")
        if (path / "train").is_dir():
            raise InputError(
                f"{argument} {folder!r} has a subfolder 'train', which would become a class; pass --train_dir "
                f"{path / 'train'} and --validation_dir, or the whole as --dataset_name {folder}"
            )
        _check_one_folder_per_class(argument, path)
        files[split] = glob.escape(str(path.resolve())) + "/**"
    try:
        return dict(load_dataset("imagefolder", data_files=files, drop_labels=False, streaming=streaming))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        folders = " and ".join(repr(folder) for folder in (train_dir, validation_dir) if folder)
        raise InputError(f"no images could be read from {folders} ({type(error).__name__}: {reason})") from error


def _check_one_folder_per_class(argument: str, folder: Path):
    """Each image lies in <class>/; the loader would take the last folder of any other path for a class."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(root).relative_to(folder)
        images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")]
        if images and len(inside.parts) != 1:
            where = (
                f"{inside / images[0]} lies {len(inside.parts)} folders deep"
                if inside.parts
                else (f"{images[0]} lies in no class folder")
            )
            raise InputError(f"{argument} {str(folder)!r}: {where}; every image must lie in <class>/, one folder deep")


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
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not labels:
        plain = [name for name in LABEL_NAMES if isinstance(features.get(name), Value)]
        labels = plain[:1]
    image = _the_column("image_column", image_column, images, features)
    label = _the_column("label_column", label_column, labels, features)
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
    rows = rows.select_columns([*taken]).cast_column(image, Image(decode=False))
    return rows.rename_columns({old: new for old, new in taken.items() if old != new})


def _the_column(argument: str, given: str | None, candidates: list[str], features: Features) -> str:
    if given is not None:
        if given not in features:
            raise InputError(f"{argument} {given!r} is not in the data; its columns are: {', '.join(features)}")
        return given
    if len(candidates) == 1:
        return candidates[0]
    found = f"several fit: {', '.join(candidates)}" if candidates else "none fits by its type"
    raise InputError(f"{argument} is not clear, {found}; choose one with --{argument} (columns: {', '.join(features)})")


def _roots(sources: list[str | None]) -> tuple[str, ...]:
    """The folders whose files a dataset's rows may name: its own, else the Hub's cache; and where archives unpack."""
    roots = {str(datasets_config.DOWNLOADED_DATASETS_PATH)}
    for source in filter(None, sources):
        path = Path(source).expanduser()
        folder = path if path.is_dir() else path.parent if path.exists() else hub_constants.HF_HUB_CACHE
        roots |= {os.path.abspath(folder), os.path.realpath(folder)}
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
    # Links in a folder are its owner's business; but what `..` after one of them means, only the system knows.
    return (os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)).startswith(roots)


def _evaluation_split(splits: dict[str, Dataset], train_split: str, validation_split: str | None) -> str | None:
    """The name of the split to evaluate on; None where there is none."""
    if validation_split is not None:
        if validation_split not in splits:
            raise InputError(f"validation_split {validation_split!r} is not in the data; it has: {', '.join(splits)}")
        return validation_split
    found = (name for name in EVALUATION_SPLITS if name in splits and name != train_split)
    return next((name for name in found if not _unlabelled(splits[name])), None)


def _unlabelled(rows: Dataset) -> bool:
    labels = rows["label"][:1]
    return len(rows) == 0 or labels[0] is None or labels[0] == -1


def _check_labels(rows: Dataset, where: str, option: str):
    if len(rows) == 0:
        raise InputError(f"{where} has no images")
    missing = {None, -1} if isinstance(rows.features["label"], ClassLabel) else {None}
    if missing & set(rows["label"][:]):
        raise InputError(f"{where} has images without a label; choose another split with --{option}")


def _encode_labels(train: Dataset, validation: Dataset) -> tuple[Dataset, Dataset]:
    """Labels that are not ClassLabel yet (strings, integers) become indices into the sorted classes of training."""
    if isinstance(train.features["label"], ClassLabel):
        return train, validation
    classes = sorted(value for value in set(train["label"][:]) if value is not None)
    index = {value: position for position, value in enumerate(classes)}
    feature = ClassLabel(names=[str(value) for value in classes])

    def encode(rows):
        """`rows` with indices for labels."""
        column = rows["label"][:]
        unknown = sorted({str(value) for value in column if value not in index})
        if unknown:
            raise InputError(f"validation has labels that training does not know: {', '.join(unknown[:10])}")
        return rows.remove_columns("label").add_column("label", [index[value] for value in column], feature=feature)

    return encode(train), encode(validation)


def _check_classes(train: Dataset, validation: Dataset, class_names: list[str], source: str):
    theirs = validation.features["label"].names
    if theirs != class_names:
        raise InputError(
            f"validation has the classes {theirs[:10]}, training has {class_names[:10]}; they must be equal"
        )
    trained, validated = set(label_column(train).tolist()), set(label_column(validation).tolist())
    if len(trained) < 2:
        names = ", ".join(class_names[index] for index in trained)
        raise InputError(f"{source!r} has one class only ({names}); a classifier needs at least two")
    missing = [class_names[index] for index in sorted(validated - trained)]
    if missing:
        raise InputError(f"validation has classes without a training image: {', '.join(missing[:10])}")
